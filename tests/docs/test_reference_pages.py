"""The reference is whole: every code, URL, template, signal and model is in it."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.dispatch import Signal

import django_smart
from django_smart import exceptions, signals, urls, views
from django_smart.diagnoses import DIAGNOSES, DOCS_URL
from tests.docs.blocks import DOCS, read_blocks

_TEMPLATES = Path(django_smart.__file__).parent / "templates" / "django_smart"


def _read(page: str) -> str:
    return (DOCS / "reference" / page).read_text(encoding="utf-8")


@pytest.fixture
def list_codes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    yield importlib.import_module("codes").list_codes
    del sys.modules["codes"]


@pytest.fixture
def leave_out_ids(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    yield importlib.import_module("requirement_ids").leave_out_ids
    del sys.modules["requirement_ids"]


def test_every_code_has_one_entry(list_codes):
    directives = re.findall(
        r"^\.\. codes:: (.+)\n((?:   .*\n|\n)*)", _read("codes.rst"), re.M
    )
    page = "\n".join(
        line
        for section, content in directives
        for line in list_codes(section, textwrap.dedent(content))
    )
    listed = re.findall(r"^``([\w.]+)`` \(.*\)\n    \S", page, re.M)
    assert listed == list(DIAGNOSES)


def test_pages_name_checks_that_exist():
    named = {
        each
        for page in DOCS.rglob("*.rst")
        if "_build" not in page.parts
        for each in re.findall(
            r"``(django_smart\.[EIW]\d+)``", page.read_text(encoding="utf-8")
        )
    }
    assert len(named) > 5
    assert named - set(DIAGNOSES) == set()


def test_more_about_a_code_is_listed_with_it(list_codes):
    lines = list(list_codes("The user", ":user_changed:\n   Nothing\n   is wrong."))
    place = next(i for i, line in enumerate(lines) if "``user_changed`` (" in line)
    assert "status 409" in lines[place]
    assert lines[place + 1].endswith("meantime. Nothing is wrong.")
    with pytest.raises(ValueError, match="token_refused"):
        list(list_codes("The user", ":token_refused: Wrong."))


def test_reference_has_no_ids_of_requirements(leave_out_ids):
    docstring = (
        "The token goes\nto its server alone\n(FHIR-01, FHIR-02).  Since UTC-05.\n\n"
        "Spec: SMART App Launch 2.2, Access (FHIR-01 to FHIR-08); FHIR R4.\n"
        "Spec: STATE-09, STATE-11.\n"
    )
    assert leave_out_ids(docstring) == (
        "The token goes\nto its server alone.  Since UTC-05.\n\n"
        "Spec: SMART App Launch 2.2, Access; FHIR R4.\n"
    )


def test_links_lead_to_the_documentation_that_the_package_names():
    setup = (DOCS.parent / "setup.cfg").read_text(encoding="utf-8")
    assert f"Documentation = {DOCS_URL}\n" in setup


def test_urls_are_listed():
    page = _read("views.rst").partition("Templates\n---------\n")[0]
    listed = re.findall(
        r"^``([\w.]+(?:/\w+)?/?(?:<\w+>(?:/|\.json))?)``\n    \S", page, re.M
    )
    assert listed == [
        re.sub(r"<\w+:", "<", str(each.pattern)) for each in urls.urlpatterns
    ]


def test_templates_are_listed_with_their_blocks():
    page = _read("views.rst")
    listed = set(re.findall(r"``(?:django_smart/)?(\w+\.html)``", page))
    assert listed == {path.name for path in _TEMPLATES.glob("*.html")}
    blocks = {
        block
        for path in _TEMPLATES.glob("*.html")
        for block in re.findall(r"\{% block (\w+) %\}", path.read_text("utf-8"))
    }
    assert not {block for block in blocks if f"``{block}``" not in page}


@pytest.mark.parametrize("name", views.__all__)
def test_views_are_listed(name):
    assert f".. autoclass:: django_smart.views.{name}\n" in _read("views.rst")


def test_signals_are_listed():
    listed = re.findall(r"^``(\w+)``\n    \S", _read("signals.rst"), re.M)
    sent = [name for name, value in vars(signals).items() if isinstance(value, Signal)]
    assert sorted(listed) == sorted(sent)


def test_models_are_listed():
    listed = re.findall(r"^\.\. model:: ([\w.]+)$", _read("models.rst"), re.M)
    models = {
        f"{prefix}{model.__name__}"
        for app, prefix in (
            ("django_smart", ""),
            ("django_smart_brands", "django_smart_brands."),
        )
        for model in apps.get_app_config(app).get_models()
    }
    assert sorted(listed) == sorted(models)


def _imported_names() -> Iterator[str]:
    """What pages tell their readers to import from the package."""
    for page in sorted(DOCS.rglob("*.rst")):
        if "_build" in page.parts:
            continue
        for block in read_blocks(str(page.relative_to(DOCS))):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = (f"{node.module}.{alias.name}" for alias in node.names)
                    yield from (each for each in names if "django_smart." in each)


def test_what_pages_import_is_in_the_reference():
    pages = "".join(map(_read, ("api.rst", "views.rst", "exceptions.rst")))
    documented = set(re.findall(r"auto\w+:: (django_smart[\w.]*)", pages))
    for module, members in re.findall(r"automodule:: (\S+)\n   :members: (.+)", pages):
        documented |= {f"{module}.{name}" for name in members.split(", ")}
    documented |= {f"django_smart.signals.{name}" for name in signals.__all__}
    documented |= {f"django_smart.exceptions.{name}" for name in exceptions.__all__}
    models = apps.get_app_config("django_smart").get_models()
    documented |= {f"django_smart.models.{model.__name__}" for model in models}
    assert set(_imported_names()) - documented == set()
