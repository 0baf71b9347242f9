"""
One request for new tokens at a time for each grant, across threads and processes.

A lease, taken by one conditional UPDATE, decides who sends the request; the others wait
for what it brings.  The request is made outside any transaction, so nothing is locked
while it is under way and a rollback cannot take the new tokens away.
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
    RefreshBusyError,
    RefreshInTransactionError,
    SMARTError,
    TokenResponseError,
    TokenServerError,
)
from ..models import TokenGrant
from ..servers.http import whole_call_seconds
from .due_times import get_retry_at
from .separate_connection import (
    is_in_transaction,
    note_exchange,
    run_on_own_connection,
    waiting_for_locks,
)

__all__ = [
    "can_store_tokens",
    "exchange_with_lease",
    "get_fresh_grant",
    "lease_length",
    "new_owner",
    "note_failure",
]

logger = logging.getLogger(__name__)

# How long a waiter sleeps before it looks again whether the holder is done.
_POLL_SECONDS = 0.05
# RFC 6749 section 5.2; any other text of the server's stays out of row and log.
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
    A grant whose access token has not ended and is not *rejected*.

    Args:
        find: the grant as the database has it; raises if there is none to go on with.
        exchange: gets new tokens into the grant, unless somebody else just does:
            :func:`exchange_with_lease` for one server.

    Raises:
        RefreshBusyError: another process holds the lease and takes too long.
        RefreshInTransactionError: called inside ``atomic()`` on SQLite, or with the
            grant's row locked, and nothing is sent; or with another row locked that
            goes with it, and what came is stored.
        SMARTError: what *find* or *exchange* raise.
    """
    if not is_in_transaction():
        return _exchange_or_wait(find, exchange, rejected=rejected)
    if not can_store_tokens():
        raise RefreshInTransactionError(
            "A new access token is needed, and inside a transaction SQLite could not "
            "store it safely: call before atomic() begins."
        )
    # On a connection of its own: a rollback of the caller's must not lose the tokens.
    return run_on_own_connection(
        lambda: _exchange_or_wait(find, exchange, rejected=rejected)
    )


def can_store_tokens() -> bool:
    """Whether new tokens can be stored from here: not inside ``atomic()`` on SQLite."""
    using = router.db_for_write(TokenGrant)
    return connections[using].vendor != "sqlite" or not is_in_transaction()


def exchange_with_lease(
    grant: TokenGrant, exchange: Callable[[TokenGrant], bool]
) -> bool:
    """
    Call *exchange* with *grant* if its lease is free.

    An error gives the lease back, is noted in the row, and is raised.

    Returns:
        What *exchange* returns, or ``False`` if somebody else holds the lease.
    """
    owner = new_owner()
    if not TokenGrant.objects.take_lease(grant, owner=owner, length=lease_length()):
        return False
    note_exchange()
    try:
        return exchange(grant)
    except Exception as exc:
        with waiting_for_locks():
            note_failure(grant, exc, owner=owner)
        raise


def note_failure(grant: TokenGrant, error: Exception, *, owner: str) -> None:
    """
    Give the lease of *grant* back, and note *error* and the next attempt in its row.

    Args:
        owner: who holds the lease; nothing happens if somebody else does by now.
    """
    if isinstance(error, GrantError):
        # The grant has ended, and its lease with it.
        return
    retry_after = None
    code = error.code if isinstance(error, SMARTError) else "internal_error"
    if isinstance(error, TokenResponseError) and error.error in _REGISTERED_ERRORS:
        code = error.error
    elif isinstance(error, TokenServerError):
        retry_after = error.retry_after
    failures = grant.refresh_failures + 1
    changes: dict[str, object] = {
        "refresh_failures": failures,
        "last_error": code,
        "lease_owner": "",
        "lease_expires_at": None,
    }
    if grant.is_offline:
        changes["refresh_due_at"] = get_retry_at(
            failures=failures, now=grant.clock(), retry_after=retry_after
        )
    TokenGrant.objects.filter(pk=grant.pk, lease_owner=owner).update(**changes)
    fields = grant.build_log_fields("grant_refresh_failed", error_code=code)
    logger.warning("Grant %s has no new access token: %s", grant.pk, code, extra=fields)


def lease_length() -> timedelta:
    """Longer than the longest call, or two holders could send one refresh token."""
    return timedelta(seconds=whole_call_seconds() + 10)


def new_owner() -> str:
    """A name for one holder of leases, which no other has."""
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
            raise RefreshBusyError(
                "Another process is getting a new access token and takes too long."
            )
        time.sleep(_POLL_SECONDS)
