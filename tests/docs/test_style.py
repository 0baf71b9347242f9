"""The EHR's look, by the code of the page that says how, and its list of properties."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
from django.template import engines
from django.test import RequestFactory

from django_smart.protocol.style import SMARTStyle
from tests.docs.blocks import DOCS, Block, execute, read_blocks

PAGE = "how-to/style.rst"


class _Launch:
    """What the tag asks of ``request.smart``."""

    def __init__(self, style: SMARTStyle | None) -> None:
        self.style = style


def _request(style: SMARTStyle | None) -> Any:
    request: Any = RequestFactory().get("/")
    request.smart = _Launch(style)
    return request


def _blocks(language: str) -> list[Block]:
    return [
        block
        for block in read_blocks(PAGE, "Match the EHR's style")
        if block.language == language
    ]


@pytest.mark.compliance("RESP-15")
def test_page_lists_the_properties_there_are():
    names = {each.name for each in fields(SMARTStyle)} - {"problems"}
    expected = {f"--smart-{name.replace('_', '-')}" for name in names}
    text = (DOCS / PAGE).read_text(encoding="utf-8")
    assert set(re.findall(r"``(--smart-[a-z-]+)``", text)) == expected
    (css,) = _blocks("css")
    assert set(re.findall(r"var\((--smart-[a-z-]+)", css.code)) <= expected


def test_tag_is_written_as_the_page_says():
    plain, with_nonce = _blocks("html+django")
    request = _request(SMARTStyle(color_text="red"))
    source = f"{plain.code}|{with_nonce.code}"
    first, second = (
        engines["django"]
        .from_string(source)
        .render({"csp_nonce": "n-1"}, request)
        .split("|")
    )
    css = ":root{--smart-color-text:red;}"
    assert first.strip() == f"<style>{css}</style>"
    assert second.strip() == f'<style nonce="n-1">{css}</style>'


@pytest.mark.parametrize(
    ("style", "color"),
    [
        (None, "#5b2fa0"),
        (SMARTStyle(color_text="red"), "#5b2fa0"),
        (SMARTStyle(color_highlight="teal"), "teal"),
    ],
)
def test_value_is_used_as_the_page_says(style, color):
    (block,) = _blocks("python")
    assert execute(block)["chart_color"](_request(style)) == color
