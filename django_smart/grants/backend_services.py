"""
Backend services: access tokens for nobody's sake but this site's own.

The token of a registration is kept in a row that all processes share, and fetched anew
by one of them when it is about to end (BACK-07).
"""

from __future__ import annotations

import logging

from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    CredentialsError,
    InactiveRegistrationError,
    UnsupportedServerError,
)
from ..models import ClientRegistration, TokenGrant
from ..protocol.client_auth import PrivateKeyJWT
from ..protocol.messages import HTTPRequest
from ..protocol.scopes import ScopeSet
from ..protocol.token import build_client_credentials_request, process_token_response
from ..servers.discovery import get_configuration
from ..servers.http import build_client_authentication, send_patiently
from ..servers.requirements import check_backend_service
from .lease import exchange_with_lease, get_fresh_grant
from .separate_connection import waiting_for_locks

__all__ = ["BackendService"]

logger = logging.getLogger(__name__)


class BackendService:
    """
    The access tokens of one registration, as its FHIR client asks for them.

    Nothing is sent before the first token is needed.  May be shared by threads.

    Attributes:
        grant: the row of the last token, or ``None`` before the first one.

    Raises:
        InactiveRegistrationError: the registration or its server is switched off, or
            it asks for no system scope.
        CredentialsError: it does not authenticate with ``private_key_jwt`` (BACK-01).
    """

    def __init__(self, registration: ClientRegistration) -> None:
        _check(registration)
        self._registration_id = registration.pk
        self.grant: TokenGrant | None = None

    def get_access_token(self) -> str:
        """
        A token that has not ended: the shared one, or a new one.

        Raises:
            TokenResponseError: the server refused; ``error`` says why.
            RefreshBusyError: another process is asking for it and takes too long.
            RefreshInTransactionError: one is needed inside ``atomic()`` on SQLite.
            UnsupportedServerError: the server does not offer backend services.
            TransportError, DiscoveryError, TokenError, InactiveRegistrationError,
                CredentialsError: there is no token for now.
        """
        if self.grant is None or self.grant.is_stale(timezone.now()):
            return self._obtain(rejected=None)
        return self.grant.access_token

    def renew_access_token(self, rejected: str) -> str:
        """
        A token other than *rejected*, which the FHIR server answered with 401.

        Raises: as :meth:`get_access_token`.
        """
        return self._obtain(rejected=rejected)

    def _obtain(self, *, rejected: str | None) -> str:
        grant = get_fresh_grant(self._find, _try_fetch, rejected=rejected)
        self.grant = grant
        return grant.access_token

    def _find(self) -> TokenGrant:
        # Read anew each time: it may have been switched off, or ask for another scope.
        registration = (
            ClientRegistration.objects.select_related("server")
            .filter(pk=self._registration_id)
            .first()
        )
        if registration is None:
            raise InactiveRegistrationError("The registration was deleted.")
        _check(registration)
        return TokenGrant.objects.get_for_service(registration, now=timezone.now())


def _check(registration: ClientRegistration) -> None:
    if not (registration.is_active and registration.server.is_active):
        raise InactiveRegistrationError(
            f"The registration at {registration.server.slug} is switched off."
        )
    if not registration.system_scope:
        raise InactiveRegistrationError(
            f"The registration at {registration.server.slug} is not for backend "
            "services: set its system_scope."
        )
    if not registration.uses_private_key:
        raise CredentialsError(
            "Backend services authenticate with private_key_jwt, and the registration "
            f"at {registration.server.slug} is set to "
            f"{registration.token_endpoint_auth_method}."
        )


def _try_fetch(grant: TokenGrant) -> bool:
    """Fetch a token if the lease is free; ``False`` if somebody else holds it."""
    return exchange_with_lease(grant, _fetch)


def _fetch(grant: TokenGrant) -> bool:
    """Fetch a token; ``False`` if the row was ended while the answer came."""
    registration = grant.registration
    server = registration.server
    configuration = get_configuration(server)
    try:
        check_backend_service(registration, configuration)
    except UnsupportedServerError:
        # Not kept for a day: the server may have mended it by the next request.
        server.configuration_fetched_at = None
        server.save(update_fields=["configuration_fetched_at"])
        raise
    response = send_patiently(
        lambda: _build_request(grant, token_endpoint=configuration.token_endpoint)
    )
    now = timezone.now()
    tokens = process_token_response(
        response,
        requested=ScopeSet.parse(grant.scope_asked),
        now=now,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )
    # A refresh token is not expected, and not kept if one comes (BACK-06).
    grant.set_tokens(access_token=tokens.access_token, refresh_token="")
    grant.scope = grant.scope_granted = str(tokens.scopes)
    grant.received_at = now
    grant.expires_at = tokens.expires_at
    with waiting_for_locks():
        is_stored = TokenGrant.objects.store_refreshed(grant, used_digest="")
    if not is_stored:
        # Ended here meanwhile.  The token is dropped, and ends by itself in minutes.
        return False
    logger.info("Grant %s has a new access token", grant.pk)
    return True


def _build_request(grant: TokenGrant, *, token_endpoint: str) -> HTTPRequest:
    authentication = build_client_authentication(
        grant.registration, token_endpoint=token_endpoint
    )
    if not isinstance(authentication, PrivateKeyJWT):
        raise CredentialsError("Backend services authenticate with private_key_jwt.")
    return build_client_credentials_request(
        token_endpoint=token_endpoint,
        scope=grant.scope_asked,
        client_authentication=authentication,
    )
