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
_TO_DO: dict[str, tuple[int, int, int, int]] = {
    "explanation/capacity": (0, 1, 0, 0),
    "explanation/layers": (18, 0, 0, 0),
    "explanation/right-patient": (0, 2, 1, 0),
    "explanation/ten-tasks": (5, 0, 1, 0),
    "faq": (0, 1, 0, 0),
    "how-to/deploy-behind-a-proxy": (0, 2, 0, 0),
    "how-to/migrate": (0, 4, 0, 0),
    "how-to/odd-servers": (0, 0, 3, 0),
    "how-to/register-athenahealth": (4, 0, 0, 0),
    "how-to/register-blue-button": (2, 1, 0, 0),
    "how-to/register-eclinicalworks": (5, 0, 1, 0),
    "how-to/register-epic": (4, 0, 0, 0),
    "how-to/register-meditech": (5, 0, 0, 0),
    "how-to/register-medplum": (3, 0, 0, 0),
    "how-to/register-oracle-health": (2, 1, 0, 0),
    "how-to/register-va-lighthouse": (2, 0, 1, 0),
    "how-to/smart-launcher": (0, 0, 1, 0),
    "how-to/use-the-admin": (7, 1, 1, 0),
    "reference/codes": (5, 0, 0, 0),
    "reference/settings": (0, 0, 1, 0),
    "reference/signals": (0, 1, 0, 0),
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
    pages = words.read_pages()
    assert set(_TO_DO) <= set(pages)
    for name, text in pages.items():
        found = words.count(name, text)
        figures = found.semicolons, found.people, found.passive, found.requirements
        most = _TO_DO.get(name, _MOST)
        over = [a > b for a, b in zip(figures, most, strict=True)]
        assert not any(over), f"{name}: {figures}, and at most {most}"
