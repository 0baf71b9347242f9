"""Sphinx directive ``screenshot``: a page, light, dark and on a phone."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

__all__ = ["setup"]

_FORMS = (
    ("", "74%", ["only-light"]),
    ("-dark", "74%", ["only-dark"]),
    ("-375", "22%", []),
)


class Screenshot(SphinxDirective):
    """``.. screenshot:: picker``; the content says what a reader sees."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        alt = " ".join(self.content)
        return [
            nodes.image(
                "",
                uri=f"/images/{self.arguments[0]}{form}.png",
                alt=alt,
                width=width,
                classes=classes,
            )
            for form, width, classes in _FORMS
        ]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_directive("screenshot", Screenshot)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
