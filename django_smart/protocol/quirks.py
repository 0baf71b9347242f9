"""
How servers deviate from SMART App Launch, and what shows that they do.

Each deviation is one field, which is off by default. The form in the admin, ``--set``,
the table in the documentation and the simulator's quirks follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

__all__ = ["QUIRKS", "Quirk", "QuirkError", "Quirks", "is_header"]

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LONGEST = timedelta(days=100 * 366)


class QuirkError(ValueError):
    """
    A value that cannot be used; the message does not quote it.

    Attributes:
        name: of the quirk.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def _quirk(
    default: Any = False,
    *,
    witness: str,
    simulated: str = "",
    is_operational: bool = False,
) -> Any:
    about = {
        "witness": witness,
        "simulated": simulated,
        "is_operational": is_operational,
    }
    if default == {}:
        return field(default_factory=dict, metadata=about)
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quirks:
    """
    The deviations of one server; without arguments, those of one that has none.

    Attributes:
        unknown: what another version of this package has stored. It is kept.
    """

    aud_rule: Literal["as_received", "base_url"] = _quirk(
        "as_received",
        witness="github.com/microsoft/fhir-server, issue 271: the audience ends in a "
        "slash (2018-12-10)",
        simulated="aud_slash",
    )
    discovery_headers: Mapping[str, str] = _quirk(
        {},
        witness="fhir.epic.com, OAuth 2.0 Specification, “Additional Header "
        "Requirements”: endpoints can differ by client ID (2026-12-01)",
    )
    scope_syntax: Literal["v2", "v1"] = _quirk(
        "v2",
        witness="cloud.google.com/healthcare-api, “SMART on FHIR”, and AWS HealthLake, "
        "SMART_ON_FHIR_V1 (2026-11-27)",
    )
    nonce_required: bool = _quirk(
        default=True,
        witness="github.com/smart-on-fhir/smart-launcher, issue 18: the nonce is not "
        "in the ID token (2019-08-02)",
    )
    context_in_access_token: bool = _quirk(
        witness="github.com/onc-healthit/onc-certification-g10-test-kit, issue 317: "
        "Auth0 has the patient in the access token alone (2022-10-25)",
        simulated="context_in_access_token",
    )
    patient_from_fhir_user: bool = _quirk(
        witness="github.com/aks129/HealthClawGuardrails, pull request 21: MEDENT names "
        "the patient in fhirUser alone (2026-06-12)",
        simulated="patient_in_fhir_user",
    )
    basic_credentials: Literal["raw", "form_encoded"] = _quirk(
        "raw",
        witness="fhir.epic.com, OAuth 2.0 Specification, “Client Secret "
        "Authentication”: the secret is URL-encoded first (2026-12-01)",
        simulated="basic_form_encoded",
    )
    assertion_audience: Literal["endpoint", "token_endpoint"] = _quirk(
        "endpoint",
        witness="github.com/keycloak/keycloak, JWTClientValidator: the revocation "
        "endpoint is not among the expected audiences (2026-12-01)",
        simulated="assertion_token_endpoint",
    )
    client_id_with_assertion: bool = _quirk(
        witness="github.com/spring-projects/spring-authorization-server, "
        "JwtClientAssertionAuthenticationConverter: “REQUIRED by this implementation” "
        "(2026-12-01)",
        simulated="assertion_client_id",
    )
    send_scope_on_refresh: bool = _quirk(
        witness="learn.microsoft.com, question 192699: Microsoft Entra refuses a "
        "refresh without scope (2020-12-09)",
    )
    introspection_mode: Literal["auto", "client"] = _quirk(
        "auto",
        witness="docs.athenahealth.com, “Additional OAuth Endpoints” (2026-12-01), and "
        "fhir.eclinicalworks.com, “Token introspection” (2026-11-27)",
    )
    rp_initiated_logout: bool = _quirk(
        witness="oidc-provider (npm) has an end_session_endpoint; recorded in "
        "tests/outside/node/openid_provider.mjs (2026)",
    )
    bearer_boundary: Literal["base", "origin"] = _quirk(
        "base",
        witness="github.com/smart-on-fhir/smart-launcher-v2, backend/routes/fhir/"
        "proxy.ts: links omit a part of the base URL (2026-12-01)",
    )
    authorize_in_frame: bool = _quirk(
        default=True,
        witness="docs.jans.io, “X-Frame-Options Header”: SAMEORIGIN by default "
        "(2026-12-01)",
    )
    refresh_token_lifetime: timedelta | None = _quirk(  # noqa: RUF009 (a field)
        default=None,
        witness="medplum.com, “Access Token Management”: two weeks (2026-12-01)",
        is_operational=True,
    )
    rate_limit: float | None = _quirk(
        default=None,
        witness="docs.athenahealth.com, “Authentication and URL Locations”: 50 new "
        "tokens per minute (2026-12-01)",
        is_operational=True,
    )
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Quirks:
        """Return *stored* quirks; those that this version cannot use are kept."""
        values, unknown = {}, {}
        for name, value in stored.items():
            try:
                values[name] = _parse(name, value)
            except QuirkError:
                unknown[name] = value
        return cls(**values, unknown=unknown)

    def replace(self, values: Mapping[str, Any]) -> Quirks:
        """
        Return these quirks with other *values*, as in JSON; ``None`` for the default.

        Raises:
            QuirkError: an unknown name, or a value of another type.
        """
        stored = {**self.as_json(), **values}
        for name, value in values.items():
            _find(name)
            if value is None:
                stored.pop(name, None)
            else:
                _parse(name, value)
        return Quirks.read(stored)

    def as_json(self) -> dict[str, Any]:
        """Return what differs from the defaults, and what is kept, for JSON."""
        values: dict[str, Any] = dict(self.unknown)
        for name, quirk in QUIRKS.items():
            value = getattr(self, name)
            if value != quirk.default:
                is_time = isinstance(value, timedelta)
                values[name] = value.total_seconds() if is_time else value
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Quirk:
    """
    What is declared above.

    Attributes:
        choices: its values, if they have names.
        type: of its values: ``str``, ``bool``, ``float``, ``timedelta`` or ``dict``.
        is_operational: whether it decides nothing about trust.
        witness: the document or response that shows a server with it, with its date.
        simulated: the name of the simulator's quirk.
    """

    name: str
    default: Any
    type: type
    choices: tuple[str, ...]
    is_operational: bool
    witness: str
    simulated: str


