"""
Backend services: access tokens for this site itself, without a user.

A registration's token is stored in a row that all processes share; one of them fetches
a new one shortly before it expires (BACK-07).
"""

from __future__ import annotations

import logging
from functools import partial

from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from ..conf import conf
from ..exceptions import (
    CredentialsError,
    InactiveRegistrationError,
    UnsupportedServerError,
)
from ..fields import digest
from ..models import ClientRegistration, SigningKey, TokenGrant
from ..protocol.configuration import SMARTConfiguration
from ..protocol.messages import HTTPRequest
from ..protocol.scopes import ScopeSet, is_for_service
from ..protocol.token import build_client_credentials_request, process_token_response
from ..protocol.urls import get_origin
from ..servers.discovery import doubt_configuration, get_configuration
from ..servers.http import build_client_authentication, send_patiently
from ..servers.requirements import check_backend_service
from .lease import exchange_with_lease, get_fresh_grant
from .separate_connection import waiting_for_locks

__all__ = ["BackendService"]

logger = logging.getLogger(__name__)


class BackendService:
    """
    The access tokens of one registration, for its FHIR client.

    Sends nothing before the first token is needed. Threads may share it.

    Attributes:
        grant: the row of the last token, or ``None`` before the first one.

    Raises:
        InactiveRegistrationError: the registration or its server is inactive, or it has
            no system scope.
        CredentialsError: it has no usable secret or key.
    """

    def __init__(self, registration: ClientRegistration) -> None:
        _check(registration)
        self._registration_id = registration.pk
        self._system_scope = registration.system_scope
        self.grant: TokenGrant | None = None

    @property
    def scopes(self) -> ScopeSet:
        """Before the first token, only the requested ones are known."""
        if self.grant is not None:
            return self.grant.scopes
        return ScopeSet.parse(self._system_scope)

    # The error report of a site's view that fails here must not show tokens.
    @sensitive_variables()
    def get(self) -> str:
        """
        Return a token that has not expired: the shared one, or a new one.

        Raises:
            TokenResponseError: the server refused; ``error`` says why.
            GrantError: another process is fetching it and takes too long.
            RefreshInTransactionError: one is needed inside ``atomic()`` on SQLite.
            UnsupportedServerError: the server does not offer backend services.
            TransportError, DiscoveryError, TokenError, InactiveRegistrationError,
                CredentialsError: there is no token for now.
        """
        if self.grant is None or self.grant.is_stale(timezone.now()):
            return self._obtain(rejected=None)
        return self.grant.access_token

    @sensitive_variables()
    def renew(self, used: str) -> str:
        """
        Return a token other than *used*, which the FHIR server refused with 401.

        Raises: as :meth:`get`.
        """
        return self._obtain(rejected=used)

    def _obtain(self, *, rejected: str | None) -> str:
        fetch = partial(exchange_with_lease, exchange=_fetch)
        grant = get_fresh_grant(self._find, fetch, rejected=rejected)
        self.grant = grant
        return grant.access_token

    def _find(self) -> TokenGrant:
        # Read each time: it may have been deactivated, or its scope changed.
        registration = (
            ClientRegistration.objects.select_related("server__state")
            .filter(pk=self._registration_id)
            .first()
        )
        if registration is None:
            raise InactiveRegistrationError("The registration was deleted.")
        _check(registration)
        return _get_row(registration)


def _get_row(registration: ClientRegistration) -> TokenGrant:
    """
    Return the row that all processes share, created at first use without a token.

    There is one for each requested scope; the unique slot decides between two processes
    that create it at once.
    """
    scope, now = registration.system_scope, timezone.now()
    grant, _created = TokenGrant.objects.get_or_create(
        service_slot=digest(str(registration.pk), scope),
        defaults={
            "registration": registration,
            "kind": TokenGrant.Kind.CLIENT_CREDENTIALS,
            "scope_asked": scope,
            "received_at": now,
            "expires_at": now,
        },
    )
    grant.registration = registration
    return grant


def _check(registration: ClientRegistration) -> None:
    if not (registration.is_active and registration.server.is_active):
        raise InactiveRegistrationError(
            f"The registration at {registration.server.slug} is inactive."
        )
    scopes = ScopeSet.parse(registration.system_scope)
    if not scopes or not all(map(is_for_service, scopes)):
        raise InactiveRegistrationError(
            f"The registration at {registration.server.slug} is not for backend "
            "services: set its system_scope, to scopes that begin with system/."
        )
    if registration.token_endpoint_auth_method == registration.AuthMethod.NONE:
        raise CredentialsError(
            "A backend service must authenticate, usually with private_key_jwt, but "
            f"the registration at {registration.server.slug} is set to none."
        )


def _check_token_endpoint(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> None:
    """
    Refuse a token endpoint that may belong to another server.

    Nothing in the request says for which server the token is. A hostile server that
    names another one's token endpoint, and gave this site the client id that it has
    there, would otherwise get that server's token.
    """
    server = registration.server
    if (
        registration.uses_private_key
        and get_origin(configuration.token_endpoint) != get_origin(server.base_url)
        and "token_endpoint" not in server.overrides
        and not SigningKey.objects.of(registration)
        .active()
        .filter(algorithm=registration.signing_algorithm)
        .exists()
    ):
        raise CredentialsError(
            f"The token endpoint of {server.slug} has another origin than its base "
            "URL. Give the registration its own signing key (smart_keys generate "
            f"--registration {registration.pk}), or enter the token endpoint in the "
            "server's overrides if its vendor documents it."
        )


def _fetch(grant: TokenGrant) -> bool:
    """Fetch a token; ``False`` if the row was ended in the meantime."""
    registration = grant.registration
    server = registration.server
    configuration = get_configuration(server, registration.client_id)
    try:
        check_backend_service(registration, configuration)
    except UnsupportedServerError:
        # Not cached for a day: it may be fixed by the next request.
        doubt_configuration(server)
        raise
    _check_token_endpoint(registration, configuration)
    response = send_patiently(
        lambda: _build_request(grant, token_endpoint=configuration.token_endpoint),
        server=server,
    )
    now = timezone.now()
    tokens = process_token_response(
        response,
        requested=ScopeSet.parse(grant.scope_asked),
        now=now,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )
    # No refresh token is expected; one that is sent is not kept (BACK-06).
    grant.receive(
        access_token=tokens.access_token,
        refresh_token="",
        expires_at=tokens.expires_at,
        now=now,
    )
    grant.scope = grant.scope_granted = str(tokens.scopes)
    with waiting_for_locks():
        is_stored = TokenGrant.objects.store_refreshed(
            grant, used_digest="", changed=["scope_granted"]
        )
    if not is_stored:
        # Ended here in the meantime. The token is discarded and expires in minutes.
        return False
    logger.info("Grant %s has a new access token", grant.pk)
    return True


def _build_request(grant: TokenGrant, *, token_endpoint: str) -> HTTPRequest:
    return build_client_credentials_request(
        token_endpoint=token_endpoint,
        scope=grant.scope_asked,
        client_authentication=build_client_authentication(
            grant.registration, token_endpoint=token_endpoint
        ),
    )
