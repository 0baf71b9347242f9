"""
Leave the ids of requirements, which docstrings cite, out of the reference.

They are for people who change the code; the pages of evidence list them.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata

__all__ = ["leave_out_ids", "setup"]

_ID = r"[A-Z]{3,5}-\d\d"
_IDS = rf"{_ID}(?:(?:, | to ){_ID})*"


def leave_out_ids(docstring: str) -> str:
    """Remove ``(FHIR-01, FHIR-02)`` and the line ``Spec: FHIR-01 to FHIR-08.``"""
    docstring = re.sub(rf"^ *Spec: {_IDS}\.\n?", "", docstring, flags=re.MULTILINE)
    return re.sub(rf"\s*\({_IDS}\)", "", docstring)


def _change(
    app: Sphinx, what: str, name: str, of: object, options: Any, lines: list[str]
) -> None:
    lines[:] = leave_out_ids("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _change)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
