"""Registrations on the command line and in files: columns as options and members."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from django.db import models

from ..fields import EncryptedTextField
from ..models import ClientRegistration, FHIRServer
from ..servers.registering import RegistrationInput

__all__ = [
    "ENTRY_NAMES",
    "EntryError",
    "build_input",
    "get_column_names",
    "get_option",
    "parse_file",
    "parse_settings",
]


if TYPE_CHECKING:
    _Field = models.Field[Any, Any]

# Typed values by name, for each of the two tables.
_Columns = dict[type[models.Model], dict[str, Any]]

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


class EntryError(Exception):
    """An entry that cannot be understood; the message is for people, without values."""


def get_column_names() -> list[str]:
    """
    What can be set, sorted.

    A name that both tables have means the registration's; ``server.`` in front of it
    means the server's.
    """
    return sorted(_get_fields())


def _parse_columns(values: Mapping[str, Any]) -> _Columns:
    """
    Turn text, or values as JSON has them, into what the columns of each table hold.

    Durations are seconds; booleans are true or false; what JSON columns hold is JSON.
    An empty text, or null, empties a column that may be null.

    Raises:
        EntryError: unknown name, or a value of another type.
    """
    fields = _get_fields()
    columns: _Columns = {ClientRegistration: {}, FHIRServer: {}}
    for name, value in values.items():
        if name not in fields:
            near = get_close_matches(name, fields, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise EntryError(
                f"There is no field {name}.{hint} Fields that can be set: "
                f"{', '.join(get_column_names())}."
            )
        model, field = fields[name]
        try:
            columns[model][field.name] = _parse(field, value)
        except (OverflowError, TypeError, ValueError, RecursionError):
            # The value is not quoted: it may be a secret that went astray.
            raise EntryError(f"{name} must be {_describe(field)}.") from None
    return columns


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
                prefix = "server." if column.name in fields else ""
                fields[prefix + column.name] = (model, column)
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
        return int(_require(value, int, str))
    if isinstance(field, models.DurationField):
        return timedelta(seconds=_parse_seconds(value))
    if isinstance(field, models.JSONField):
        parsed = json.loads(value) if isinstance(value, str) else value
        # An empty value of another kind would pass the validators of the column.
        return _require(parsed, type(field.get_default()))
    if isinstance(field, EncryptedTextField) and isinstance(value, Mapping):
        # Headers, in a file.
        return json.dumps(value)
    return _require(value, str)


def _parse_boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else ""
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError


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


# Option, as a file names it, and the column it sets.
_SERVER_OPTIONS = {"embed": "allow_embedding", "frame_origin": "frame_origins"}
_REGISTRATION_OPTIONS = {
    "auth_method": "token_endpoint_auth_method",
    "client_secret": "client_secret",
    "ehr_scope": "ehr_scope",
    "secret_env": "client_secret_env",
    "standalone_scope": "standalone_scope",
    "system_scope": "system_scope",
}
_OWN = {"base_url", "client_id", "name", "preset", "site_url", "slug"}

#: What an entry may have, beside ``set``: the options' names, with underscores.
ENTRY_NAMES = tuple(sorted(_OWN | {*_SERVER_OPTIONS, *_REGISTRATION_OPTIONS}))


def get_option(column: str) -> str:
    """What *column* is called on the command line, for messages."""
    for name, target in (*_SERVER_OPTIONS.items(), *_REGISTRATION_OPTIONS.items()):
        if target == column:
            return _as_option(name)
    return _as_option(column) if column in _OWN else f"--set {column}"


def parse_settings(pairs: list[str]) -> dict[str, str]:
    """
    Read ``FIELD=VALUE`` pairs; the last of a name wins.

    Raises:
        EntryError: one has no ``=``.
    """
    result: dict[str, str] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise EntryError("--set requires FIELD=VALUE.")
        result[name.strip()] = value
    return result


def parse_file(text: str) -> list[dict[str, Any]]:
    """
    Read a JSON list of entries.

    Raises:
        EntryError: not JSON, or not a list of objects.
    """
    try:
        entries = json.loads(text, object_pairs_hook=_build_object)
    except json.JSONDecodeError as exc:
        # The exception holds the text, secrets and all: it is not chained.
        raise EntryError(
            f"The file is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}."
        ) from None
    except (ValueError, RecursionError):
        raise EntryError("The file is not valid JSON.") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise EntryError("The file is not a JSON list of objects.")
    return entries


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise EntryError("The file is ambiguous: an object has a duplicate key.")
    return result


def build_input(
    entry: Mapping[str, Any], *, site_url: str = "", is_dynamic: bool = False
) -> RegistrationInput:
    """
    Make one entry the input of the flow; ``null`` and absent are the same.

    Args:
        site_url: for an entry that names none.
        is_dynamic: whether the client id is still to be made.

    Raises:
        EntryError: a name is unknown or missing, or a value has another type.
    """
    given = {name: value for name, value in entry.items() if value is not None}
    unknown = sorted(given.keys() - {*ENTRY_NAMES, "set"})
    if unknown:
        raise EntryError(
            f"Unknown: {', '.join(unknown)}. Valid keys: {', '.join(ENTRY_NAMES)}, set."
        )
    for name in ("base_url",) if is_dynamic else ("base_url", "client_id"):
        if not given.get(name):
            raise EntryError(f"{name} is missing.")
    settings = given.pop("set", {})
    if not isinstance(settings, Mapping):
        raise EntryError("set is not an object.")
    if isinstance(given.get("frame_origin"), str):
        given["frame_origin"] = [given["frame_origin"]]
    _require_types(given)
    columns = _parse_columns(settings)
    parsed = (pair for values in columns.values() for pair in values.items())
    for name, value in (*given.items(), *parsed):
        if not _is_storable(value):
            raise EntryError(f"{name} contains characters that cannot be stored.")
    own = {name: given[name] for name in _OWN & given.keys()}
    return RegistrationInput(
        **{"site_url": site_url, "client_id": "", **own},
        server_values=_pick(given, _SERVER_OPTIONS) | columns[FHIRServer],
        registration_values=(
            _pick(given, _REGISTRATION_OPTIONS) | columns[ClientRegistration]
        ),
    )


def _require_types(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name == "embed":
            fits, expected = isinstance(value, bool), "true or false"
        elif name == "frame_origin":
            fits = isinstance(value, list) and all(isinstance(v, str) for v in value)
            expected = "text or a list of strings"
        else:
            fits, expected = isinstance(value, str), "text"
        if not fits:
            raise EntryError(f"{name} must be {expected}.")


def _is_storable(value: Any) -> bool:
    """Whether every database takes it: no NUL, no half of a surrogate pair."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, str) and re.search("[\0\ud800-\udfff]", each):
            return False
    return True


def _as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _pick(given: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    return {
        column: given[option] for option, column in options.items() if option in given
    }
