"""Pages are written in plain sentences, as far as that can be counted."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docs.blocks import DOCS

# How many of a chapter's sentences address the reader, in percent, at least.
_YOU = {
    "Start": 42,
    "Build": 33,
    "Connect": 30,
    "Run": 25,
    "Fix it": 28,
    "Reference": 15,
    "Understand": 20,
}


@pytest.fixture(scope="module")
def words() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("words")
    del sys.modules["words"]


def test_what_is_counted(words: Any) -> None:
    text = (
        "Title\n=====\n\n"
        "You see it; somebody else is refused (a; b), as EHRL-06 says.\n"
        "The second one.\n\n.. code-block:: python\n\n    a = 1; nobody = 2\n\n"
        "- one item;\n- another item;\n"
    )
    found = words.count("how-to/x", text)
    assert (found.semicolons, found.people, found.passive) == (1, 1, 1)
    assert (found.you, found.requirements) == (1, 1)
    assert words.count("reference/conformance", text).requirements == 0


def test_pages_are_plain(words: Any) -> None:
    for name, text in words.read_pages().items():
        found = words.count(name, text)
        # Semicolons between sentences, "somebody" and the like, "is refused", ids.
        figures = found.semicolons, found.people, found.passive, found.requirements
        assert not any(figures), f"{name}: {figures}"


@pytest.mark.parametrize("name", ["README.rst", "CONTRIBUTING.rst"])
def test_pages_beside_the_documentation_are_plain(words: Any, name: str) -> None:
    found = words.count(name, (DOCS.parent / name).read_text(encoding="utf-8"))
    assert (found.semicolons, found.people, found.passive) == (0, 0, 0)


@pytest.mark.parametrize("chapter", _YOU)
def test_chapter_addresses_its_reader(words: Any, chapter: str) -> None:
    pages = words.read_pages()
    (tree,) = re.findall(
        rf"   :caption: {chapter}\n(?:   :.*\n)+\n((?:   .+\n)+)", pages["index"]
    )
    names = [each.strip() for each in tree.splitlines() if "<" not in each]
    assert len(names) > 1
    figures = [words.count(name, pages[name]) for name in names]
    you, sentences = sum(f.you for f in figures), sum(f.sentences for f in figures)
    assert 100 * you >= _YOU[chapter] * sentences
