"""Introspection: what a server says of a token, for those who were shown one."""

from __future__ import annotations

import logging

from django.utils import timezone

from ..exceptions import (
    ContextChangedError,
    CredentialsError,
    ReauthorizationRequiredError,
    TokenResponseError,
    TokenServerError,
    UnsupportedServerError,
)
from ..models import ClientRegistration, FHIRServer, TokenGrant
from ..protocol.context import LaunchContext
from ..protocol.token_management import (
    IntrospectionResponse,
    build_introspection_request,
    process_introspection_response,
)
from ..servers.discovery import get_configuration
from ..servers.http import build_client_authentication, send
from .same_context import end_changed_grant

__all__ = ["introspect", "introspect_grant"]

logger = logging.getLogger(__name__)


def introspect(
    token: str, *, registration: ClientRegistration, access_token: str = ""
) -> IntrospectionResponse:
    """
    Ask the registration's server what *token* is good for.

    How the call itself is authorized says the server's column ``introspection_mode``.
    The token is neither stored nor logged (INTRO-05).

    Args:
        token: any token of that server's, such as one that an app has shown.
        access_token: sent as the bearer token where the mode is ``bearer``; it needs a
            scope that allows introspection.

    Returns:
        ``active`` is false for a token that is dead or unknown; all else is then empty.

    Raises:
        UnsupportedServerError: the server offers no introspection.
        CredentialsError: *access_token* is missing, or the client's secret or key.
        TransportError, DiscoveryError, TokenError: no usable answer came.

    Spec: SMART App Launch 2.2, "Token Introspection"; RFC 7662.
    """
    server = registration.server
    configuration = get_configuration(server)
    endpoint = configuration.introspection_endpoint
    if endpoint is None:
        raise UnsupportedServerError(
            "The server names no introspection_endpoint: if its vendor tells one, set "
            "the server's introspection endpoint."
        )
    if server.introspection_mode == FHIRServer.IntrospectionMode.CLIENT:
        request = build_introspection_request(
            introspection_endpoint=endpoint,
            token=token,
            client_authentication=build_client_authentication(
                registration, token_endpoint=configuration.token_endpoint
            ),
        )
    elif access_token:
        request = build_introspection_request(
            introspection_endpoint=endpoint, token=token, access_token=access_token
        )
    else:
        raise CredentialsError(
            "The server's introspection mode is bearer, so an access token is needed "
            "to ask with: pass access_token, or set the mode to client."
        )
    return process_introspection_response(send(request))


def introspect_grant(grant: TokenGrant) -> IntrospectionResponse:
    """
    Ask the EHR what the access token of *grant* is good for, and act on the answer.

    A token that is dead is refreshed before its next use.

    Raises:
        ReauthorizationRequiredError: the grant has ended.
        ContextChangedError: the answer names another patient, encounter or person;
            launch and grant were ended.
        UnsupportedServerError, CredentialsError, TransportError, DiscoveryError,
        TokenError: as :func:`introspect`.
    """
    if grant.status != TokenGrant.Status.ACTIVE:
        raise ReauthorizationRequiredError(f"The grant has ended ({grant.status}).")
    answer = _ask_with_own_token(grant)
    if not answer.active:
        _expire(grant)
        return answer
    known = LaunchContext(
        patient=grant.patient_id or None, encounter=grant.encounter_id or None
    )
    if known.names_another(answer.context) or _names_another_person(grant, answer):
        end_changed_grant(grant, now=timezone.now())
        raise ContextChangedError(
            "Introspection named another patient, encounter or person; the launch was "
            "ended."
        )
    return answer


def _ask_with_own_token(grant: TokenGrant) -> IntrospectionResponse:
    registration = grant.registration
    try:
        return introspect(
            grant.access_token,
            registration=registration,
            access_token=grant.access_token,
        )
    except (TokenResponseError, TokenServerError) as exc:
        mode = registration.server.introspection_mode
        if exc.status_code == 401 and mode == FHIRServer.IntrospectionMode.BEARER:
            # The token that asked is the token that was asked about.
            return IntrospectionResponse(active=False)
        raise


def _expire(grant: TokenGrant) -> None:
    # Unless another process has refreshed it since: then it is another token.
    now = timezone.now()
    TokenGrant.objects.active().filter(
        pk=grant.pk, received_at=grant.received_at, expires_at__gt=now
    ).update(expires_at=now)
    grant.expires_at = min(grant.expires_at, now)
    logger.info("Grant %s: its access token is dead", grant.pk)


def _names_another_person(grant: TokenGrant, answer: IntrospectionResponse) -> bool:
    # By issuer and subject together: elsewhere sub may be any name of a user.
    identity = grant.identity
    return (
        identity is not None
        and answer.issuer == identity.issuer
        and answer.subject not in (None, identity.subject)
    )
