"""FHIR clients for code without a request: tasks, commands, the admin."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

from django.db import connections
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from .conf import conf
from .exceptions import (
    AmbiguousGrantError,
    InsufficientScopeError,
    NoGrantError,
    SMARTError,
)
from .fhir.asynchronous import AsyncFHIRClient
from .fhir.client import FHIRClient
from .fhir.guard import RecordRules
from .fhir.messages import FHIRExchange
from .fhir.names import get_name
from .grants.backend_services import BackendService
from .grants.refresh import get_access_token, renew_access_token
from .models import ClientRegistration, FHIRServer, Launch, TokenGrant
from .protocol.scopes import ScopeSet
from .servers.http import EHRTransport
from .signals import fhir_request_finished
from .tracing import span

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

__all__ = [
    "Connection",
    "backend_client_for",
    "build_async_client",
    "build_fhir_client",
    "connections_of",
    "fetch_patient_name",
    "fhir_client_for",
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
    Return a client that uses an earlier grant, for code without a signed-in user.

    Args:
        user, server: owner and server; exactly one of the owner's connections there
            must match, and its newest grant is used.
        patient_id: only consider the connection to this patient's record.
        grant: use this grant instead of looking one up.

    Returns:
        A client that refreshes its token automatically; for a backend service's grant,
        the same as :func:`backend_client_for`.

    Raises:
        NoGrantError: no usable grant matches, or *grant* has ended.
        AmbiguousGrantError: several connections match; the message says what differs.
        TypeError: neither a grant, nor a user and a server.
    """
    if grant is not None:
        if TokenGrant.objects.find_usable(grant.pk) is None:
            raise NoGrantError("The grant has ended, or its user is deactivated.")
        if grant.is_for_service:
            return backend_client_for(grant.registration)
        return build_fhir_client(grant)
    if user is None or server is None:
        raise TypeError(
            "fhir_client_for() requires either a user and a server, or a grant."
        )
    matching = [
        each
        for each in connections_of(user)
        if each.server.pk == server.pk and patient_id in (None, each.patient_id)
    ]
    if not matching:
        raise NoGrantError("The user has no usable offline grant here.")
    if len(matching) > 1:
        raise AmbiguousGrantError(_describe_difference(matching))
    return matching[0].fhir


def _describe_difference(connections: Sequence[Connection]) -> str:
    number = f"{len(connections)} connections of this user match"
    if len({each.patient_id for each in connections}) > 1:
        return f"{number}, to the records of different patients; pass patient_id."
    accounts = ", ".join(str(each.grant.identity_id) for each in connections)
    return (
        f"{number}, of different accounts at the server (identities {accounts}) and "
        "without a patient; pass the grant of one of them."
    )


class Connection:
    """
    What a user has connected: one patient's record at one server.

    Of all grants for it, the newest is used.  Without a patient, each account at the
    server is a connection.

    Attributes:
        grant: the newest usable grant.
    """

    def __init__(self, grant: TokenGrant) -> None:
        self.grant = grant

    def __repr__(self) -> str:
        return f"<Connection: grant {self.grant.pk}>"

    @property
    def server(self) -> FHIRServer:
        """Where the record is kept."""
        return self.grant.registration.server

    @property
    def patient_id(self) -> str:
        """ID of the patient; empty for a connection without one."""
        return self.grant.patient_id

    @property
    def patient_name(self) -> str:
        """
        The patient's name, or "" if the scopes do not include it.

        The first access requests it from the server; then it is stored, encrypted,
        until the connection ends.  "" also if it could not be read.
        """
        grant = self.grant
        if not grant.patient_name and grant.may_read_name:
            try:
                name = fetch_patient_name(grant)
            except SMARTError as exc:
                logger.info("Grant %s: its patient's name: %s", grant.pk, exc.code)
            else:
                TokenGrant.objects.note_patient_name(grant, name)
        return grant.patient_name

    @property
    def can_open(self) -> bool:
        """Whether a patient made it, and can open it like a chart."""
        return self.grant.is_of_patient

    @property
    def since(self) -> datetime:
        """When it was connected, or connected again."""
        return self.grant.created_at

    @property
    def scopes(self) -> ScopeSet:
        """The scopes of the current access token."""
        return self.grant.scopes

    @cached_property
    def fhir(self) -> FHIRClient:
        """A client that refreshes its token automatically."""
        return build_fhir_client(self.grant)


