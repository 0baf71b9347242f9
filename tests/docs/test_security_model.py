"""Each attack of the security model has tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS

_ROOT = DOCS.parent
_PAGE = (DOCS / "explanation" / "security-model.rst").read_text(encoding="utf-8")
_TRIED = _PAGE.split("\nAttacks and protections\n--", 1)[1]
_TRIED = _TRIED.split("\nWhat is assumed\n--")[0]
_ENTRY = re.compile(r"^(?=\S)(?!\.\. )(.+)\n((?:    .*\n|\n(?=    ))+)", re.MULTILINE)
_TEST = re.compile(r"^    - ``(tests/[\w/]+\.py)::(test_\w+)``$", re.MULTILINE)
_EVIDENCE = (DOCS / "evidence.rst").read_text(encoding="utf-8")
_TESTS = _EVIDENCE.split("\nTests of the security model\n--", 1)[1]
_NAMED = _TEST.findall(_TESTS)


def test_each_attack_of_the_page_has_tests_among_the_evidence() -> None:
    attacks = [name for name, _ in _ENTRY.findall(_TRIED)]
    assert len(attacks) > 25
    entries = _ENTRY.findall(_TESTS)
    assert [name for name, _ in entries] == attacks
    for name, text in entries:
        assert len(_TEST.findall(text)) == text.count("    - ") > 0, name


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
