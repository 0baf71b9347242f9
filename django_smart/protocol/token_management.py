"""Revocation and introspection of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from django_smart.exceptions import MalformedTokenResponseError
from django_smart.protocol.client_auth import ClientAuthentication
from django_smart.protocol.context import LaunchContext
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.oauth import (
    build_form_request,
    get_scope,
    parse_token_body,
)
from django_smart.protocol.scopes import ScopeSet

__all__ = [
    "IntrospectionResponse",
    "build_introspection_request",
    "build_revocation_request",
    "process_introspection_response",
    "process_revocation_response",
]


def build_revocation_request(
    *,
    revocation_endpoint: str,
    token: str,
    token_type_hint: str,
    client_authentication: ClientAuthentication,
) -> HTTPRequest:
    """
    Build the request that revokes a token.

    Args:
        token_type_hint: ``refresh_token`` or ``access_token``.

    Spec: RFC 7009 section 2.1.
    """
    return build_form_request(
        revocation_endpoint,
        [("token", token), ("token_type_hint", token_type_hint)],
        client_authentication=client_authentication,
    )


def process_revocation_response(response: HTTPResponse) -> None:
    """
    Check that the token is revoked; an unknown token counts as revoked.

    Raises:
        TokenError, TransportError: as
            :func:`~django_smart.protocol.token.process_token_response`.

    Spec: RFC 7009 section 2.2.
    """
    # The body of a success has no meaning; some servers send 204.
    if response.status_code not in (200, 204):
        parse_token_body(response)


@dataclass(frozen=True, kw_only=True, slots=True)
class IntrospectionResponse:
    """
    A server's information about a token.

    Attributes:
        active: if false, everything else is empty (INTRO-04).
        expires_at: aware datetime, or ``None``.
        fhir_user: as sent.
        context: launch context; unknown members are in its ``extra``.
    """

    active: bool
    scopes: ScopeSet = field(default_factory=ScopeSet, repr=False)
    client_id: str | None = None
    expires_at: datetime | None = None
    issuer: str | None = None
    subject: str | None = field(default=None, repr=False)
    fhir_user: str | None = field(default=None, repr=False)
    context: LaunchContext = field(default_factory=LaunchContext, repr=False)


def build_introspection_request(
    *,
    introspection_endpoint: str,
    token: str,
    access_token: str | None = None,
    client_authentication: ClientAuthentication | None = None,
) -> HTTPRequest:
    """
    Build the introspection request for *token*.

    Args:
        access_token: sent as ``Authorization: Bearer``, as SMART requires (INTRO-02).
        client_authentication: for servers that require the client's credentials.

    Spec: SMART App Launch 2.2, "Token Introspection"; RFC 7662 section 2.1.
    """
    headers = (
        {} if access_token is None else {"Authorization": f"Bearer {access_token}"}
    )
    return build_form_request(
        introspection_endpoint,
        [("token", token)],
        client_authentication=client_authentication,
        headers=headers,
    )


def process_introspection_response(
    response: HTTPResponse, *, insecure_hosts: frozenset[str] = frozenset()
) -> IntrospectionResponse:
    """
    Turn the response to an introspection into an ``IntrospectionResponse``.

    Args:
        insecure_hosts: hosts for which http is accepted in the context's URLs.

    Raises:
        TokenError, TransportError: as
            :func:`~django_smart.protocol.token.process_token_response`.

    Spec: SMART App Launch 2.2, "Token Introspection"; RFC 7662 section 2.2.
    """
    members = parse_token_body(response)
    active = members.get("active")
    if not isinstance(active, bool):
        raise MalformedTokenResponseError("active is not a boolean.")
    if not active:
        return IntrospectionResponse(active=False)
    return IntrospectionResponse(
        active=True,
        scopes=ScopeSet.parse(get_scope(members) or ""),
        client_id=_get_text(members, "client_id"),
        expires_at=_get_time(members, "exp"),
        issuer=_get_text(members, "iss"),
        subject=_get_subject(members),
        fhir_user=_get_text(members, "fhirUser"),
        context=LaunchContext.from_parameters(members, insecure_hosts=insecure_hosts),
    )


def _get_subject(members: Mapping[str, Any]) -> str | None:
    """Read ``sub``, which some servers send as a number."""
    value = members.get("sub")
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else _get_text(members, "sub")


def _get_text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    if not isinstance(value, str | None):
        raise MalformedTokenResponseError(f"{name} is not a string.")
    return value


def _get_time(members: Mapping[str, Any], name: str) -> datetime | None:
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise MalformedTokenResponseError(f"{name} is not a number.")
    try:
        return datetime.fromtimestamp(value, tz=UTC)
    except (OverflowError, OSError, ValueError):
        raise MalformedTokenResponseError(f"{name} is out of range.") from None