def connections_of(user: AbstractBaseUser | AnonymousUser) -> list[Connection]:
    """
    Return what *user* has connected and this site can use while they are away.

    That is one connection for each server and patient, whichever launches it came from;
    those connected first come first.  An anonymous or deactivated user has none.
    """
    if user.pk is None or not user.is_active:
        # An anonymous user would match grants without a user.
        return []
    grants = (
        TokenGrant.objects.usable()
        .offline()
        .filter(user_id=user.pk)
        .select_related("registration__server", "identity")
        .order_by("pk")
    )
    # Compared here, because not every database compares patient ids exactly.
    newest = {each.connection: each for each in grants}
    return [Connection(grant) for grant in newest.values()]


def fetch_patient_name(
    grant: TokenGrant, *, transport: EHRTransport | None = None
) -> str:
    """
    Request the name of *grant*'s patient, whose resource its scopes include.

    Args:
        transport: another transport, such as one with a deadline.

    Raises:
        SMARTError: it could not be read.
    """
    fhir = build_fhir_client(grant, transport=transport)
    patient = fhir.read("Patient", grant.patient_id)
    return get_name(patient, today=timezone.localdate())


def backend_client_for(registration: ClientRegistration) -> FHIRClient:
    """
    Return a client for a backend service: this site itself, with ``system/`` scopes.

    Nothing is sent before the first request.  All processes share the access token;
    one of them replaces it shortly before it expires.

    Args:
        registration: has a ``system_scope`` and authenticates with ``private_key_jwt``,
            or with a client secret if the server does not support keys.

    Returns:
        A client that gets its tokens automatically; threads may share it.

    Raises:
        InactiveRegistrationError: *registration* or its server is inactive, or has no
            ``system_scope``.
        CredentialsError: the registration does not authenticate.

    Spec: SMART App Launch 2.2, "Backend Services".
    """
    service = BackendService(registration)
    server = registration.server
    return FHIRClient(
        base_url=server.base_url,
        tokens=service,
        transport=EHRTransport(server),
        observer=_Observer(lambda: service.grant),
        boundary=_get_boundary(server),
    )


def build_fhir_client(
    grant: TokenGrant,
    *,
    launch: Launch | None = None,
    base_url: str = "",
    transport: EHRTransport | None = None,
    keeps_to_record: bool = True,
) -> FHIRClient:
    """
    Return a client that sends *grant*'s token with every request (FHIR-01).

    Args:
        launch: whose requests they are, for the signal.
        base_url: where the server's configuration says that app state is (RESP-20).
        transport: another transport, such as one with a shorter timeout.
        keeps_to_record: whether to restrict ``patient/`` scopes to the patient's
            record, whatever the server allows.
    """
    server = grant.registration.server
    patient_id = None if base_url else grant.patient_id or None
    return FHIRClient(
        base_url=base_url or server.base_url,
        tokens=_GrantTokens(grant),
        transport=transport or EHRTransport(server),
        observer=_Observer(lambda: grant, launch=launch, patient_id=patient_id),
        boundary="base" if base_url else _get_boundary(server),
        patient_id=patient_id,
        record_rules=RecordRules(
            may_write_unread=grant.registration.unread_changes,
            # A refresh can take these scopes away, and leave others.
            always=grant.is_for_patient,
        )
        if keeps_to_record
        else None,
    )


