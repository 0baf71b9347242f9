"""
Refresh: one at a time for each grant, across threads, processes and hosts.

The lease decides who sends the request, and its holder takes what is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from django.utils import timezone

from ..exceptions import (
    ReauthorizationRequiredError,
    RefreshInTransactionError,
    SMARTError,
    TokenResponseError,
)
from ..models import TokenGrant
from ..protocol.client_auth import ClientAuthentication
from ..protocol.messages import HTTPRequest, HTTPResponse
from ..protocol.token import build_refresh_request
from ..servers.discovery import get_configuration
from ..servers.http import build_client_authentication, send, send_patiently
from .lease import exchange_with_lease, get_fresh_grant, note_failure
from .refresh_response import take_answer, take_refusal
from .separate_connection import is_in_transaction

__all__ = ["build_request", "get_access_token", "refresh_grant", "renew_access_token"]

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
    if grant.known_at is None:
        grant.known_at = time.monotonic()
    if time.monotonic() - grant.known_at < _KNOWN_FOR:
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
        setattr(grant, field.attname, getattr(fresh, field.attname))
    grant.known_at = time.monotonic()


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
    try:
        finish = take_answer(grant, response)
    except TokenResponseError as exc:
        return take_refusal(grant, exc)
    return finish()


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


def _ended(grant: TokenGrant) -> ReauthorizationRequiredError:
    return ReauthorizationRequiredError(
        f"The grant has ended ({grant.status}); its owner has to connect again."
    )
