"""Getting tokens: by code, by refresh token, by the client's own credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django_smart.exceptions import (
    InsufficientScopeError,
    MalformedTokenResponseError,
    RedirectRefusedError,
    ScopeSyntaxError,
    TokenError,
)
from django_smart.protocol.authorization_details import (
    AuthorizationDetail,
    parse_authorization_details,
)
from django_smart.protocol.client_auth import ClientAuthentication, PrivateKeyJWT
from django_smart.protocol.context import LaunchContext, check_length
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.token_endpoint import build_form_request, parse_token_body
from django_smart.protocol.token_management import (
    build_introspection_request,
    build_revocation_request,
    process_introspection_response,
    process_revocation_response,
)

__all__ = [
    "DEFAULT_LIFETIME",
    "TokenResponse",
    "build_client_credentials_request",
    "build_introspection_request",
    "build_refresh_request",
    "build_revocation_request",
    "build_token_request",
    "find_refresh_token",
    "process_introspection_response",
    "process_refresh_response",
    "process_revocation_response",
    "process_token_response",
]

#: What an access token is taken to live if the server does not say: short, as a 401
#: leads to a refresh anyway.
DEFAULT_LIFETIME = timedelta(minutes=5)

_MAX_EXPIRES_IN = int(timedelta(days=3653).total_seconds())
_TOKENS = ("access_token", "id_token", "refresh_token")
# It travels in a header: no white space, no control characters.
_ACCESS_TOKEN = re.compile(r"[!-~]+")
# RFC 6749 appendix A.17.
_VISIBLE = re.compile(r"[ -~]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenResponse:
    """
    Tokens, with what they are good for.

    Attributes:
        expires_in: seconds as sent, ``None`` if absent.
        expires_at: aware datetime, by *expires_in* or the default lifetime.
        refresh_token: ``None`` if absent; one may come though ``offline_access`` is not
            among *scopes* (REF-02).
        scopes: what was granted; may be smaller or larger than what was asked.
        scope_was_absent: the server left ``scope`` out, so *scopes* is what was asked.
        context: of the launch; after a refresh, brought up to date.
        context_changed: a refresh named another patient or encounter, or an unreadable
            one.  Store the new tokens first, then end the launch.
        authorization_details: further FHIR endpoints the token is good for.
        parameters: the answer less its tokens.
    """

    access_token: str = field(repr=False)
    token_type: str
    expires_in: int | None
    expires_at: datetime
    refresh_token: str | None = field(repr=False)
    id_token: str | None = field(repr=False)
    scopes: ScopeSet = field(repr=False)
    scope_was_absent: bool
    context: LaunchContext = field(repr=False)
    context_changed: bool = False
    authorization_details: tuple[AuthorizationDetail, ...] = field(repr=False)
    parameters: Mapping[str, Any] = field(repr=False)


def build_token_request(
    *,
    token_endpoint: str,
    code: str,
    redirect_uri: str,
    code_verifier: str | None,
    client_authentication: ClientAuthentication,
) -> HTTPRequest:
    """
    Build the exchange of an authorization code, which is sent once and never again.

    Args:
        redirect_uri: the one of the authorization request.
        code_verifier: ``None`` only where the request had no ``code_challenge``.

    Raises:
        CredentialsError: the client's secret or key cannot be used.

    Spec: SMART App Launch 2.2, "Obtain access token", Request.
    """
    parameters = [
        ("code", code),
        ("grant_type", "authorization_code"),
        ("redirect_uri", redirect_uri),
    ]
    if code_verifier is not None:
        parameters.append(("code_verifier", code_verifier))
    return build_form_request(
        token_endpoint, parameters, client_authentication=client_authentication
    )


def build_refresh_request(
    *,
    token_endpoint: str,
    refresh_token: str,
    client_authentication: ClientAuthentication,
    scope: str | None = None,
    granted: ScopeSet | None = None,
) -> HTTPRequest:
    """
    Build the exchange of a refresh token.

    Args:
        scope: left out (``None``) when the same scopes are wanted, which is the rule.
        granted: what was granted first; *scope* is compared with it.

    Raises:
        CredentialsError: the client's secret or key cannot be used.
        InsufficientScopeError: *scope* asks for more than *granted* (REF-05).

    Spec: SMART App Launch 2.2, "Refresh access token", Request.
    """
    parameters = [("grant_type", "refresh_token"), ("refresh_token", refresh_token)]
    if scope is not None:
        missing = ScopeSet() if granted is None else granted.missing(scope)
        if missing:
            raise InsufficientScopeError(
                f"A refresh cannot ask for what was not granted: {missing}",
                missing=str(missing),
            )
        parameters.append(("scope", scope))
    return build_form_request(
        token_endpoint, parameters, client_authentication=client_authentication
    )


def build_client_credentials_request(
    *,
    token_endpoint: str,
    scope: str,
    client_authentication: PrivateKeyJWT,
    allow_other_levels: bool = False,
) -> HTTPRequest:
    """
    Build a backend service's request for an access token.

    Args:
        client_authentication: backend services have no other method (BACK-01).
        allow_other_levels: ``patient/`` and ``user/`` are agreed with the server.

    Raises:
        CredentialsError: the client's key cannot be used.
        ScopeSyntaxError: *scope* is empty, or of another level than ``system/``.

    Spec: SMART App Launch 2.2, "Backend Services", Obtain access token.
    """
    scopes = ScopeSet.parse(scope)
    if not scopes:
        raise ScopeSyntaxError("A backend service has to ask for at least one scope.")
    for item in scopes.resource_scopes:
        if item.level != "system" and not allow_other_levels:
            raise ScopeSyntaxError(
                f"Expected a system/ scope for a backend service, got {item.text!r}.",
                scope=item.text,
            )
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
    default_lifetime: timedelta = DEFAULT_LIFETIME,
    insecure_hosts: frozenset[str] = frozenset(),
) -> TokenResponse:
    """
    Turn the token endpoint's answer into a ``TokenResponse``.

    Args:
        response: as received.
        requested: what was asked for; it counts as granted if ``scope`` is absent (RFC
            6749 section 5.1; SMART has the member required, some servers do not).
        now: aware datetime at receipt; ``expires_in`` (seconds) is counted from it.
        default_lifetime: for an answer without ``expires_in``.
        insecure_hosts: hosts for which http will do, in ``smart_style_url``.

    Raises:
        TokenResponseError: the server answered with an OAuth error.
        TokenServerError: 429, 5xx, or 4xx without an OAuth error.
        RedirectRefusedError: the answer is a redirect.
        MalformedTokenResponseError: not a JSON object, a member is missing or wrong, or
            there is more beside the tokens than can be kept.

    Spec: SMART App Launch 2.2, "Obtain access token", Response; RFC 6749 section 5.
    """
    members = parse_token_body(response)
    context = LaunchContext.from_parameters(members, insecure_hosts=insecure_hosts)
    return _build_token_response(
        members,
        asked=requested,
        now=now,
        default_lifetime=default_lifetime,
        context=context,
        insecure_hosts=insecure_hosts,
    )


def process_refresh_response(
    response: HTTPResponse,
    *,
    granted: ScopeSet,
    now: datetime,
    previous_context: LaunchContext,
    default_lifetime: timedelta = DEFAULT_LIFETIME,
    insecure_hosts: frozenset[str] = frozenset(),
) -> TokenResponse:
    """
    Turn the answer to a refresh into a ``TokenResponse``.

    Scopes are never more than *granted*; a context that is absent or incomplete is
    filled from *previous_context*.  Another patient does not raise, since a rotated
    refresh token has to be stored first: see ``context_changed``.

    Args:
        granted: what was granted at the code exchange; stands if ``scope`` is absent.

    Raises:
        TokenError, RedirectRefusedError: as :func:`process_token_response`.

    Spec: SMART App Launch 2.2, "Refresh access token", Response.
    """
    members = parse_token_body(response)
    changed = False
    try:
        newer = LaunchContext.from_parameters(members, insecure_hosts=insecure_hosts)
    except MalformedTokenResponseError:
        # The first answer was well-formed, so this is not the same patient either.
        newer, changed = LaunchContext(), True
    tokens = _build_token_response(
        members,
        asked=granted,
        now=now,
        default_lifetime=default_lifetime,
        context=previous_context.updated_by(newer),
        insecure_hosts=insecure_hosts,
    )
    return replace(
        tokens,
        scopes=tokens.scopes.limited_to(granted),
        context_changed=changed or previous_context.names_another(newer),
    )


def find_refresh_token(response: HTTPResponse) -> str | None:
    """
    The refresh token in an answer that :func:`process_refresh_response` refused.

    A server that rotates has taken the old one back, whatever else is wrong.

    Spec: RFC 6749 section 6.
    """
    try:
        return _get_text(parse_token_body(response), "refresh_token", _VISIBLE)
    except (TokenError, RedirectRefusedError):
        return None


def _build_token_response(
    members: dict[str, Any],
    *,
    asked: ScopeSet,
    now: datetime,
    default_lifetime: timedelta,
    context: LaunchContext,
    insecure_hosts: frozenset[str],
) -> TokenResponse:
    """Check each member and put them together."""
    access_token = _get_text(members, "access_token", _ACCESS_TOKEN)
    if access_token is None:
        raise MalformedTokenResponseError("access_token is missing.")
    token_type = members.get("token_type")
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise MalformedTokenResponseError("Expected token_type Bearer.")
    scope = members.get("scope")
    if not isinstance(scope, str | None):
        raise MalformedTokenResponseError("scope is not a string.")
    parameters = {name: value for name, value in members.items() if name not in _TOKENS}
    check_length(parameters)
    scopes = asked if scope is None else ScopeSet.parse(scope)
    expires_in = _parse_expires_in(members.get("expires_in"))
    lifetime = default_lifetime if expires_in is None else timedelta(seconds=expires_in)
    return TokenResponse(
        access_token=access_token,
        token_type=token_type,
        expires_in=expires_in,
        expires_at=now + lifetime,
        refresh_token=_get_text(members, "refresh_token", _VISIBLE),
        id_token=_get_text(members, "id_token", _VISIBLE),
        scopes=scopes,
        scope_was_absent=scope is None,
        context=context,
        authorization_details=parse_authorization_details(
            members.get("authorization_details"),
            scopes=scopes,
            context=context,
            insecure_hosts=insecure_hosts,
        ),
        parameters=parameters,
    )


def _get_text(
    members: Mapping[str, Any], name: str, pattern: re.Pattern[str]
) -> str | None:
    """A token; null and the empty string count as absent."""
    value = members.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise MalformedTokenResponseError(f"{name} is not a string of visible ASCII.")
    return value


def _parse_expires_in(value: object) -> int | None:
    """Seconds; servers send an integer, digits in a string, or ``3600.0``."""
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        # Bounded, as int() is not made for thousands of digits.
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
