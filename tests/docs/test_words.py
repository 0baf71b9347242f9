"""Pages are written in plain sentences, as far as that can be counted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docs.blocks import DOCS

# Semicolons between sentences, "somebody" and the like, "is refused", ids.
_MOST = (2, 0, 0, 0)
# Pages that have not been rewritten yet. A page that leaves this list never returns.
_TO_DO: dict[str, tuple[int, int, int, int]] = {}


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
    pages = words.read_pages()
    assert set(_TO_DO) <= set(pages)
    for name, text in pages.items():
        found = words.count(name, text)
        figures = found.semicolons, found.people, found.passive, found.requirements
        most = _TO_DO.get(name, _MOST)
        over = [a > b for a, b in zip(figures, most, strict=True)]
        assert not any(over), f"{name}: {figures}, and at most {most}"
