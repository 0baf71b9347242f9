"""Columns that ``smart_register --set`` reaches, and their values as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from django.db import models

from ..models import ClientRegistration, FHIRServer

__all__ = ["ColumnError", "Columns", "get_column_names", "parse_columns"]

if TYPE_CHECKING:
    _Field = models.Field[Any, Any]

# They say which row it is, or are fetched from the server.
_NOT_SETTABLE = {
    "base_url",
    "client_id",
    "configuration",
    "configuration_fetched_at",
    "issuer",
    "jwks",
    "jwks_fetched_at",
    "jwks_uri",
}
_MAX_SECONDS = 100 * 366 * 24 * 3600
_TRUE = {"1", "on", "true", "yes"}
_FALSE = {"0", "false", "no", "off"}


class ColumnError(ValueError):
    """No such column, or a value it cannot hold; the message is for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Typed values by name, for each of the two tables."""

    server: dict[str, Any] = field(repr=False)
    registration: dict[str, Any] = field(repr=False)


def get_column_names() -> list[str]:
    """
    What can be set, sorted.

    A name that both tables have means the registration's; ``server.`` in front of it
    means the server's.
    """
    return sorted(_get_fields())


def parse_columns(values: Mapping[str, Any]) -> Columns:
    """
    Turn text, or values as JSON has them, into what the columns hold.

    Durations are seconds; booleans are true or false; what JSON columns hold is JSON.
    An empty text, or null, empties a column that may be empty.

    Raises:
        ColumnError: unknown name, or a value of another type.
    """
    fields = _get_fields()
    result = Columns(server={}, registration={})
    for name, value in values.items():
        if name not in fields:
            near = get_close_matches(name, fields, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ColumnError(
                f"There is no column {name}.{hint} "
                f"What can be set: {', '.join(get_column_names())}."
            )
        model, field = fields[name]
        target = result.server if model is FHIRServer else result.registration
        try:
            target[field.name] = _parse(field, value)
        except (TypeError, ValueError, RecursionError):
            # The value is not quoted: it may be a secret that went astray.
            raise ColumnError(f"{name} takes {_describe(field)}.") from None
    return result


def _get_fields() -> dict[str, tuple[type[models.Model], _Field]]:
    fields: dict[str, tuple[type[models.Model], _Field]] = {}
    for model in (ClientRegistration, FHIRServer):
        for column in model._meta.concrete_fields:
            settable = (
                column.editable
                and not column.primary_key
                and not column.is_relation
                and column.name not in _NOT_SETTABLE
            )
            if settable:
                name = (
                    column.name
                    if column.name not in fields
                    else f"server.{column.name}"
                )
                fields[name] = (model, column)
    return fields


def _describe(field: _Field) -> str:
    if isinstance(field, models.BooleanField):
        return "true or false"
    if isinstance(field, models.IntegerField):
        return "a whole number"
    if isinstance(field, models.DurationField):
        return "a number of seconds"
    if isinstance(field, models.JSONField):
        kind = "object" if isinstance(field.get_default(), dict) else "list"
        return f"a JSON {kind}"
    return "text"


def _parse(field: _Field, value: Any) -> Any:
    if field.null and (value is None or value == ""):
        return None
    if isinstance(field, models.BooleanField):
        return _parse_boolean(value)
    if isinstance(field, models.IntegerField):
        return _parse_integer(value)
    if isinstance(field, models.DurationField):
        return timedelta(seconds=_parse_seconds(value))
    if isinstance(field, models.JSONField):
        return _parse_json(value, type(field.get_default()))
    return _require(value, str)


def _parse_json(value: Any, kind: type) -> Any:
    parsed = json.loads(value) if isinstance(value, str) else value
    # An empty value of another kind would pass the validators of the column.
    return _require(parsed, kind)


def _parse_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError


def _parse_integer(value: Any) -> int:
    return int(_require(value, int, str))


def _require(value: Any, *types: type) -> Any:
    # True is an int to Python, and to nobody else.
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError
    return value


def _parse_seconds(value: Any) -> float:
    seconds = float(_require(value, int, float, str))
    # Written so that NaN is refused; the limit is that of the databases' intervals.
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError
    return seconds
