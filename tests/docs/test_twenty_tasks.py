"""The twenty tasks: each is run, counted, and run again where something fails."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import DOCS
from tests.docs.comparing import CODE, Task, measure
from tests.docs.ten_more_tasks import TASKS as TEN_MORE
from tests.docs.ten_tasks import TASKS as TEN
from tests.transport.conftest import _fresh_pool

__all__ = ["_fresh_pool"]

_TASKS = [*TEN, *TEN_MORE]
_PAGE = (DOCS / "evidence.rst").read_text(encoding="utf-8")


def _read_table() -> dict[str, str]:
    """The rows of the table, by their task."""
    table = re.search(r'fhirclient"\n\n((?:   ".*\n)+)', _PAGE)
    assert table
    return {row.split('"')[1]: row for row in table[1].splitlines()}


def test_each_task_has_a_row_and_a_section_with_its_code() -> None:
    titles = [each.title for each in _TASKS]
    assert list(_read_table()) == titles
    code = (DOCS / CODE).read_text(encoding="utf-8")
    assert re.findall(r"^(\S.*)\n-{3,}\n", code, re.MULTILINE) == titles


@pytest.mark.parametrize("kind", _TASKS, ids=lambda kind: kind.__name__)
def test_row_of_the_page_is_what_its_code_does(kind: type[Task]) -> None:
    assert _read_table()[kind.title] == measure(kind())
