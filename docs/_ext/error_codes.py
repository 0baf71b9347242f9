"""Sphinx directive ``errors``: the codes of the package's exceptions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from django_smart import exceptions
from django_smart.exceptions import SMARTError

__all__ = ["list_errors", "setup"]


class Errors(SphinxDirective):
    """
    ``.. errors:: TokenError IDTokenError`` lists the codes of these classes and of
    those below them, each with its status, class and meaning.

    The content is a field list: more to say about a code, by its name.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            lines = list(list_errors(self.arguments[0], "\n".join(self.content)))
        except ValueError as exc:
            raise self.error(str(exc)) from exc
        return self.parse_text_to_nodes("\n".join(lines))


def list_errors(names: str, content: str) -> Iterator[str]:
    """
    The lines of a definition list.

    Args:
        names: of classes, separated by spaces.
        content: of the directive.

    Raises:
        ValueError: *content* names a code that is none of theirs.
    """
    parts = re.split(r"^:(\w+):", content, flags=re.MULTILINE)
    advice = dict(zip(parts[1::2], parts[2::2], strict=True))
    for head in names.split():
        for name, code, status, meaning in _find_codes(getattr(exceptions, head)):
            role = f":exc:`~{exceptions.__name__}.{name}`"
            words = f"{meaning} {advice.pop(code, '')}".split()
            yield from (f"``{code}`` ({status}, {role})", f"    {' '.join(words)}", "")
    if advice:
        raise ValueError(f"no errors of {names}: {', '.join(advice)}")


def _find_codes(head: type[SMARTError]) -> Iterator[tuple[str, str, int, str]]:
    """Class, code, status and meaning, in the order of the module."""
    for name, each in vars(exceptions).items():
        if isinstance(each, type) and issubclass(each, head):
            summary = (inspect.getdoc(each) or "").partition("\n\n")[0]
            yield name, each.code, each.http_status, summary
            for code, (status, meaning) in each.__dict__.get("codes", {}).items():
                yield name, code, status, meaning


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_directive("errors", Errors)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
