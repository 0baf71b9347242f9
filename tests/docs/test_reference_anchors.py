"""The anchors that pages of the package link to, and the links between our pages."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import django_smart
from django_smart import signals
from tests.docs.blocks import DOCS, read_blocks

_PACKAGE = Path(django_smart.__file__).parent


@pytest.fixture
def anchors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    yield importlib.import_module("reference_anchors")
    del sys.modules["reference_anchors"]


@pytest.mark.parametrize(
    ("page", "name", "section", "anchor"),
    [
        ("settings", "SMART_SITE_URL", "Address", "smart-site-url"),
        ("errors", "state_unknown", "When the browser returns", "state_unknown"),
        ("checks", "django_smart.E001", "Settings", "django_smart.E001"),
        ("doctor", "clock_off", "The server", "clock_off"),
        ("signals", "grant_lost", "Signals", "grant_lost"),
        ("models", "base_url", "FHIRServer", "FHIRServer.base_url"),
        ("commands", "--base-url URL", "smart_register", "smart-register-base-url"),
        ("commands", "generate", "smart_keys", "smart-keys-generate"),
    ],
)
def test_anchor_follows_the_rule_of_its_page(
    anchors: Any, page: str, name: str, section: str, anchor: str
) -> None:
    assert anchors.get_anchor(page, name, section) == anchor


def test_names_of_commands_and_signals_link_to_their_entries(anchors: Any) -> None:
    commands = [path.stem for path in _PACKAGE.rglob("commands/smart_*.py")]
    assert len(commands) > 9
    for name in commands:
        expected = ("commands", name.replace("_", "-"))
        assert anchors.find_entry(name) == expected
    for name in signals.__all__:
        assert anchors.find_entry(name) == ("signals", name)
    settings = (DOCS / "reference/settings.rst").read_text(encoding="utf-8")
    for name in re.findall(r"^``(SMART_\w+)``$", settings, re.MULTILINE):
        page, anchor = anchors.find_entry(name)
        assert (page, anchor) == ("settings", name.lower().replace("_", "-"))
    assert anchors.find_entry("state_unknown") == ("codes", "state_unknown")
    assert anchors.find_entry("clock_off") == ("codes", "clock_off")
    for text in ("smart_required", "SMART_*", "smart_keys list", "django_smart.urls"):
        assert anchors.find_entry(text) is None


def test_troubleshooting_names_codes_and_log_lines_that_exist(anchors: Any) -> None:
    console, *_ = read_blocks("how-to/troubleshooting.rst")
    ((*_, command, _slug),) = console.commands
    assert anchors.find_entry(command) == ("commands", "smart-doctor")
    page = (DOCS / "how-to/troubleshooting.rst").read_text(encoding="utf-8")
    pages, log = page.split("\nIn the log\n", 1)
    shown = pages.partition("\nYour site shows")[2].partition("\nThe page opens")[0]
    codes = re.findall(r"``(\w+)``", shown)
    assert len(codes) > 10
    for code in codes:
        assert anchors.find_entry(code) == ("codes", code)
    source = "".join(path.read_text("utf-8") for path in _PACKAGE.rglob("*.py"))
    source = re.sub(r'"\s+"', "", source)
    lines = re.findall(r"^   \* - ``(.+)``$", log, re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        part = max(re.split(r"\d+|…|'.*?'|invalid_grant", line), key=len)
        assert part.strip(" ,:") in source, line
