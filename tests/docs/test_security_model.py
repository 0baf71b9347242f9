"""Promises of the security model name tests that are there."""

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
_TEST = re.compile(r"``(tests/[\w/]+\.py)::(\w+)``")


def _entries() -> list[tuple[str, str]]:
    return _ENTRY.findall(_TRIED)


@pytest.mark.parametrize("name", [name for name, _ in _entries()])
def test_promise_names_its_tests(name: str) -> None:
    text = dict(_entries())[name]
    fields = text.partition("    :Tests:")[2]
    assert _TEST.search(fields), f"{name} names no test"
    assert not _TEST.search(text.partition("    :Tests:")[0])


_NAMED = _TEST.findall(_PAGE)


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


def test_there_are_promises() -> None:
    assert len(_entries()) > 25
    assert all(name.startswith("test_") for _, name in _NAMED)
