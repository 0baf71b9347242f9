"""Sphinx directive ``model``: the columns of one of the package's models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from django.apps import apps
from django.db import models
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

__all__ = ["setup"]


class Model(SphinxDirective):
    """``.. model:: Launch`` writes what the class says of itself, and its columns."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        model = apps.get_model("django_smart", self.arguments[0])
        return self.parse_text_to_nodes("\n".join(_describe(model)))


def _describe(model: type[models.Model]) -> Iterator[str]:
    yield from (inspect.getdoc(model) or "").splitlines()
    yield ""
    yield f"Table: ``{model._meta.db_table}``"
    yield ""
    for field in model._meta.concrete_fields:
        if field.name != "id":
            yield from (f"``{field.name}``", f"    {_explain(field)}", "")


def _explain(field: models.Field) -> str:
    name = str(field.verbose_name)
    words = [f"{name[:1].upper()}{name[1:]}."]
    if field.is_relation:
        words.append(f"A ``{field.related_model.__name__}``.")
    if field.choices:
        values = (f"``{value}`` ({label})" for value, label in field.choices if value)
        words.append(f"One of {', '.join(values)}.")
    if _has_telling_default(field):
        words.append(f"By default ``{field.default!s}``.")
    if field.help_text:
        words.append(f"{field.help_text}")
    return " ".join(words)


def _has_telling_default(field: models.Field) -> bool:
    return (
        field.has_default()
        and not callable(field.default)
        and field.default not in ("", None)
    )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by Sphinx."""
    app.add_directive("model", Model)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
