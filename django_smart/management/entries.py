"""Entries of ``smart_register``: from options, or from a file of the same names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..servers.registering import RegistrationInput
from .columns import ColumnError, parse_columns

__all__ = [
    "ENTRY_NAMES",
    "EntryError",
    "build_input",
    "get_option",
    "parse_file",
    "parse_settings",
]

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


class EntryError(ValueError):
    """An entry that cannot be understood; the message is for people, without values."""


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
            raise EntryError("--set takes FIELD=VALUE.")
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
    except EntryError:
        raise
    except (ValueError, RecursionError):
        raise EntryError("The file is not JSON that can be read.") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise EntryError("The file is not a JSON list of objects.")
    return entries


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise EntryError("The file is not clear: an object has a name twice.")
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
            f"Unknown: {', '.join(unknown)}. What an entry may have: "
            f"{', '.join(ENTRY_NAMES)}, set."
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
    for name, value in settings.items():
        if isinstance(value, str) and not _is_storable(value):
            raise EntryError(f"{name} has characters that cannot be stored.")
    try:
        columns = parse_columns(settings)
    except ColumnError as exc:
        raise EntryError(str(exc)) from exc
    own = {name: given[name] for name in _OWN & given.keys()}
    return RegistrationInput(
        **{"site_url": site_url, "client_id": "", **own},
        server_values=_pick(given, _SERVER_OPTIONS) | columns.server,
        registration_values=_pick(given, _REGISTRATION_OPTIONS) | columns.registration,
    )


def _require_types(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name == "embed":
            fits, expected = isinstance(value, bool), "true or false"
        elif name == "frame_origin":
            fits = isinstance(value, list) and all(isinstance(v, str) for v in value)
            expected = "text or a list of texts"
        else:
            fits, expected = isinstance(value, str), "text"
        if not fits:
            raise EntryError(f"{name} is not {expected}.")
        if isinstance(value, str) and not _is_storable(value):
            raise EntryError(f"{name} has characters that cannot be stored.")


def _is_storable(text: str) -> bool:
    """Whether every database takes it: no NUL, no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _as_option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _pick(given: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, Any]:
    return {
        column: given[option] for option, column in options.items() if option in given
    }
