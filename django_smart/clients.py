"""FHIR clients for code that has no request: tasks, commands, the admin."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

from django.db import close_old_connections
from django.views.decorators.debug import sensitive_variables

from .conf import conf
from .exceptions import AmbiguousGrantError, InsufficientScopeError, NoGrantError
from .fhir.asynchronous import AsyncFHIRClient
from .fhir.client import FHIRClient
from .fhir.messages import FHIRExchange
from .grants.backend_services import BackendService
from .grants.refresh import get_access_token, renew_access_token
from .models import ClientRegistration, FHIRServer, Launch, TokenGrant
from .protocol.messages import HTTPRequest, HTTPResponse
from .protocol.scopes import ScopeSet
from .servers.http import open_stream, send, whole_call_seconds
from .signals import fhir_request_finished

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = [
    "backend_client_for",
    "build_async_client",
    "build_fhir_client",
    "fhir_client_for",
    "note_exchange",
]

logger = logging.getLogger(__name__)
_audit = logging.getLogger("django_smart.audit")


def fhir_client_for(
    user: AbstractBaseUser | None = None,
    server: FHIRServer | None = None,
    *,
    patient_id: str | None = None,
    grant: TokenGrant | None = None,
) -> FHIRClient:
    """
    A client with a grant that was given earlier, for when nobody is signed in.

    Args:
        user, server: whose offline grant, and where; exactly one has to match.
        patient_id: only a grant for this patient.
        grant: use this grant, without a search.

    Returns:
        A client that refreshes its token automatically; for the grant of a backend
        service, as :func:`backend_client_for`.

    Raises:
        NoGrantError: no usable grant matches, or *grant* has ended.
        AmbiguousGrantError: several match; pass ``patient_id`` or ``grant``.
        TypeError: neither a grant, nor a user and a server.
    """
    if grant is not None:
        if not TokenGrant.objects.usable().filter(pk=grant.pk).exists():
            raise NoGrantError("The grant has ended, or its user is deactivated.")
        if grant.is_for_service:
            return backend_client_for(grant.registration)
        return build_fhir_client(grant)
    if user is None or server is None:
        raise TypeError("fhir_client_for() takes a user and a server, or a grant.")
    if user.pk is None:
        # Nobody is signed in; a lookup would find the grants that have no user.
        raise NoGrantError("An anonymous user has no grants.")
    grants = (
        TokenGrant.objects.usable()
        .offline()
        .filter(user_id=user.pk, registration__server=server)
        .select_related("registration__server")
    )
    matching = [
        each for each in grants if patient_id is None or each.patient_id == patient_id
    ]
    if not matching:
        raise NoGrantError("The user has no offline grant here that could be used.")
    if len(matching) > 1:
        raise AmbiguousGrantError(
            f"{len(matching)} offline grants of this user match; name the patient_id, "
            "or pass the grant itself."
        )
    return build_fhir_client(matching[0])


def backend_client_for(registration: ClientRegistration) -> FHIRClient:
    """
    A client for a backend service: this site itself, with ``system/`` scopes.

    Nothing is sent before the first request.  The access token is shared by all
    processes and replaced shortly before it ends, by one of them.

    Args:
        registration: with a ``system_scope``, authenticating by ``private_key_jwt``.

    Returns:
        A client that gets its tokens automatically; threads may share it.

    Raises:
        InactiveRegistrationError: *registration* or its server is switched off, or has
            no ``system_scope``.
        CredentialsError: it has another method than ``private_key_jwt`` (BACK-01).

    Spec: SMART App Launch 2.2, "Backend Services".
    """
    service = BackendService(registration)
    server = registration.server

    def get_scopes() -> ScopeSet:
        # Before the first token, only the requested scope is known.
        grant = service.grant
        return _parse(grant.scope if grant else registration.system_scope)

    def report(exchange: FHIRExchange) -> None:
        _report(exchange, grant=service.grant, launch=None, patient_id=None)

    return FHIRClient(
        base_url=server.base_url,
        get_access_token=sensitive_variables()(service.get_access_token),
        renew_access_token=sensitive_variables()(service.renew_access_token),
        boundary=_get_boundary(server),
        send=send,
        open_stream=open_stream,
        call_limit=whole_call_seconds(),
        patient_id=None,
        get_scopes=get_scopes,
        on_missing_scope=_get_scope_check(),
        on_request=report,
    )


def build_fhir_client(
    grant: TokenGrant,
    *,
    launch: Launch | None = None,
    base_url: str = "",
    patient_id: str | None = None,
    send: Callable[[HTTPRequest], HTTPResponse] = send,
    scopes: ScopeSet | None = None,
) -> FHIRClient:
    """
    A client whose every request carries *grant*'s token, kept fresh (FHIR-01).

    Args:
        launch: whose requests they are, for the signal.
        base_url: another FHIR endpoint that accepts the token (RESP-20), where
            *patient_id* is the patient and *scopes* are granted.
        send: another way to send, such as one with less time.
    """
    server = grant.registration.server
    patient_id = patient_id if base_url else grant.patient_id or None

    def report(exchange: FHIRExchange) -> None:
        _report(exchange, grant=grant, launch=launch, patient_id=patient_id)

    def get_scopes() -> ScopeSet:
        return _parse(grant.scope) if scopes is None else scopes

    return FHIRClient(
        base_url=base_url or server.base_url,
        # A site's view may fail within a refresh; the report must not show tokens.
        get_access_token=sensitive_variables()(partial(get_access_token, grant)),
        renew_access_token=sensitive_variables()(partial(renew_access_token, grant)),
        boundary="base" if base_url else _get_boundary(server),
        send=send,
        open_stream=open_stream,
        call_limit=whole_call_seconds(),
        patient_id=patient_id,
        get_scopes=get_scopes,
        on_missing_scope=_get_scope_check(),
        on_request=report,
    )


def build_async_client(client: FHIRClient) -> AsyncFHIRClient:
    """
    Wrap *client* for async code, which awaits whatever sends a request.

    Each call runs in a thread, several at a time; a database connection that a refresh
    opened there is closed as at the end of a request.
    """
    return AsyncFHIRClient(client, after=close_old_connections)


def note_exchange(
    exchange: FHIRExchange,
    *,
    grant: TokenGrant | None,
    launch: Launch | None,
    patient_id: str | None,
) -> None:
    """
    Write the audit line of *exchange*.

    Args:
        grant: whose token was used; ``None`` if there was none yet.
        launch: whose request it was; ``None`` in background work.
        patient_id: of the patient in context, if there is one.
    """
    if not _audit.isEnabledFor(logging.INFO):
        return
    user_id = grant.user_id if grant is not None else None
    _audit.info(
        "%s %s: %s in %.3f s (user %s, grant %s, launch %s, request %s)",
        exchange.interaction,
        exchange.resource_type or "-",
        exchange.status_code or "no answer",
        exchange.duration,
        user_id,
        grant.pk if grant is not None else None,
        launch.pk if launch is not None else None,
        exchange.request_id,
        extra={
            "user_id": user_id,
            "grant_id": grant.pk if grant is not None else None,
            "launch_id": launch.pk if launch is not None else None,
            "server": grant.registration.server.slug if grant is not None else "",
            "fhir_user": launch.fhir_user if launch is not None else "",
            "patient_id": patient_id or "",
            "interaction": exchange.interaction,
            "resource_type": exchange.resource_type,
            "status_code": exchange.status_code,
            "duration": exchange.duration,
            "request_id": exchange.request_id,
        },
    )


def _report(
    exchange: FHIRExchange,
    *,
    grant: TokenGrant | None,
    launch: Launch | None,
    patient_id: str | None,
) -> None:
    note_exchange(exchange, grant=grant, launch=launch, patient_id=patient_id)
    fhir_request_finished.send(
        sender=FHIRClient, exchange=exchange, grant=grant, launch=launch
    )


# A process sees few different scopes, and each client would parse its own again.
_parse = lru_cache(maxsize=64)(ScopeSet.parse)


def _get_scope_check() -> Callable[[str], None] | None:
    """What to do about a request that the granted scopes do not allow."""
    checks = {"warn": _warn_of_scope, "raise": _refuse_scope}
    return checks.get(conf.SMART_SCOPE_CHECK)


def _warn_of_scope(missing: str) -> None:
    logger.warning(
        "A FHIR request needs the scope %s, which was not granted: ask for it in the "
        "registration, or ask for less.",
        missing,
    )


def _refuse_scope(missing: str) -> None:
    raise InsufficientScopeError(
        f"The request needs the scope {missing}, which was not granted; nothing was "
        "sent.",
        missing=missing,
    )


def _get_boundary(server: FHIRServer) -> Literal["base", "origin"]:
    is_origin = server.bearer_boundary == server.BearerBoundary.ORIGIN
    return "origin" if is_origin else "base"