class _GrantTokens:
    """The token of a grant, refreshed when it expires."""

    def __init__(self, grant: TokenGrant) -> None:
        self._grant = grant

    @property
    def scopes(self) -> ScopeSet:
        return self._grant.scopes

    def get(self) -> str:
        return get_access_token(self._grant)

    # A site's view may fail in here; its error report must not show the token.
    @sensitive_variables()
    def renew(self, used: str) -> str:
        return renew_access_token(self._grant, used)


class _Observer:
    """Write the audit line of each request, and send the signal."""

    def __init__(
        self,
        get_grant: Callable[[], TokenGrant | None],
        *,
        launch: Launch | None = None,
        patient_id: str | None = None,
    ) -> None:
        self._get_grant = get_grant
        self._launch = launch
        self._patient_id = patient_id

    def on_request(self, exchange: FHIRExchange) -> None:
        grant, launch = self._get_grant(), self._launch
        status = exchange.status_code
        refused = str(status) if status and status >= 400 else ""
        with span(
            f"fhir {exchange.interaction}",
            seconds=exchange.duration,
            server=grant.registration.server.slug if grant is not None else "",
            interaction=exchange.interaction,
            resource_type=exchange.resource_type,
            status_code=status,
            error=exchange.error_code or refused,
        ):
            pass
        if _audit.isEnabledFor(logging.INFO):
            self._note(exchange, grant)
        fhir_request_finished.send(
            sender=FHIRClient, exchange=exchange, grant=grant, launch=launch
        )

    def _note(self, exchange: FHIRExchange, grant: TokenGrant | None) -> None:
        launch = self._launch
        user_id = grant.user_id if grant is not None else None
        grant_id = grant.pk if grant is not None else None
        launch_id = launch.pk if launch is not None else None
        _audit.info(
            "%s %s: %s in %.3f s (user %s, grant %s, launch %s, request %s)",
            exchange.interaction,
            exchange.resource_type or "-",
            exchange.status_code or "no response",
            exchange.duration,
            user_id,
            grant_id,
            launch_id,
            exchange.request_id,
            extra={
                "user_id": user_id,
                "grant_id": grant_id,
                "launch_id": launch_id,
                "server": grant.registration.server.slug if grant is not None else "",
                "fhir_user": launch.fhir_user if launch is not None else "",
                "patient_id": self._patient_id or "",
                "interaction": exchange.interaction,
                "resource_type": exchange.resource_type,
                "status_code": exchange.status_code,
                "duration": exchange.duration,
                "request_id": exchange.request_id,
            },
        )

    def on_missing_scope(self, scope: str) -> None:
        if conf.SMART_SCOPE_CHECK == "warn":
            logger.warning(
                "A FHIR request needs the scope %s, which was not granted: "
                "request it in the registration, or narrow the request.",
                scope,
            )
        elif conf.SMART_SCOPE_CHECK == "raise":
            raise InsufficientScopeError(
                f"The request needs the scope {scope}, which was not granted; "
                "nothing was sent.",
                missing=scope,
            )


def build_async_client(client: FHIRClient) -> AsyncFHIRClient:
    """
    Wrap *client* for async code, which awaits every method that sends a request.

    Each call runs in one of 64 threads that this process has for
    the server; a database connection that a refresh opened there is closed after it.
    """
    return AsyncFHIRClient(
        client,
        executor=_get_executor(os.getpid(), client.base_url),
        after=connections.close_all,
    )


# Of this process, for each server.
_ASYNC_THREADS = 64


@lru_cache(maxsize=256)
def _get_executor(pid: int, base_url: str) -> Executor:
    """
    The pool of one server, so that a slow one takes no threads from the others.

    Of process *pid*: forked children inherit no threads.
    """
    return ThreadPoolExecutor(_ASYNC_THREADS, thread_name_prefix="django_smart")


def _get_boundary(server: FHIRServer) -> Literal["base", "origin"]:
    is_origin = server.quirks.bearer_boundary == "origin"
    return "origin" if is_origin else "base"
