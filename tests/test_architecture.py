"""The layers of the package: a module imports only from its own line and above."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).resolve().parent.parent / "django_smart"

# From the top; see docs/explanation/layers.rst. By the first name below the package.
_LAYERS = {
    "pure": {"exceptions", "protocol"},
    "wire": {"fhir", "transport"},
    "state": {"conf", "fields", "migrations", "models", "signals", "words"},
    "flows": {"contrib", "flows", "grants", "launches", "servers"},
    "edges": {
        "admin",
        "apps",
        "audit",
        "backends",
        "broker",
        "banner",
        "browser",
        "checks",
        "chooser",
        "clients",
        "context",
        "decorators",
        "drf",
        "error_pages",
        "frames",
        "management",
        "message_names",
        "metrics",
        "middleware",
        "mixins",
        "prefix",
        "receivers",
        "redaction",
        "schedule",
        "tasks",
        "templatetags",
        "urls",
        "views",
    },
}
_ORDER = list(_LAYERS)
# Beside the layers: only this module imports it.
_BESIDE = "testing"
# Imports nothing of what it judges.
_SIMULATOR = "testing.simulator"
_IMPORTS_BESIDE = "management.commands.smart_simulator"
# The one module of ours that pytest loads.
_PYTEST_PLUGIN = "testing.pytest_plugin"

_PURE_LIBRARIES = {"cryptography", "jwt"}
_WIRE_LIBRARIES = _PURE_LIBRARIES | {"requests", "urllib3"}
# Other people's clients, for those who have them installed.
_OPTIONAL_LIBRARIES = {"fhirclient", "fhirpy"}
_ADAPTERS = {"fhir.adapters", "fhir.client"}
# Clock, chance and surroundings: arguments in the pure layer, never asked for there.
_IMPURE = {
    "asyncio",
    "datetime.date.today",
    "datetime.datetime.now",
    "datetime.datetime.today",
    "datetime.datetime.utcnow",
    "http.client",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib.request",
    "uuid.uuid1",
    "uuid.uuid4",
}
_LONGEST = 700  # lines
# One tree of errors in one file, and what Django writes: lists, which nobody reads from
# top to bottom.
_LISTS = {"exceptions", "migrations.0001_initial", "migrations.0003_brands"}


def _name(path: Path) -> str:
    """Dotted name of a module below the package; empty for ``__init__``."""
    parts = list(path.relative_to(_PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


_PATHS = {_name(path): path for path in sorted(_PACKAGE.rglob("*.py"))}
_MODULES = [name for name in _PATHS if name]


def _layer(name: str) -> str | None:
    """Layer of a dotted name below the package; None beside the layers."""
    top = name.partition(".")[0]
    for layer, names in _LAYERS.items():
        if top in names:
            return layer
    return None


def _of_layer(*layers: str) -> list[str]:
    return [name for name in _MODULES if _layer(name) in layers]


def _tree(name: str) -> ast.Module:
    return ast.parse(_PATHS[name].read_text(encoding="utf-8"))


def _from(node: ast.ImportFrom, name: str) -> str:
    """Absolute name of the module that a ``from`` import names."""
    if not node.level:
        return node.module or ""
    package = ["django_smart", *name.split(".")]
    if _PATHS[name].name != "__init__.py":
        package.pop()
    base = package[: len(package) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _imports(tree: ast.Module, name: str) -> Iterator[str]:
    """Absolute dotted names that *tree* imports anywhere, in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _from(node, name)
            # "from django_smart import conf" names a module, as "import" does.
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _is_under(dotted: str, prefix: str) -> bool:
    return dotted == prefix or dotted.startswith(prefix + ".")


def _own_imports(name: str) -> list[str]:
    """What *name* imports of this package, below the package."""
    return [
        dotted.removeprefix("django_smart.")
        for dotted in _imports(_tree(name), name)
        if _is_under(dotted, "django_smart")
    ]


def _foreign_imports(name: str) -> set[str]:
    """Top-level names of the libraries that *name* imports."""
    tops = {dotted.partition(".")[0] for dotted in _imports(_tree(name), name)}
    return tops - set(sys.stdlib_module_names) - {"django_smart"}


