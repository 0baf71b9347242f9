"""Get tokens by code, by refresh token, or by the client's own credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django_smart.exceptions import (
    MalformedTokenResponseError,
    TokenError,
    TransportError,
)
from django_smart.protocol.client_auth import ClientAuthentication
from django_smart.protocol.context import (
    LaunchContext,
    check_length,
    fill_in_context,
)
from django_smart.protocol.deviations import Deviation, name_type
from django_smart.protocol.id_token import read_unverified_claims
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.oauth import (
    build_form_request,
    get_scope,
    get_text,
    parse_token_body,
)
from django_smart.protocol.scopes import ScopeSet

__all__ = [
    "DEFAULT_LIFETIME",
    "TokenResponse",
    "build_client_credentials_request",
    "build_refresh_request",
    "build_token_request",
    "find_refresh_token",
    "process_refresh_response",
    "process_token_response",
]

#: Assumed lifetime of an access token if the server omits it: short, since a 401 causes
#: a refresh anyway.
DEFAULT_LIFETIME = timedelta(minutes=5)

_MAX_EXPIRES_IN = int(timedelta(days=3653).total_seconds())
# The name in Keycloak, and the one in Azure AD B2C, Google and GitHub.
_REFRESH_EXPIRES_IN = ("refresh_expires_in", "refresh_token_expires_in")
_ACCESS_ENDS_AT = "access_grant_expiration"
_TOKENS = ("access_token", "id_token", "refresh_token")
# It is sent in a header: no whitespace, no control characters.
_ACCESS_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenResponse:
    """
    Tokens, with the access that they give.

    Attributes:
        expires_at: aware datetime, by ``expires_in`` or the default lifetime.
        refresh_token: ``None`` if absent; servers may issue one without
            ``offline_access`` in *scopes* (REF-02).
        refresh_expires_at: when the refresh token expires, if the server says so.
        scopes: what was granted; may be less or more than requested.
        context: of the launch; of a refresh, what the response has, and the patient and
            encounter in any case.
        context_changed: a refresh named another or an invalid patient or encounter.
            Store the new tokens first, then end the launch.
        parameters: the response without its tokens.
        deviations: what differs from the specification, besides those of the context.
    """

    access_token: str = field(repr=False)
    expires_at: datetime
    refresh_token: str | None = field(repr=False)
    refresh_expires_at: datetime | None = None
    id_token: str | None = field(repr=False)
    scopes: ScopeSet = field(repr=False)
    context: LaunchContext = field(repr=False)
    context_changed: bool = False
    parameters: Mapping[str, Any] = field(repr=False)
    deviations: tuple[Deviation, ...] = ()


def build_token_request(
    *,
    token_endpoint: str,
    code: str,
    redirect_uri: str,
    code_verifier: str,
    client_authentication: ClientAuthentication,
) -> HTTPRequest:
    """
    Build the exchange of an authorization code, which must be sent only once.

    Args:
        redirect_uri: as in the authorization request.
        code_verifier: of the authorization request's ``code_challenge``.

    Raises:
        CredentialsError: the client's secret or key cannot be used.

    Spec: SMART App Launch 2.2, "Obtain access token", Request.
    """
    parameters = [
        ("code", code),
        ("grant_type", "authorization_code"),
        ("redirect_uri", redirect_uri),
        ("code_verifier", code_verifier),
    ]
    return build_form_request(
        token_endpoint, parameters, client_authentication=client_authentication
    )


def build_refresh_request(
    *,
    token_endpoint: str,
    refresh_token: str,
    client_authentication: ClientAuthentication,
    scope: str | None = None,
) -> HTTPRequest:
    """
    Build the exchange of a refresh token.

    Args:
        scope: usually ``None``, which requests the same scopes; never more than was
            granted originally (REF-05).

    Raises:
        CredentialsError: the client's secret or key cannot be used.

    Spec: SMART App Launch 2.2, "Refresh access token", Request.
    """
    parameters = [("grant_type", "refresh_token"), ("refresh_token", refresh_token)]
    if scope is not None:
        parameters.append(("scope", scope))
    return build_form_request(
        token_endpoint, parameters, client_authentication=client_authentication
    )


def build_client_credentials_request(
    *,
    token_endpoint: str,
    scope: str,
    client_authentication: ClientAuthentication,
) -> HTTPRequest:
    """
    Build a backend service's request for an access token.

    Args:
        scope: of the level ``system/``, as the registration was checked (BACK-04).
        client_authentication: ``PrivateKeyJWT`` (BACK-01), or a secret if the server
            does not accept keys.

    Raises:
        CredentialsError: the client's key or secret cannot be used.

    Spec: SMART App Launch 2.2, "Backend Services", Obtain access token.
    """
    return build_form_request(
        token_endpoint,
        [("grant_type", "client_credentials"), ("scope", scope)],
        client_authentication=client_authentication,
    )


def process_token_response(
    response: HTTPResponse,
    *,
    requested: ScopeSet,
    now: datetime,
    insecure_hosts: frozenset[str] = frozenset(),
) -> TokenResponse:
    """
    Turn the token endpoint's response into a ``TokenResponse``.

    Args:
        requested: requested scopes, which count as granted if ``scope`` is absent (RFC
            6749 section 5.1; SMART requires the member, but some servers omit it).
        now: aware datetime at receipt; ``expires_in`` (seconds) is counted from it.
        insecure_hosts: hosts for which http is accepted in ``smart_style_url``.

    Raises:
        TokenResponseError: the server answered with an OAuth error.
        TokenServerError: 429, 5xx, or 4xx without an OAuth error.
        TransportError: the response is a redirect (``redirect_refused``).
        MalformedTokenResponseError: not a JSON object, a member is missing or invalid,
            or the context is too long to store.

    Spec: SMART App Launch 2.2, "Obtain access token", Response; RFC 6749 section 5.
    """
    members = parse_token_body(response)
    context = LaunchContext.from_parameters(members, insecure_hosts=insecure_hosts)
    tokens = _build_token_response(members, asked=requested, now=now, context=context)
    return replace(tokens, deviations=tuple(_find_deviations(response, members)))


def process_refresh_response(
    response: HTTPResponse,
    *,
    granted: ScopeSet,
    now: datetime,
    previous_context: LaunchContext,
    context_in_access_token: bool = False,
    insecure_hosts: frozenset[str] = frozenset(),
) -> TokenResponse:
    """
    Turn the response to a refresh into a ``TokenResponse``.

    Scopes are never more than *granted*; a missing patient or encounter is that of
    *previous_context*. Another patient does not raise, because a rotated refresh token
    must be stored first: see ``context_changed``.

    Args:
        granted: what was granted at the code exchange; applies if ``scope`` is absent.
        context_in_access_token: whether the access token, a JWT, also has context.

    Raises:
        TokenError, TransportError: as :func:`process_token_response`.

    Spec: SMART App Launch 2.2, "Refresh access token", Response.
    """
    members = parse_token_body(response)
    if context_in_access_token:
        # Unverified, like the response itself: the refresh token must be stored before
        # keys are fetched, and another patient ends the grant whoever signed the token.
        claims = read_unverified_claims(members.get("access_token"))
        members = fill_in_context(members, claims)
    changed = False
    try:
        newer = LaunchContext.from_parameters(members, insecure_hosts=insecure_hosts)
    except MalformedTokenResponseError:
        # The first response was well-formed, so this is not the same patient either.
        newer, changed = LaunchContext(), True
    tokens = _build_token_response(
        members,
        asked=granted,
        now=now,
        context=replace(
            newer,
            patient=newer.patient or previous_context.patient,
            encounter=newer.encounter or previous_context.encounter,
        ),
    )
    return replace(
        tokens,
        scopes=tokens.scopes.limited_to(granted),
        context_changed=changed or previous_context.names_another(newer),
        deviations=tuple(_find_deviations(response, members)),
    )


def find_refresh_token(response: HTTPResponse) -> str | None:
    """
    Return the refresh token in a response that was refused.

    Call it if processing the response has raised an error.

    A server that rotates has revoked the old one, whatever else is wrong.

    Spec: RFC 6749 section 6.
    """
    try:
        return get_text(parse_token_body(response), "refresh_token")
    except (TokenError, TransportError):
        return None


def _build_token_response(
    members: dict[str, Any], *, asked: ScopeSet, now: datetime, context: LaunchContext
) -> TokenResponse:
    """Validate each member and combine them."""
    access_token = get_text(members, "access_token", _ACCESS_TOKEN)
    if access_token is None:
        raise MalformedTokenResponseError("access_token is missing.")
    token_type = members.get("token_type")
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise MalformedTokenResponseError("Expected token_type Bearer.")
    scope = get_scope(members)
    parameters = {name: value for name, value in members.items() if name not in _TOKENS}
    check_length(parameters)
    expires_in = _parse_expires_in(members.get("expires_in"))
    lifetime = DEFAULT_LIFETIME if expires_in is None else timedelta(seconds=expires_in)
    return TokenResponse(
        access_token=access_token,
        expires_at=now + lifetime,
        refresh_token=get_text(members, "refresh_token"),
        refresh_expires_at=_find_refresh_end(members, now),
        id_token=get_text(members, "id_token"),
        scopes=asked if scope in {None, str(asked)} else ScopeSet.parse(scope),
        context=context,
        parameters=parameters,
    )


def _find_deviations(
    response: HTTPResponse, members: Mapping[str, Any]
) -> Iterator[Deviation]:
    """Yield what is tolerated in a response that is read."""
    if response.media_type != "application/json":
        evidence = "another Content-Type" if response.media_type else "no Content-Type"
        yield Deviation(code="token_media_type", evidence=evidence)
    if "no-store" not in response.headers.get("cache-control", "").lower():
        yield Deviation(
            code="token_cacheable", evidence="Cache-Control without no-store"
        )
    scope = members.get("scope")
    if scope is None:
        yield Deviation(code="scope_absent")
    elif isinstance(scope, list):
        yield Deviation(code="scope_malformed", evidence="scope is a list")
    elif scope != " ".join(scope.split()):
        yield Deviation(code="scope_malformed", evidence="other white space")
    elif "offline_access" in scope.split() and not members.get("refresh_token"):
        yield Deviation(
            code="refresh_token_absent", evidence="offline_access was granted"
        )
    expires_in = members.get("expires_in")
    if expires_in is None:
        yield Deviation(code="lifetime_absent")
    elif not isinstance(expires_in, int):
        yield Deviation(
            code="lifetime_not_integer",
            evidence=f"expires_in is {name_type(expires_in)}",
        )


def _find_refresh_end(members: Mapping[str, Any], now: datetime) -> datetime | None:
    """
    Return when the refresh token expires.

    No specification defines these members, so an implausible value is ignored. Keycloak
    sends 0 for a token that does not expire. Blue Button sends the end of the access,
    such as ``2027-01-03 19:17:53Z``, beyond which no refresh token is issued.
    """
    for name in _REFRESH_EXPIRES_IN:
        try:
            seconds = _parse_expires_in(members.get(name))
        except MalformedTokenResponseError:
            continue
        if seconds:
            return now + timedelta(seconds=seconds)
    try:
        end = datetime.fromisoformat(str(members.get(_ACCESS_ENDS_AT)))
    except ValueError:
        return None
    if end.tzinfo is None or not now < end < now + timedelta(seconds=_MAX_EXPIRES_IN):
        return None
    return end


def _parse_expires_in(value: object) -> int | None:
    """Read seconds; servers send an integer, digits in a string, or ``3600.0``."""
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        # Bounded, because int() refuses thousands of digits.
        value = int(value[:20])
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedTokenResponseError("expires_in is not a whole number.")
    if not 0 <= value <= _MAX_EXPIRES_IN:
        raise MalformedTokenResponseError(
            f"expires_in is not between 0 and {_MAX_EXPIRES_IN} seconds."
        )
    return value
