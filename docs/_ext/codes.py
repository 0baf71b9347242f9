"""Sphinx directive ``codes``: what each code of the package means."""

from __future__ import annotations

import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from django_smart.diagnoses import DIAGNOSES, Diagnosis

__all__ = ["list_codes", "setup"]


class Codes(SphinxDirective):
    """
    ``.. codes:: The user`` lists that section of ``diagnoses.tsv``.

    The content is a field list: more to say about a code, by its name.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            lines = list(list_codes(self.arguments[0], "\n".join(self.content)))
        except ValueError as exc:
            raise self.error(str(exc)) from exc
        return self.parse_text_to_nodes("\n".join(lines))


def list_codes(section: str, content: str) -> Iterator[str]:
    """
    The lines of a definition list.

    Args:
        section: as in the table.
        content: of the directive.

    Raises:
        ValueError: *content* names a code that the section does not have.
    """
    parts = re.split(r"^:([\w.]+):", content, flags=re.MULTILINE)
    more = dict(zip(parts[1::2], parts[2::2], strict=True))
    found = [each for each in DIAGNOSES.values() if each.section == section]
    for each in found:
        words = f"{each.what} {each.why} {each.fix} {more.pop(each.code, '')}".split()
        yield from (_get_head(each), f"    {' '.join(words)}", "")
    if more:
        raise ValueError(f"no codes of {section}: {', '.join(more)}")


def _get_head(each: Diagnosis) -> str:
    status = f", status {each.status}" if each.status else ""
    return f"``{each.code}`` ({each.severity}, for {_TURNS[each.turn]}{status})"


_TURNS = {"user": "the user", "site": "your site", "ehr": "the EHR"}


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_directive("codes", Codes)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
