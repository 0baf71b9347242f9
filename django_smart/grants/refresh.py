"""
Refresh: one at a time for each grant, across threads, processes and hosts.

The lease determines who sends the request, and its holder processes the response.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from functools import partial

from django.db import Error
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from ..exceptions import (
    GrantError,
    InactiveRegistrationError,
    ReauthorizationRequiredError,
    RefreshInTransactionError,
    SMARTError,
    TokenError,
    TokenResponseError,
)
from ..models import ClientRegistration, TokenGrant
from ..protocol.client_auth import ClientAuthentication
from ..protocol.messages import HTTPRequest
from ..protocol.token import build_refresh_request
from ..servers.discovery import get_configuration
from ..servers.http import (
    build_client_authentication,
    send_patiently,
    whole_call_seconds,
)
from .deployment import check_owner
from .lease import exchange_with_lease, get_fresh_grant, lease_length, note_failure
from .refresh_response import take_answer, take_refusal
from .separate_connection import (
    is_in_transaction,
    refuse_in_transaction,
    unless_locked,
)
from .stopping import may_refresh

__all__ = ["build_request", "get_access_token", "refresh_grant", "renew_access_token"]

logger = logging.getLogger(__name__)

# Precision of the time at which a grant was last used.
_USE_PRECISION = timedelta(days=1)
# Seconds for which a grant that was read is assumed to be current.
_KNOWN_FOR = 60.0


# A site's view may fail during a refresh; the error report must not show tokens.
@sensitive_variables()
def get_access_token(grant: TokenGrant) -> str:
    """
    Return a valid access token of *grant*, after a refresh if needed (RESP-05).

    A client used for longer than a minute notices if the grant was ended elsewhere.

    Raises:
        ReauthorizationRequiredError: the grant has ended, and its owner must connect
            again; or its owner is deactivated.
        GrantError: another process is refreshing it and takes too long.
        RefreshInTransactionError: a refresh is needed inside ``atomic()`` on SQLite.
        InactiveRegistrationError: the registration or its server is inactive; the
            refresh token is kept.
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


@sensitive_variables()
def renew_access_token(grant: TokenGrant, rejected: str) -> str:
    """
    Return a token other than *rejected*, which the FHIR server refused with 401.

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
    Refresh *grant* for an operator, unless another process does or did.

    Args:
        grant: as it was when found to be due; tokens stored since are noticed.

    Returns:
        ``True`` if a request was sent.

    Raises: as :func:`get_access_token`; also inside ``atomic()`` on any database.
    """
    refuse_in_transaction()
    _check_user(grant)
    return _try_refresh(grant)


def _note_use(grant: TokenGrant, *, now: datetime) -> None:
    """Record at most once a day that *grant* is used (``SMART_REFRESH_IDLE_AFTER``)."""
    if not grant.is_offline:
        return
    if grant.last_used_at is not None and now - grant.last_used_at < _USE_PRECISION:
        return
    # The caller's transaction would keep the row locked; a later request records it.
    if is_in_transaction():
        return
    grant.last_used_at = now
    try:
        TokenGrant.objects.filter(pk=grant.pk).update(last_used_at=now)
    except Error as exc:
        # During a failover, the token can still be used.
        logger.warning(
            "Grant %s: its use was not noted (%s)", grant.pk, type(exc).__name__
        )


def _look_again(grant: TokenGrant) -> None:
    """Reload *grant* every minute: a long task must not outlive a disconnection."""
    if grant.known_at is None:
        grant.known_at = time.monotonic()
    if time.monotonic() - grant.known_at < _KNOWN_FOR:
        return
    # A transaction may be broken, or see outdated rows.
    if is_in_transaction():
        return
    fresh = TokenGrant.objects.find_usable(grant.pk)
    if fresh is None:
        raise ReauthorizationRequiredError(
            "The grant has ended, or its user is deactivated."
        )
    _take_over(grant, fresh)


