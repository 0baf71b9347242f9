"""
One token request at a time for each grant, across threads and processes.

A lease, taken with one conditional UPDATE, determines who sends the request; the others
wait for its result. The request is made outside any transaction, so nothing is locked
during the request, and a rollback cannot discard the new tokens.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from datetime import timedelta

from django.db import connections, router

from ..exceptions import (
    GrantError,
    RefreshInTransactionError,
    SMARTError,
    TokenResponseError,
    TokenServerError,
)
from ..models import TokenGrant
from ..servers.discovery import note_token_error
from ..servers.http import whole_call_seconds
from .counting import SUCCESS, count_refresh
from .due_times import get_retry_at
from .separate_connection import (
    is_in_transaction,
    run_on_own_connection,
    waiting_for_locks,
)
from .uninterrupted import uninterrupted

__all__ = [
    "can_store_tokens",
    "exchange_with_lease",
    "get_failure_code",
    "get_fresh_grant",
    "lease_length",
    "new_owner",
    "note_failure",
]

logger = logging.getLogger(__name__)

# How long a waiter sleeps before it checks again whether the holder is done.
_POLL_SECONDS = 0.05
# RFC 6749 section 5.2; no other text of the server is stored or logged.
_REGISTERED_ERRORS = frozenset(
    [
        "invalid_client",
        "invalid_request",
        "invalid_scope",
        "unauthorized_client",
        "unsupported_grant_type",
    ]
)


def get_fresh_grant(
    find: Callable[[], TokenGrant],
    exchange: Callable[[TokenGrant], bool],
    *,
    rejected: str | None,
) -> TokenGrant:
    """
    Return a grant whose access token has not expired and is not *rejected*.

    Args:
        find: reads the grant from the database; raises if it cannot be used.
        exchange: stores new tokens in the grant, unless another process is doing so:
            :func:`exchange_with_lease` for one server.

    Raises:
        GrantError: another process holds the lease and takes too long.
        RefreshInTransactionError: called inside ``atomic()`` on SQLite, or with the
            grant's row locked, and nothing was sent; or with another related row
            locked, and the new tokens were stored.
        SMARTError: what *find* or *exchange* raise.
    """
    if not is_in_transaction():
        return _exchange_or_wait(find, exchange, rejected=rejected)
    if not can_store_tokens():
        raise RefreshInTransactionError(
            "A new access token is needed, but inside a transaction SQLite cannot "
            "store it safely: make the call before atomic() begins."
        )
    # On a connection of its own: a rollback of the caller's must not lose the tokens.
    return run_on_own_connection(
        lambda: _exchange_or_wait(find, exchange, rejected=rejected)
    )


def can_store_tokens() -> bool:
    """Return whether tokens can be stored now: not inside ``atomic()`` on SQLite."""
    using = router.db_for_write(TokenGrant)
    return connections[using].vendor != "sqlite" or not is_in_transaction()


def exchange_with_lease(
    grant: TokenGrant, exchange: Callable[[TokenGrant], bool]
) -> bool:
    """
    Call *exchange* with *grant* if its lease is free.

    On an error, release the lease, record the error in the row, and raise it.

    Returns:
        What *exchange* returns, or ``False`` if somebody else holds the lease.
    """
    owner = new_owner()
    with uninterrupted():
        if not TokenGrant.objects.take_lease(grant, owner=owner, length=lease_length()):
            return False
        started = time.monotonic()
        try:
            is_done = exchange(grant)
        except Exception as exc:
            seconds = time.monotonic() - started
            note_token_error(grant.registration, exc)
            with waiting_for_locks():
                note_failure(grant, exc, owner=owner, on_demand=True)
            count_refresh(grant, get_failure_code(exc), seconds=seconds)
            raise
        count_refresh(grant, SUCCESS, seconds=time.monotonic() - started)
        return is_done


def note_failure(
    grant: TokenGrant, error: Exception, *, owner: str, on_demand: bool = False
) -> None:
    """
    Release the lease of *grant*; record *error* and the next attempt in its row.

    Args:
        owner: holder of the lease; if another one holds it now, nothing happens.
        on_demand: somebody waited for the token. Of such failures only the first
            counts, and workers keep to their own times: a page that is opened again
            and again must not postpone them.
    """
    if isinstance(error, GrantError):
        # The grant has ended, and with it the lease.
        return
    code = get_failure_code(error)
    retry_after = error.retry_after if isinstance(error, TokenServerError) else None
    before = grant.refresh_failures
    if isinstance(error, TokenResponseError) and code != grant.last_error:
        # Refusals with the same error are counted, because they may end the grant.
        before = 0
    failures = 1 if on_demand else before + 1
    changes: dict[str, object] = {
        "refresh_failures": max(failures, before),
        "last_error": code,
    }
    if grant.is_offline and (retry_after or not on_demand):
        due_at = get_retry_at(
            failures=failures,
            now=grant.clock(),
            ends_at=grant.ends_at,
            retry_after=retry_after,
        )
        if on_demand and grant.refresh_due_at:
            due_at = max(due_at, grant.refresh_due_at)
        changes["refresh_due_at"] = due_at
    TokenGrant.objects.give_back([grant.pk], owner=owner, **changes)
    fields = grant.build_log_fields("grant_refresh_failed", error_code=code)
    # An OAuth error is text that the server made up; foreign errors may show values.
    is_ours = isinstance(error, SMARTError) and not isinstance(
        error, TokenResponseError
    )
    logger.warning(
        "Grant %s has no new access token: %s%s",
        grant.pk,
        code,
        f" ({error})" if is_ours else "",
        extra=fields,
    )


def get_failure_code(error: Exception) -> str:
    """Return the code for *error* in a grant's row and in the log."""
    if isinstance(error, TokenResponseError) and error.error in _REGISTERED_ERRORS:
        return error.error
    return error.code if isinstance(error, SMARTError) else "internal_error"


def lease_length() -> timedelta:
    """
    Return a time longer than the longest call, so that only one holder sends a token.
    """
    return timedelta(seconds=whole_call_seconds() + 10)


def new_owner() -> str:
    """Return a unique name for a holder of leases."""
    return secrets.token_hex(16)


def _exchange_or_wait(
    find: Callable[[], TokenGrant],
    exchange: Callable[[TokenGrant], bool],
    *,
    rejected: str | None,
) -> TokenGrant:
    deadline = time.monotonic() + lease_length().total_seconds()
    while True:
        grant = find()
        is_stale = grant.is_stale(grant.clock())
        if not is_stale and (rejected is None or grant.access_token != rejected):
            return grant
        if exchange(grant):
            return grant
        if time.monotonic() > deadline:
            raise GrantError(
                "Another process is refreshing the access token and has not finished "
                "in time.",
                code="refresh_busy",
            )
        time.sleep(_POLL_SECONDS)
