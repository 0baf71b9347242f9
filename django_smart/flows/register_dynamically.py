"""Register this site's client at a server that takes it without its people's help."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import transaction

from ..exceptions import RegistrationError, UnsupportedServerError
from ..models import ClientRegistration, SigningKey
from ..protocol.client_registration import (
    ClientInformation,
    ClientMetadata,
    build_registration_request,
    process_registration_response,
)
from ..protocol.scopes import ScopeSet
from .discovery import DISCOVERED_COLUMNS, fetch_configuration
from .exchange import send
from .keys import ensure_active_key
from .register import (
    RegistrationInput,
    build_client_urls,
    get_site_url,
    register_client,
)
from .support import check_registration

__all__ = ["DynamicRegistration", "register_dynamically"]

logger = logging.getLogger(__name__)

_AuthMethod = ClientRegistration.AuthMethod
# Of the year 9999, after which Python knows no time.
_LAST_SECOND = 253_402_300_799


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicRegistration:
    """
    A registration that the server made, and what it said about it.

    Attributes:
        secret_expires_at: when a new secret will be needed; ``None`` for never.
        missing: scopes that were asked for and that the server did not register.
    """

    registration: ClientRegistration
    secret_expires_at: datetime | None
    missing: ScopeSet


def register_dynamically(
    data: RegistrationInput,
    *,
    client_name: str = "",
    initial_access_token: str | None = None,
) -> DynamicRegistration:
    """
    Have the server make a client id, and store it (RFC 7591, REG-06).

    What is visibly wrong, or lacking at the server, is refused before anything is
    registered there.  Call it outside any transaction.

    Args:
        data: with an empty ``client_id`` and no secret.
        client_name: what people read where they approve; empty for the site's host.
        initial_access_token: if the server's operator gave one.

    Raises:
        ValidationError, ImproperlyConfigured: as :func:`.register.register_client`.
        TransportError, DiscoveryError: the server could not be asked.
        UnsupportedServerError: it has no registration endpoint, or lacks what is
            needed.
        RegistrationError: it refused, or its answer is of no use.
    """
    planned = _plan(data)
    configuration = fetch_configuration(planned.server, save=False)
    check_registration(planned, configuration)
    if configuration.registration_endpoint is None:
        raise UnsupportedServerError(
            "The server has no registration_endpoint: register the client in its "
            "vendor's form, and give the client id that is shown there."
        )
    if planned.uses_private_key:
        ensure_active_key(planned.signing_algorithm)
    metadata = _build_metadata(
        planned,
        site_url=data.site_url or get_site_url(planned),
        client_name=client_name,
    )
    answer = send(
        build_registration_request(
            metadata,
            registration_endpoint=configuration.registration_endpoint,
            initial_access_token=initial_access_token,
        )
    )
    information = process_registration_response(answer, metadata=metadata)
    registration = _store(data, information)
    server = registration.server
    for name in DISCOVERED_COLUMNS:
        setattr(server, name, getattr(planned.server, name))
    server.save(update_fields=[*DISCOVERED_COLUMNS, "updated_at"])
    logger.info("Registration %s was made by server %s", registration.pk, server.pk)
    return DynamicRegistration(
        registration=registration,
        secret_expires_at=_get_secret_end(information),
        missing=(
            ScopeSet()
            if information.scope is None
            else ScopeSet.parse(information.scope).missing(metadata.scope)
        ),
    )


def _plan(data: RegistrationInput) -> ClientRegistration:
    """The rows as they will be, checked and taken back."""
    stand_in = secrets.token_urlsafe()
    values = dict(data.registration_values)
    if _gets_secret(data):
        values["client_secret"] = stand_in
    with transaction.atomic():
        planned = register_client(
            replace(data, client_id=stand_in, registration_values=values)
        )
        transaction.set_rollback(True)
    server = planned.server
    # The server of a vendor that wants to see the client id has none to see yet.
    server.discovery_headers = {
        name: value
        for name, value in server.discovery_headers.items()
        if value != stand_in
    }
    return planned


def _gets_secret(data: RegistrationInput) -> bool:
    values = data.registration_values
    launches = values.get("ehr_scope") or values.get("standalone_scope")
    method = values.get("token_endpoint_auth_method") or (
        _AuthMethod.PRIVATE_KEY_JWT
        if values.get("system_scope") and not launches
        else _AuthMethod.CLIENT_SECRET_BASIC
    )
    return str(method).startswith("client_secret_")


def _build_metadata(
    planned: ClientRegistration, *, site_url: str, client_name: str
) -> ClientMetadata:
    site_url = site_url.removesuffix("/")
    urls = build_client_urls(planned, site_url=site_url)
    uses_key = planned.uses_private_key
    # A site that cannot be reached, as in development, sends its keys along.
    has_address = uses_key and site_url.startswith("https://")
    return ClientMetadata(
        client_name=client_name or urlsplit(site_url).hostname or "SMART app",
        redirect_uris=[planned.redirect_uri] if planned.is_for_launches else [],
        grant_types=list(_list_grant_types(planned)),
        scope=" ".join(dict.fromkeys(_list_scopes(planned))),
        token_endpoint_auth_method=planned.token_endpoint_auth_method,
        signing_algorithm=planned.signing_algorithm if uses_key else None,
        jwks_uri=urls.jwks_url if has_address else None,
        jwks=(SigningKey.objects.as_jwks() if uses_key and not has_address else None),
        initiate_login_uri=urls.launch_url if planned.ehr_scope else None,
    )


def _list_scopes(planned: ClientRegistration) -> Iterator[str]:
    if planned.ehr_scope:
        # An EHR launch asks for it, whether it was typed or not.
        yield "launch"
    for scope in (planned.ehr_scope, planned.standalone_scope, planned.system_scope):
        yield from scope.split()


def _list_grant_types(planned: ClientRegistration) -> Iterator[str]:
    if planned.is_for_launches:
        yield "authorization_code"
        if {"offline_access", "online_access"}.intersection(_list_scopes(planned)):
            yield "refresh_token"
    if planned.system_scope:
        yield "client_credentials"


def _store(
    data: RegistrationInput, information: ClientInformation
) -> ClientRegistration:
    values = {
        **data.registration_values,
        "token_endpoint_auth_method": information.token_endpoint_auth_method,
    }
    if information.client_secret is not None:
        values["client_secret"] = information.client_secret
    try:
        return register_client(
            replace(data, client_id=information.client_id, registration_values=values)
        )
    except ValidationError as exc:
        raise RegistrationError(
            f"The server registered the client {information.client_id}, which cannot "
            f"be stored; have it removed there. {' '.join(exc.messages)}"
        ) from exc


def _get_secret_end(information: ClientInformation) -> datetime | None:
    seconds = information.client_secret_expires_at
    if information.client_secret is None or seconds is None:
        return None
    return datetime.fromtimestamp(min(seconds, _LAST_SECOND), UTC)
