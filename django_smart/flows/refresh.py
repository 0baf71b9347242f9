"""
Refresh: one at a time for each grant, across threads, processes and hosts.

The lease decides who sends the request; the answer is written by compare-and-set on the
refresh token that was used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from time import monotonic

from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    ContextChangedError,
    MalformedTokenResponseError,
    ReauthorizationRequiredError,
    RefreshInTransactionError,
    SMARTError,
    TokenResponseError,
)
from ..models import TokenGrant
from ..protocol.client_auth import ClientAuthentication
from ..protocol.context import LaunchContext
from ..protocol.messages import HTTPRequest, HTTPResponse
from ..protocol.scopes import ScopeSet
from ..protocol.token import (
    TokenResponse,
    build_refresh_request,
    find_refresh_token,
    process_refresh_response,
)
from ..signals import grant_lost, grant_refreshed
from .continuity import end_changed_grant, keep_context, names_another_person
from .discovery import get_configuration
from .ending import revoke_tokens
from .events import describe_grant
from .exchange import build_client_authentication, send, send_patiently
from .lease import exchange_with_lease, get_fresh_grant, note_failure
from .own_connection import is_in_transaction, unless_locked
from .refused_credentials import resume_refreshes, stop_refreshes
from .schedule import get_refresh_due_at
from .storing import insist

__all__ = [
    "build_request",
    "get_access_token",
    "refresh_grant",
    "renew_access_token",
    "take_answer",
]

logger = logging.getLogger(__name__)

# How exactly it is known when a grant was used.
_USE_PRECISION = timedelta(days=1)
# Seconds for which what was read of a grant is taken for true.
_KNOWN_FOR = 60.0

_Send = Callable[[Callable[[], HTTPRequest]], HTTPResponse]


def get_access_token(grant: TokenGrant) -> str:
    """
    An access token of *grant* that has not ended, refreshed first if need be (RESP-05).

    A client that lives longer than a minute notices that the grant was ended elsewhere.

    Raises:
        ReauthorizationRequiredError: the grant has ended, and its owner has to
            reconnect; or its owner is deactivated.
        RefreshBusyError: another process is refreshing it and takes too long.
        RefreshInTransactionError: a refresh is needed inside ``atomic()`` on SQLite.
        TransportError, DiscoveryError, TokenError, CredentialsError: the refresh failed
            for now; the refresh token is kept.
    """
    if grant.status != TokenGrant.Status.ACTIVE:
        raise _ended(grant)
    now = timezone.now()
    _note_use(grant, now=now)
    _look_again(grant)
    if not grant.is_stale(now):
        return grant.access_token
    _refresh_outside_transaction(grant, rejected=None)
    return grant.access_token


def renew_access_token(grant: TokenGrant, rejected: str) -> str:
    """
    An access token other than *rejected*, which the FHIR server answered with 401.

    A request that used an outdated token gets the stored one, without a refresh.

    Raises: as :func:`get_access_token`.
    """
    if not grant.refresh_token:
        raise ReauthorizationRequiredError(
            "The server refused the access token, and there is no refresh token."
        )
    _refresh_outside_transaction(grant, rejected=rejected)
    return grant.access_token


def refresh_grant(grant: TokenGrant) -> bool:
    """
    Refresh *grant* in the background, unless somebody else just does or did.

    Args:
        grant: as it was when it was found to be due; tokens that came since are seen.

    Returns:
        Whether a request was sent.

    Raises: as :func:`get_access_token`.
    """
    # The worker comes again by itself, so it does not wait for a busy server.
    return _try_refresh(grant, send=lambda build_request: send(build_request()))


def _note_use(grant: TokenGrant, *, now: datetime) -> None:
    """Write, once a day, that *grant* is used: see ``SMART_REFRESH_IDLE_AFTER``."""
    if not grant.is_offline:
        return
    if grant.last_used_at is not None and now - grant.last_used_at < _USE_PRECISION:
        return
    # The caller's transaction would keep the row locked, and an event loop waits for
    # no database; another request will be a better moment.
    if is_in_transaction() or _is_in_event_loop():
        return
    TokenGrant.objects.note_use(grant, now=now)
    grant.last_used_at = now


def _look_again(grant: TokenGrant) -> None:
    """Read *grant* anew each minute: a long task must not outlive a disconnection."""
    known_at = grant.__dict__.setdefault("_known_at", monotonic())
    if monotonic() - known_at < _KNOWN_FOR:
        return
    # A transaction may be broken, or see the past.
    if is_in_transaction() or _is_in_event_loop():
        return
    fresh = TokenGrant.objects.usable().filter(pk=grant.pk).first()
    if fresh is None:
        raise ReauthorizationRequiredError(
            "The grant has ended, or its user is deactivated."
        )
    _take_over(grant, fresh)


def _take_over(grant: TokenGrant, fresh: TokenGrant) -> None:
    for field in TokenGrant._meta.concrete_fields:
        grant.__dict__[field.attname] = fresh.__dict__[field.attname]
    grant.__dict__["_known_at"] = monotonic()


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _refresh_outside_transaction(grant: TokenGrant, *, rejected: str | None) -> None:
    attempt = partial(_try_refresh, send=send_patiently)
    try:
        fresh = get_fresh_grant(partial(_find, grant.pk), attempt, rejected=rejected)
    except RefreshInTransactionError:
        # It was called before atomic() began: what came of that is the reason.
        if grant.refresh_failure is None:
            raise
        raise grant.refresh_failure from None
    _take_over(grant, fresh)


def _find(grant_id: int) -> TokenGrant:
    grant = TokenGrant.objects.read_with_clock(grant_id)
    if grant is None:
        raise RefreshInTransactionError(
            "The grant is not committed yet, so it cannot be refreshed."
        )
    if grant.status != TokenGrant.Status.ACTIVE:
        raise _ended(grant)
    if grant.user is not None and not grant.user.is_active:
        raise ReauthorizationRequiredError("The user of this grant is deactivated.")
    return grant


def _try_refresh(grant: TokenGrant, *, send: _Send) -> bool:
    """Refresh *grant* if its lease is free; ``False`` if somebody else holds it."""
    if not grant.refresh_token:
        TokenGrant.objects.filter(pk=grant.pk).end(
            TokenGrant.Status.EXPIRED, now=timezone.now(), error="expired"
        )
        raise ReauthorizationRequiredError(
            "The access token has ended, and there is no refresh token."
        )
    try:
        # Before the lease, which is for one request and no more.
        configuration = get_configuration(grant.registration.server)
    except SMARTError as exc:
        note_failure(grant, exc, owner="")
        raise
    return exchange_with_lease(
        grant,
        partial(
            _refresh_with_lease, send=send, token_endpoint=configuration.token_endpoint
        ),
    )


def _refresh_with_lease(grant: TokenGrant, *, send: _Send, token_endpoint: str) -> bool:
    response = send(
        lambda: build_request(
            grant,
            token_endpoint=token_endpoint,
            client_authentication=build_client_authentication(
                grant.registration, token_endpoint=token_endpoint
            ),
        )
    )
    return take_answer(grant, response)


def build_request(
    grant: TokenGrant,
    *,
    token_endpoint: str,
    client_authentication: ClientAuthentication,
) -> HTTPRequest:
    """Build the request for new tokens of *grant*."""
    sends_scope = grant.registration.server.send_scope_on_refresh
    return build_refresh_request(
        token_endpoint=token_endpoint,
        refresh_token=grant.refresh_token,
        scope=grant.scope if sends_scope else None,
        client_authentication=client_authentication,
    )


def take_answer(
    grant: TokenGrant, response: HTTPResponse, *, is_launched: bool = True
) -> bool:
    """
    Store what the EHR answered, at once (REF-14).

    Args:
        grant: with the refresh token that was sent, by the holder of the lease.
        is_launched: whether there may be an open launch, whose context goes along.

    Returns:
        Whether the tokens are those of the answer; ``False`` if newer ones were stored
        while it came.

    Raises:
        ReauthorizationRequiredError: the EHR has ended the grant; it is lost.
        ContextChangedError: the answer is about somebody else; the grant has ended.
        TokenError: there are no new tokens for now; the refresh token is kept.
    """
    try:
        return _store(grant, response, is_launched=is_launched)
    except TokenResponseError as exc:
        if exc.error == "invalid_client":
            with unless_locked("Grant %s: its registration is locked", grant.pk):
                stop_refreshes(grant.registration)
        if not exc.is_final:
            raise
        if not _lose(grant, error_code=exc.error):
            # The lease ran out, and another holder has rotated the token since.
            return False
        raise ReauthorizationRequiredError(
            "The EHR has ended this grant; its owner has to connect again."
        ) from exc


def _store(grant: TokenGrant, response: HTTPResponse, *, is_launched: bool) -> bool:
    used_digest = grant.refresh_token_digest
    now = grant.clock()
    tokens = _read(response, grant, now=now)
    _put(tokens, grant, now=now)
    # Before the new access token is used: a crash must not lose the refresh token.
    stored = insist(
        lambda: TokenGrant.objects.store_refreshed(grant, used_digest=used_digest)
    ) or _is_stored(grant)
    if tokens.context_changed or (
        stored and names_another_person(grant, tokens.id_token)
    ):
        end_changed_grant(grant, now=now)
        raise ContextChangedError(
            "The EHR's refresh named another patient, encounter or person; the launch "
            "was ended."
        )
    if not stored:
        if TokenGrant.objects.active().filter(pk=grant.pk).exists():
            # The lease ran out, and another holder has rotated the token since.
            return False
        _drop_unwanted(grant)
        raise ReauthorizationRequiredError("The grant was ended during its refresh.")
    if is_launched:
        keep_context(grant, tokens.parameters)
    with unless_locked("Grant %s: its registration is locked", grant.pk):
        resume_refreshes(grant.registration)
    logger.info(
        "Grant %s refreshed", grant.pk, extra=describe_grant("grant_refreshed", grant)
    )
    grant_refreshed.send(sender=TokenGrant, grant=grant)
    return True


def _is_stored(grant: TokenGrant) -> bool:
    # The connection broke after the UPDATE and before its result came.
    return (
        TokenGrant.objects.active()
        .filter(
            pk=grant.pk,
            refresh_token_digest=grant.refresh_token_digest,
            received_at=grant.received_at,
        )
        .exists()
    )


def _read(response: HTTPResponse, grant: TokenGrant, *, now: datetime) -> TokenResponse:
    try:
        return process_refresh_response(
            response,
            granted=ScopeSet.parse(grant.scope_granted),
            now=now,
            previous_context=LaunchContext(
                patient=grant.patient_id or None, encounter=grant.encounter_id or None
            ),
            insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        )
    except MalformedTokenResponseError:
        if rotated := find_refresh_token(response):
            _keep_rotated(grant, rotated)
        raise


def _keep_rotated(grant: TokenGrant, refresh_token: str) -> None:
    used_digest = grant.refresh_token_digest
    grant.set_tokens(access_token=grant.access_token, refresh_token=refresh_token)
    if insist(lambda: TokenGrant.objects.store_rotated(grant, used_digest=used_digest)):
        logger.info("Grant %s: refresh token kept of a bad answer", grant.pk)


def _put(tokens: TokenResponse, grant: TokenGrant, *, now: datetime) -> None:
    grant.set_tokens(
        access_token=tokens.access_token,
        # A server that does not rotate leaves the old one in force (REF-07).
        refresh_token=tokens.refresh_token or grant.refresh_token,
    )
    if not tokens.context_changed:
        # Context that comes later than the launch holds from then on.
        grant.patient_id = tokens.context.patient or ""
        grant.encounter_id = tokens.context.encounter or ""
    grant.scope = str(tokens.scopes)
    grant.received_at = now
    grant.expires_at = tokens.expires_at
    grant.refresh_due_at = get_refresh_due_at(grant) if grant.is_offline else None
    grant.refresh_failures = 0
    grant.last_error = ""
    grant.lease_owner = ""
    grant.lease_expires_at = None


def _lose(grant: TokenGrant, *, error_code: str) -> bool:
    # Only if the refused token is still the stored one (a compare-and-set as above).
    ended = TokenGrant.objects.filter(
        pk=grant.pk, refresh_token_digest=grant.refresh_token_digest
    ).end(TokenGrant.Status.NEEDS_REAUTHORIZATION, now=timezone.now(), error=error_code)
    if ended:
        grant.status = TokenGrant.Status.NEEDS_REAUTHORIZATION
        fields = describe_grant("grant_lost", grant, error_code=error_code)
        logger.warning("Grant %s lost: %s", grant.pk, error_code, extra=fields)
        grant_lost.send(sender=TokenGrant, grant=grant, error_code=error_code)
    return bool(ended)


def _drop_unwanted(grant: TokenGrant) -> None:
    # Disconnected while the answer was under way: its tokens are not ours to keep.  The
    # row's own, which the answer may have outdated, are told of as for any other end.
    try:
        revoke_tokens(grant)
    except SMARTError as exc:
        logger.warning("Grant %s: unwanted tokens not revoked (%s)", grant.pk, exc.code)


def _ended(grant: TokenGrant) -> ReauthorizationRequiredError:
    return ReauthorizationRequiredError(
        f"The grant has ended ({grant.status}); its owner has to connect again."
    )
