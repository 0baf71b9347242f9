"""Sphinx directive ``model``: the columns of one of the package's models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from django.apps import apps
from django.db import models
from docutils import nodes
from requirement_ids import leave_out_ids
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from django_smart.fields import DigestField

__all__ = ["setup"]


class Model(SphinxDirective):
    """
    ``.. model:: Launch`` writes the docstring of the class, and its columns.

    A model of another app has its label: ``.. model:: django_smart_brands.Brand``.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        app, _, name = self.arguments[0].rpartition(".")
        model = apps.get_model(app or "django_smart", name)
        return self.parse_text_to_nodes("\n".join(_describe(model)))


def _describe(model: type[models.Model]) -> Iterator[str]:
    yield from leave_out_ids(inspect.getdoc(model) or "").splitlines()
    yield ""
    yield f"Table: ``{model._meta.db_table}``"
    yield ""
    # Digests and dates of the row come last: nobody looks for them first.
    for field in sorted(model._meta.concrete_fields, key=_is_bookkeeping):
        if field.name != "id":
            yield from (f"``{field.name}``", f"    {_explain(field)}", "")


def _is_bookkeeping(field: models.Field) -> bool:
    return isinstance(field, DigestField) or field.name in {"created_at", "updated_at"}


def _explain(field: models.Field) -> str:
    words = [_describe_purpose(field)]
    if field.is_relation:
        words.append(f"A ``{field.related_model.__name__}``.")
    if field.choices:
        values = (f"``{value}`` ({label})" for value, label in field.choices if value)
        words.append(f"One of {', '.join(values)}.")
    if _has_telling_default(field):
        words.append(f"By default ``{field.default!s}``.")
    return " ".join(words)


def _describe_purpose(field: models.Field) -> str:
    if field.help_text:
        # Texts may look like markup: /~<key>/, callback/<callback ID>/.
        return str(field.help_text).replace("*", r"\*").replace("_", r"\_")
    if isinstance(field, DigestField):
        names = " and ".join(f"``{each.strip('_')}``" for each in field.sources)
        return f"SHA-256 of {names}, for exact lookups and uniqueness."
    if getattr(field, "auto_now_add", False):
        return "When the row was created."
    if getattr(field, "auto_now", False):
        return "When the row was last saved."
    return f"{str(field.verbose_name).capitalize()}."


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