def _used_names(tree: ast.Module, name: str) -> Iterator[str]:
    """
    Dotted names that *tree* refers to, with what was imported written in full.

    ``from datetime import datetime as dt; dt.now(UTC)`` uses ``datetime.datetime.now``.
    """
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                known[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known[alias.asname or alias.name] = f"{_from(node, name)}.{alias.name}"
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in known:
            yield ".".join([known[node.id], *parts])


@pytest.mark.parametrize("name", _MODULES)
def test_module_belongs_to_one_layer(name):
    beside = name.partition(".")[0] == _BESIDE
    assert beside or _layer(name) is not None, (
        f"give django_smart.{name} a layer in {Path(__file__).name} "
        "and in docs/explanation/layers.rst"
    )


@pytest.mark.parametrize("name", _of_layer(*_ORDER))
def test_module_imports_only_from_its_own_layer_and_above(name):
    layer = _layer(name)
    assert layer is not None
    allowed = set().union(
        *(_LAYERS[each] for each in _ORDER[: _ORDER.index(layer) + 1])
    )
    below = {
        dotted
        for dotted in _own_imports(name)
        if dotted != "__version__"
        and dotted.partition(".")[0] not in allowed
        and not (name == _IMPORTS_BESIDE and _is_under(dotted, _BESIDE))
    }
    assert not below


@pytest.mark.parametrize("name", _of_layer("pure"))
def test_pure_module_uses_no_framework_and_no_network(name):
    assert _foreign_imports(name) <= _PURE_LIBRARIES


@pytest.mark.parametrize("name", _of_layer("pure"))
def test_pure_module_asks_for_no_clock_chance_or_surroundings(name):
    used = {
        dotted
        for dotted in _used_names(_tree(name), name)
        if any(_is_under(dotted, impure) for impure in _IMPURE)
    }
    assert not used


@pytest.mark.parametrize("name", _of_layer("wire"))
def test_wire_module_uses_no_framework(name):
    optional = _OPTIONAL_LIBRARIES if name in _ADAPTERS else set()
    assert _foreign_imports(name) <= _WIRE_LIBRARIES | optional


@pytest.mark.parametrize(
    "name", [name for name in _MODULES if _is_under(name, _SIMULATOR)]
)
def test_simulator_imports_nothing_of_what_it_judges(name):
    own = _own_imports(name)
    assert [each for each in own if not _is_under(each, _SIMULATOR)] == []


@pytest.mark.parametrize(
    "name", [name for name in _MODULES if _is_under(name, _BESIDE)]
)
def test_help_for_tests_needs_no_test_runner(name):
    assert name == _PYTEST_PLUGIN or "pytest" not in _foreign_imports(name)


def test_package_itself_holds_the_version_alone():
    body = _tree("").body
    assert [type(node) for node in body] == [ast.Expr, ast.ImportFrom, ast.Assign]
    assert isinstance(body[-1], ast.Assign)
    assert ast.unparse(body[-1].targets[0]) == "__version__"


@pytest.mark.parametrize("name", [name for name in _MODULES if name not in _LISTS])
def test_module_can_be_read_in_one_sitting(name):
    lines = _PATHS[name].read_text(encoding="utf-8").count("\n")
    assert lines <= _LONGEST, "split it"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import time\ntime.time()", {"time", "time.time"}),
        ("from time import time as now\nnow()", {"time.time"}),
        (
            "from datetime import datetime as dt\ndt.now()",
            {"datetime.datetime.now", "datetime.datetime"},
        ),
        ("def f(now):\n    return now()", set()),
    ],
)
def test_uses_are_found_under_any_name(source, expected):
    assert set(_used_names(ast.parse(source), "protocol")) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import requests.adapters", {"requests.adapters"}),
        ("def f():\n    from django.db import models", {"django.db.models"}),
        ("from . import conf", {"django_smart.conf"}),
        ("from .protocol import pkce", {"django_smart.protocol.pkce"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source, expected):
    assert set(_imports(ast.parse(source), "exceptions")) == expected