def _declare() -> dict[str, Quirk]:
    declared = {}
    hints = get_type_hints(Quirks)
    for each in fields(Quirks):
        if not each.metadata:
            continue
        arguments = get_args(hints[each.name])
        choices = tuple(value for value in arguments if isinstance(value, str))
        default: Any = {} if each.name == "discovery_headers" else each.default
        kind = type(default) if default is not None else arguments[0]
        declared[each.name] = Quirk(
            name=each.name, default=default, type=kind, choices=choices, **each.metadata
        )
    return declared


QUIRKS: Mapping[str, Quirk] = MappingProxyType(_declare())
"""Every quirk, by name."""


def _find(name: str) -> Quirk:
    if quirk := QUIRKS.get(name):
        return quirk
    near = get_close_matches(name, QUIRKS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise QuirkError(name, f"There is no quirk {name}.{hint}")


def _parse(name: str, value: Any) -> Any:
    """Return the value of the quirk *name* that JSON has as *value*."""
    quirk = _find(name)
    if quirk.choices:
        return _require(
            name, value in quirk.choices, value, _name_choices(quirk, value)
        )
    if quirk.type is bool:
        return _require(name, isinstance(value, bool), value, "true or false")
    if quirk.type is dict:
        is_right = isinstance(value, Mapping) and all(map(is_header, value.items()))
        what = "a JSON object of header names and printable ASCII strings"
        return _require(name, is_right, value, what)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_time = quirk.type is timedelta
    # Written so that NaN is refused.
    is_right = is_number and 0.001 <= value <= _LONGEST.total_seconds()
    _require(name, is_right, value, f"a number{' of seconds' * is_time} above 0")
    return timedelta(seconds=value) if is_time else float(value)


def _require(name: str, is_right: bool, value: Any, what: str) -> Any:
    if not is_right:
        raise QuirkError(name, f"{name} must be {what}.")
    return value


def _name_choices(quirk: Quirk, value: Any) -> str:
    near = get_close_matches(value, quirk.choices, n=1) if type(value) is str else ()
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"one of {', '.join(quirk.choices)}{hint}"


def is_header(pair: tuple[Any, Any]) -> bool:
    """Return whether name and value can be sent as a header."""
    name, value = pair
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and bool(_HEADER_NAME.fullmatch(name))
        and value.isascii()
        and value.isprintable()
    )
