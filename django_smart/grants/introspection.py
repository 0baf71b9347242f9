"""Introspection: ask a server whether a token is valid, and for what."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    ContextChangedError,
    CredentialsError,
    ReauthorizationRequiredError,
    RefreshInTransactionError,
    TokenResponseError,
    TokenServerError,
    UnsupportedServerError,
)
from ..models import ClientRegistration, TokenGrant
from ..protocol.configuration import SMARTConfiguration
from ..protocol.context import LaunchContext
from ..protocol.messages import HTTPResponse
from ..protocol.oauth import find_oauth_error
from ..protocol.token_management import (
    IntrospectionResponse,
    build_introspection_request,
    process_introspection_response,
)
from ..servers.discovery import get_configuration
from ..servers.http import build_client_authentication, send
from .ending import end_changed_grant
from .lease import can_store_tokens
from .separate_connection import is_in_transaction, run_on_own_connection

__all__ = ["introspect", "introspect_grant"]

logger = logging.getLogger(__name__)

_UNAUTHORIZED = frozenset({401, 403})
_INVALID = "invalid_token"  # RFC 6750 section 3.1
_HINT = (
    "The server did not accept how introspection authenticates: set the server's "
    "introspection_mode to client, or override its "
    "introspection_endpoint_auth_methods_supported."
)


def introspect(
    token: str, *, registration: ClientRegistration, access_token: str = ""
) -> IntrospectionResponse:
    """
    Ask the registration's server whether *token* is valid, and for what.

    The server's quirk ``introspection_mode`` determines how the call is authorized.
    The token is neither stored nor logged (INTRO-05).

    Args:
        token: any token of that server, such as one received from an app.
        access_token: sent as the bearer token if the mode is ``bearer``; it needs a
            scope that allows introspection.

    Returns:
        A response whose ``active`` is false for an expired or unknown token; everything
        else is then empty.

    Raises:
        UnsupportedServerError: the server does not support introspection.
        CredentialsError: *access_token* is missing, or the client's secret or key.
        TransportError, DiscoveryError, TokenError: there was no usable response.

    Spec: SMART App Launch 2.2, "Token Introspection"; RFC 7662.
    """
    server = registration.server
    configuration = get_configuration(server, registration.client_id)
    endpoint = configuration.introspection_endpoint
    if endpoint is None:
        raise UnsupportedServerError(
            "The server names no introspection_endpoint: if its vendor documents one, "
            "enter it in the server's overrides."
        )
    is_bearer = not _uses_credentials(registration, configuration)
    if not is_bearer:
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
            "Introspection at this server requires an access token: pass access_token, "
            "or set the server's introspection_mode to client."
        )
    response = send(request, server=server)
    if is_bearer and token == access_token and _is_called_invalid(response):
        # The token that authorizes the call is also the introspected one.
        return IntrospectionResponse(active=False)
    try:
        return process_introspection_response(
            response, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS
        )
    except (TokenResponseError, TokenServerError) as exc:
        if exc.status_code in _UNAUTHORIZED:
            exc.args = (f"{exc} {_HINT}",)
        raise


def _is_called_invalid(response: HTTPResponse) -> bool:
    """Return whether the bearer token was refused, not bearer tokens as such."""
    challenge = response.headers.get("www-authenticate", "")
    error = find_oauth_error(response).get("error")
    return response.status_code == 401 and (_INVALID in challenge or error == _INVALID)


def _uses_credentials(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> bool:
    if registration.server.quirks.introspection_mode == "client":
        return True
    # Names of methods and of access token types (RFC 8414 section 2).
    methods = configuration.introspection_endpoint_auth_methods_supported or ()
    method = registration.token_endpoint_auth_method
    return method in methods and "Bearer" not in methods


def introspect_grant(grant: TokenGrant) -> IntrospectionResponse:
    """
    Introspect the access token of *grant*, and act on the response.

    An inactive token is refreshed before its next use.

    Raises:
        ReauthorizationRequiredError: the grant has ended.
        RefreshInTransactionError: called inside ``atomic()`` on SQLite; nothing was
            sent.
        ContextChangedError: the response names another patient, encounter or user; the
            launch and grant were ended.
        UnsupportedServerError, CredentialsError: see :func:`introspect`.
        TransportError, DiscoveryError, TokenError: see :func:`introspect`.
    """
    if grant.status != TokenGrant.Status.ACTIVE:
        raise ReauthorizationRequiredError(f"The grant has ended ({grant.status}).")
    if not can_store_tokens():
        raise RefreshInTransactionError(
            "Inside a transaction, SQLite cannot store safely what introspection "
            "finds: make the call before atomic() begins."
        )
    answer = introspect(
        grant.access_token,
        registration=grant.registration,
        access_token=grant.access_token,
    )
    if not answer.active:
        _commit(partial(_expire, grant), grant)
        return answer
    known = LaunchContext(
        patient=grant.patient_id or None, encounter=grant.encounter_id or None
    )
    if known.names_another(answer.context) or _names_another_person(grant, answer):
        _commit(partial(end_changed_grant, grant, now=timezone.now()), grant)
        raise ContextChangedError(
            "Introspection named another patient, encounter or person; the launch was "
            "ended."
        )
    return answer


def _commit(change: Callable[[], None], grant: TokenGrant) -> None:
    """Call *change* of *grant* so that a rollback of the caller does not undo it."""
    if not is_in_transaction():
        change()
        return
    try:
        run_on_own_connection(change)
    except RefreshInTransactionError:
        if grant.status != TokenGrant.Status.ACTIVE:
            # It is ended; a receiver of the site met the locked row.
            return
        # Only the transaction that has locked the row can change it.
        change()


def _expire(grant: TokenGrant) -> None:
    # Unless another process has refreshed it since: the token is then another one.
    now = timezone.now()
    TokenGrant.objects.active().filter(
        pk=grant.pk, received_at=grant.received_at, expires_at__gt=now
    ).update(expires_at=now)
    grant.expires_at = min(grant.expires_at, now)
    logger.info("Grant %s: its access token is no longer valid", grant.pk)


def _names_another_person(grant: TokenGrant, answer: IntrospectionResponse) -> bool:
    # Issuer and subject together: elsewhere, sub may be any user name.
    identity = grant.identity
    return (
        identity is not None
        and answer.issuer == identity.issuer
        and answer.subject not in (None, identity.subject)
    )
