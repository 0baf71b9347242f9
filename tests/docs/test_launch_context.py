"""The page about ``request.smart`` tells of all there is, and of nothing else."""

from __future__ import annotations

import re

from django_smart.launches.context import SMARTContext
from tests.docs.blocks import DOCS

# What the middleware calls, and what a page about async code mentions in passing.
_INNER = {"aload", "astyle", "check_prefix", "has_launch", "named_launch"}


def test_page_has_an_entry_for_each_attribute():
    text = (DOCS / "reference/launch-context.rst").read_text(encoding="utf-8")
    entries = re.findall(r"^``[a-z_].*``$", text, re.MULTILINE)
    described = {
        name for entry in entries for name in re.findall(r"``([a-z_]+)", entry)
    }
    names = {name for name in vars(SMARTContext) if not name.startswith("_")}
    assert described == names - _INNER
