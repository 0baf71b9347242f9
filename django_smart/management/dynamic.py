"""``smart_register --dynamic``: its options, and what is to be said of the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..servers.registering import DynamicRegistration, register_dynamically
from .entries import ENTRY_NAMES, EntryError, build_input, parse_settings

__all__ = ["OPTIONS", "describe_outcome", "register_by_options"]

#: Options that mean nothing without ``--dynamic``.
OPTIONS = ("client_name", "initial_access_token_env")
# What the server makes, or what is for many registrations at once.
_REFUSED = ("client_id", "client_secret", "file", "secret_env")


def register_by_options(
    options: Mapping[str, Any], *, environ: Mapping[str, str]
) -> DynamicRegistration:
    """
    Register as the *options* of the command say.

    Raises:
        EntryError: they do not go together, or one is missing.
        ValidationError, ImproperlyConfigured, SMARTError: as
            :func:`~django_smart.servers.registering.register_dynamically`.
    """
    given = [name for name in _REFUSED if options[name] is not None]
    if given:
        option = "--from" if given[0] == "file" else "--" + given[0].replace("_", "-")
        raise EntryError(
            f"{option} does not go with --dynamic: the server makes client id and "
            "secret, one at a time."
        )
    if not options["base_url"]:
        raise EntryError("Give --base-url.")
    entry = {name: options[name] for name in ENTRY_NAMES}
    data = build_input(
        {**entry, "set": parse_settings(options["set"])}, is_dynamic=True
    )
    return register_dynamically(
        data,
        client_name=options["client_name"] or "",
        initial_access_token=_read_token(options["initial_access_token_env"], environ),
    )


def describe_outcome(outcome: DynamicRegistration) -> Iterator[str]:
    """Remarks on what the server made otherwise than asked."""
    if outcome.missing:
        yield f"the server did not register the scopes {outcome.missing}."
    if outcome.secret_expires_at is not None:
        yield (
            f"the client secret ends on {outcome.secret_expires_at:%Y-%m-%d}; register "
            "anew before that day."
        )


def _read_token(variable: str | None, environ: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    token = environ.get(variable, "").strip()
    if not token:
        raise EntryError(f"The environment variable {variable} is not set.")
    return token
