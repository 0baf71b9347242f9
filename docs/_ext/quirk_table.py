"""Sphinx directive ``quirks``: every quirk of a server, with its witness."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from django_smart.admin.quirk_fields import get_quirk_help
from django_smart.protocol.quirks import QUIRKS, Quirk

__all__ = ["setup"]

_TYPES = {
    bool: "``true`` or ``false``",
    dict: "a JSON object of strings",
    float: "a number",
    timedelta: "seconds",
}


class Quirks(SphinxDirective):
    """``.. quirks::`` writes a definition list of them."""

    def run(self) -> list[nodes.Node]:
        lines = (line for quirk in QUIRKS.values() for line in _describe(quirk))
        return self.parse_text_to_nodes("\n".join(lines))


def _describe(quirk: Quirk) -> Iterator[str]:
    values = " or ".join(f"``{value}``" for value in quirk.choices)
    default = {True: "``true``", False: "``false``", None: "empty"}.get(
        quirk.default if quirk.type is not dict else None, f"``{quirk.default}``"
    )
    yield f"``{quirk.name}``"
    yield f"    {_escape(str(get_quirk_help(quirk.name)))}"
    yield ""
    yield f"    :Value: {values or _TYPES[quirk.type]}; by default {default}"
    yield f"    :Witness: {_escape(quirk.witness)}"
    if quirk.is_operational:
        yield "    :Permission: *operate* is sufficient"
    if quirk.simulated:
        yield f"    :Simulated: ``{quirk.simulated}``"
    yield ""


def _escape(text: str) -> str:
    return text.replace("*", r"\*").replace("_", r"\_").replace("`", r"\`")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_directive("quirks", Quirks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