def _take_over(grant: TokenGrant, fresh: TokenGrant) -> None:
    for field in TokenGrant._meta.concrete_fields:
        setattr(grant, field.attname, getattr(fresh, field.attname))
    grant.known_at = time.monotonic()


def _refresh_outside_transaction(grant: TokenGrant, *, rejected: str | None) -> None:
    find = partial(_find, grant.pk)
    try:
        fresh = get_fresh_grant(find, _try_refresh, rejected=rejected)
    except RefreshInTransactionError:
        # It was called before atomic() started: its outcome is the reason.
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
    _check_user(grant)
    return grant


def _check_user(grant: TokenGrant) -> None:
    if grant.user is not None and not grant.user.is_active:
        raise ReauthorizationRequiredError("The user of this grant is deactivated.")


def _try_refresh(grant: TokenGrant) -> bool:
    """
    Refresh *grant* if its lease is free; return ``False`` if it is held elsewhere.
    """
    if not grant.refresh_token:
        TokenGrant.objects.filter(pk=grant.pk).end(
            TokenGrant.Status.EXPIRED, now=timezone.now(), error="expired"
        )
        raise ReauthorizationRequiredError(
            "The access token has expired, and there is no refresh token."
        )
    check_owner()
    _check_active(grant.registration)
    _check_not_stopped(grant.registration)
    try:
        # Before the lease, which covers only one request.
        registration = grant.registration
        configuration = get_configuration(registration.server, registration.client_id)
    except SMARTError as exc:
        note_failure(grant, exc, owner="", on_demand=True)
        raise
    return exchange_with_lease(
        grant,
        partial(
            _refresh_with_lease,
            token_endpoint=configuration.token_endpoint,
            held_until=time.monotonic() + lease_length().total_seconds(),
        ),
    )


def _check_active(registration: ClientRegistration) -> None:
    if not (registration.is_active and registration.server.is_active):
        raise InactiveRegistrationError(
            f"The registration at {registration.server.slug} is inactive, so no grant "
            "is refreshed."
        )


def _check_not_stopped(registration: ClientRegistration) -> None:
    """Let one request at a time test whether a stopped registration works again."""
    is_free = False
    with unless_locked("Registration %s is locked", registration.pk):
        is_free = may_refresh(registration)
    if is_free:
        return
    reason = registration.refresh_stop_reason
    message = "Refreshing is stopped for all grants of this registration."
    if reason == ClientRegistration.StopReason.CREDENTIALS_REFUSED:
        raise TokenResponseError(message, error=reason)
    raise TokenError(message, code=reason)


def _refresh_with_lease(
    grant: TokenGrant, *, token_endpoint: str, held_until: float
) -> bool:
    latest = held_until - whole_call_seconds()

    def build() -> HTTPRequest:
        nonlocal latest
        request = build_request(
            grant,
            token_endpoint=token_endpoint,
            client_authentication=build_client_authentication(
                grant.registration, token_endpoint=token_endpoint, clock=grant.clock
            ),
        )
        if time.monotonic() > latest:
            raise GrantError(
                "This process was suspended for a while, and another one may be "
                "refreshing the access token.",
                code="refresh_busy",
            )
        # A second attempt ends within the time limit of the first.
        latest = float("inf")
        return request

    response = send_patiently(build, server=grant.registration.server)
    try:
        finish = take_answer(grant, response)
    except TokenResponseError as exc:
        finish = take_refusal(grant, exc)
    return finish()


def build_request(
    grant: TokenGrant,
    *,
    token_endpoint: str,
    client_authentication: ClientAuthentication,
) -> HTTPRequest:
    """Build the request for new tokens of *grant*."""
    sends_scope = grant.registration.server.quirks.send_scope_on_refresh
    return build_refresh_request(
        token_endpoint=token_endpoint,
        refresh_token=grant.refresh_token,
        scope=grant.scope_granted if sends_scope else None,
        client_authentication=client_authentication,
    )


def _ended(grant: TokenGrant) -> ReauthorizationRequiredError:
    return ReauthorizationRequiredError(
        f"The grant has ended ({grant.status}); its owner has to connect again."
    )
