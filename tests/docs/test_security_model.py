"""Each attack of the security model has tests that are there."""

from __future__ import annotations

import ast
import csv
import re
from itertools import groupby
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS

_ROOT = DOCS.parent
_PAGE = (DOCS / "explanation" / "security-model.rst").read_text(encoding="utf-8")
_TRIED = _PAGE.split("\nAttacks and protections\n--", 1)[1]
_TRIED = _TRIED.split("\nWhat is assumed\n--")[0]
_ENTRY = re.compile(r"^(?=\S)(?!\.\. )(.+)\n((?:    .*\n|\n(?=    ))+)", re.MULTILINE)
_TEST = re.compile(r"``(tests/[\w/]+\.py)::(test_\w+)``")


def _read_tests() -> list[tuple[str, str]]:
    """Each attack with one of its tests, as the page of evidence shows them."""
    path = DOCS / "reference" / "attacks.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["Attack"], row["Test"]) for row in csv.DictReader(file)]


_ROWS = _read_tests()
_NAMED = [match.groups() for _, test in _ROWS if (match := _TEST.fullmatch(test))]


def test_each_attack_of_the_page_has_tests() -> None:
    attacks = [name for name, _ in _ENTRY.findall(_TRIED)]
    assert len(attacks) > 25
    assert [name for name, _ in groupby(_ROWS, key=lambda row: row[0])] == attacks
    assert len(_NAMED) == len(_ROWS)
    evidence = (DOCS / "evidence.rst").read_text(encoding="utf-8")
    assert ":file: reference/attacks.csv\n" in evidence


@pytest.mark.parametrize("path", sorted({path for path, _ in _NAMED}))
def test_tests_that_are_named_exist(path: str) -> None:
    tree = ast.parse(Path(_ROOT, path).read_text(encoding="utf-8"))
    defined = {
        each.name
        for each in tree.body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = {name for where, name in _NAMED if where == path}
    assert named - defined == set()
