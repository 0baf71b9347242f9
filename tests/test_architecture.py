"""The house: who may import whom, as docs/explanation/layers.rst draws it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

_PACKAGE = Path(__file__).resolve().parent.parent / "django_smart"

# Each room and the rooms directly below it; what is below those may be imported too.
_BELOW: Mapping[str, tuple[str, ...]] = {
    "diagnoses": (),
    "exceptions": ("diagnoses",),
    "protocol": ("exceptions",),
    "transport": ("protocol",),
    "fhir": ("transport",),
    "ground": ("exceptions",),
    "models": ("ground", "protocol"),
    "servers": ("models", "transport"),
    "grants": ("servers",),
    "clients": ("grants", "fhir"),
    "launches": ("clients",),
    "error_pages": ("launches",),
    "edges": ("error_pages",),
    "contrib": ("edges",),
}
_GROUND = {"conf", "fields", "redaction", "signals", "tracing"}
# Everything that is not a room of its own: the names users import, and the edges.
_EDGES = {
    "admin",
    "apps",
    "backends",
    "checks",
    "context",
    "decorators",
    "management",
    "middleware",
    "mixins",
    "schedule",
    "tasks",
    "templatetags",
    "urls",
    "views",
}
# What a site may do without is offered by these alone.
_OFFER_CONTRIB = {"admin", "checks", "management", "urls", "views"}
# Imports that go up, inside a function: at most eight, each with its reason.
_SEAMS = {
    # Loaded for the sites that ask for it.
    ("launches.context", "contrib.app_state"),
    ("launches.context", "contrib.style"),
}
# Beside the house: only these modules import it.
_BESIDE = "testing"
# Imports nothing of what it judges.
_SIMULATOR = "testing.simulator"
_IMPORT_BESIDE = {"contrib.doctor.launch", "management.commands.smart_simulator"}
# The one module of ours that pytest loads.
_PYTEST_PLUGIN = "testing.pytest_plugin"

_PURE_LIBRARIES = {"cryptography", "jwt"}
_WIRE_LIBRARIES = _PURE_LIBRARIES | {"requests", "urllib3"}
# Other people's clients, for those who have them installed.
_OPTIONAL_LIBRARIES = {"fhirclient", "fhirpy"}
_ADAPTERS = {"fhir.adapters"}
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


def _name(path: Path) -> str:
    """Dotted name of a module below the package; empty for ``__init__``."""
    parts = list(path.relative_to(_PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


_PATHS = {_name(path): path for path in sorted(_PACKAGE.rglob("*.py"))}
_MODULES = [name for name in _PATHS if name]


def _room(name: str) -> str | None:
    """Room of a dotted name below the package; None if it has none."""
    top = name.partition(".")[0]
    if top in _GROUND:
        return "ground"
    if top in _EDGES:
        return "edges"
    if top == "migrations":
        return "models"
    return top if top in _BELOW else None


def _may_import(room: str, below: Mapping[str, tuple[str, ...]]) -> set[str]:
    """*room*, and every room below it."""
    return {room}.union(*(_may_import(each, below) for each in below[room]))


def _of_room(*rooms: str) -> list[str]:
    return [name for name in _MODULES if _room(name) in rooms]


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


def _may_offer_contrib(name: str) -> bool:
    return name.partition(".")[0] in _OFFER_CONTRIB


def _find_upward(
    imports: Mapping[str, Iterable[str]], below: Mapping[str, tuple[str, ...]]
) -> set[tuple[str, str]]:
    """The imports, as importer and imported, that the drawing does not allow."""
    upward = set()
    for name, imported in imports.items():
        room = _room(name)
        if room is None:
            continue
        allowed = _may_import(room, below)
        if _may_offer_contrib(name):
            allowed = allowed | {"contrib"}
        upward |= {
            (name, dotted)
            for dotted in imported
            if dotted != "__version__"
            and _room(dotted) not in allowed
            and not (name in _IMPORT_BESIDE and _is_under(dotted, _BESIDE))
        }
    return upward


_IMPORTS = {name: _own_imports(name) for name in _MODULES}
_ARROWS = sorted({(room, each) for room, under in _BELOW.items() for each in under})


@pytest.mark.parametrize("name", _MODULES)
def test_module_belongs_to_one_room(name):
    beside = name.partition(".")[0] == _BESIDE
    assert beside or _room(name) is not None, (
        f"give django_smart.{name} a room in {Path(__file__).name} "
        "and in docs/explanation/layers.rst"
    )


def test_imports_point_down():
    def is_seam(name: str, dotted: str) -> bool:
        return any(
            name == seam and _is_under(dotted, target) for seam, target in _SEAMS
        )

    upward = _find_upward(_IMPORTS, _BELOW)
    assert [each for each in sorted(upward) if not is_seam(*each)] == []


@pytest.mark.parametrize(("name", "target"), sorted(_SEAMS))
def test_seam_is_used_and_lazy(name, target):
    assert any(_is_under(dotted, target) for dotted in _IMPORTS[name])
    at_the_top = ast.Module(
        body=[
            node
            for node in _tree(name).body
            if isinstance(node, ast.Import | ast.ImportFrom)
        ],
        type_ignores=[],
    )
    assert not any(
        _is_under(dotted, f"django_smart.{target}")
        for dotted in _imports(at_the_top, name)
    )


def test_seams_are_few():
    assert len(_SEAMS) <= 8


@pytest.mark.parametrize(("room", "under"), _ARROWS)
def test_arrow_turned_round_is_noticed(room, under):
    (below, *_) = (name for name in _of_room(under) if not _may_offer_contrib(name))
    assert _find_upward({below: _of_room(room)[:1]}, _BELOW)
    # And the code has this arrow: without it in the drawing, its imports are refused.
    without = tuple(each for each in _BELOW[room] if each != under)
    assert _find_upward(_IMPORTS, {**_BELOW, room: without})


@pytest.mark.parametrize("name", _of_room("diagnoses", "exceptions", "protocol"))
def test_pure_module_uses_no_framework_and_no_network(name):
    assert _foreign_imports(name) <= _PURE_LIBRARIES


@pytest.mark.parametrize("name", _of_room("diagnoses", "exceptions", "protocol"))
def test_pure_module_asks_for_no_clock_chance_or_surroundings(name):
    used = {
        dotted
        for dotted in _used_names(_tree(name), name)
        if any(_is_under(dotted, impure) for impure in _IMPURE)
    }
    assert not used


@pytest.mark.parametrize("name", _of_room("transport", "fhir"))
def test_transport_and_client_use_no_framework(name):
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


@pytest.mark.parametrize("name", [each for each in _MODULES if _room(each) != _BESIDE])
def test_transaction_names_the_database_that_a_router_chose(name):
    calls = [
        node
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"atomic", "on_commit", "set_rollback"}
    ]
    assert [
        call.lineno
        for call in calls
        if "using" not in {each.arg for each in call.keywords}
    ] == []


def test_status_of_a_launch_is_written_in_one_place():
    """By ``LaunchQuerySet.transition()``: each arrow is one conditional UPDATE."""
    about_launches = [
        name
        for name in _MODULES
        if name == "models.launch"
        or _room(name) in {"launches", "error_pages"}
        or name.startswith(("views.", "admin.launch"))
    ]
    writers = [
        name
        for name in about_launches
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"update", "aupdate", "update_or_create"}
        and "status" in {each.arg for each in node.keywords}
    ]
    assert writers == ["models.launch"]


def test_views_leave_the_transactions_of_every_database():
    # Without an alias, Django's decorator names the default database alone.
    users = [
        name
        for name in _MODULES
        for dotted in _used_names(_tree(name), name)
        if dotted == "django.db.transaction.non_atomic_requests"
    ]
    assert users == ["views.base"]


def test_package_itself_holds_the_version_alone():
    body = _tree("").body
    assert [type(node) for node in body] == [ast.Expr, ast.ImportFrom, ast.Assign]
    assert isinstance(body[-1], ast.Assign)
    assert ast.unparse(body[-1].targets[0]) == "__version__"


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
