"""Writes that neither a concurrent write nor a short outage may lose."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from secrets import randbelow
from typing import TYPE_CHECKING, TypeVar

from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connections,
    router,
    transaction,
)

from ..models import ClientRegistration, TokenGrant
from .separate_connection import waiting_for_locks
from .uninterrupted import is_asked_to_stop

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["can_store", "insist", "store_together"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# Seconds for which a reachable database may refuse a write: during a failover, it is
# read-only for a while.
_LONGEST = 60.0
# Reported as OperationalError by MariaDB and SQLite, but permanent.
_MARIADB_SCHEMA = frozenset({1054, 1146})  # unknown column, no such table
_SQLITE_SCHEMA = "no such "
# Raised by concurrent transactions, too.
_PASSING = (IntegrityError, InternalError, OperationalError)
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 0.5
_TRIES = 4


def insist(write: Callable[[], _Result], *, grant_id: int | None = None) -> _Result:
    """
    Call *write* repeatedly while the database is unavailable.

    For new tokens: the EHR may have revoked the old ones, and these exist nowhere else.
    Retries without limit while the database cannot be reached, and for a minute while
    it is reachable but refuses.  What holds no tokens ends once the process should.

    Args:
        write: compare-and-set; it may have succeeded despite an error.
        grant_id: the grant of the tokens, for the log; ``None`` if there are none.

    Raises:
        OperationalError, InterfaceError, InternalError: from the last attempt, or from
            the only one inside a transaction.
    """
    using = router.db_for_write(TokenGrant)
    wait, refused, started = _FIRST_WAIT, 0.0, time.monotonic()
    reported = started
    while True:
        tried = time.monotonic()
        try:
            with waiting_for_locks():
                return write()
        except (InterfaceError, InternalError, OperationalError) as exc:
            connection = connections[using]
            if connection.in_atomic_block or _is_about_schema(exc):
                raise
            if grant_id is None and is_asked_to_stop():
                raise
            now = time.monotonic()
            if connection.connection is not None and connection.is_usable():
                refused += now - tried + wait
                if refused > _LONGEST:
                    raise
            if tried == started or now - reported > _LONGEST:
                reported = now
                logger.warning(
                    "Grant %s: not stored for %.0f s, trying again (%s)",
                    grant_id,
                    now - started,
                    type(exc).__name__,
                )
        _drop(connection)
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def _is_about_schema(error: Exception) -> bool:
    first = next(iter(error.args), None)
    return first in _MARIADB_SCHEMA or str(first).startswith(_SQLITE_SCHEMA)


def can_store(registration: ClientRegistration) -> bool:
    """
    Return whether the database accepts the columns that each refresh changes.

    Writes those of one grant again, and rolls that back.
    """
    using = router.db_for_write(TokenGrant)
    try:
        with transaction.atomic(using=using):
            grants = TokenGrant.objects.active().filter(registration=registration)
            grant = grants.order_by("refresh_due_at").first()
            if grant is not None:
                digest = grant.refresh_token_digest
                TokenGrant.objects.store_refreshed(grant, used_digest=digest)
            transaction.set_rollback(True, using=using)
    except DatabaseError as exc:
        name = type(exc).__name__
        logger.warning("Registration %s: still not stored (%s)", registration.pk, name)
        return False
    return True


def store_together(
    write: Callable[[], _Result],
    *,
    restart: Callable[[], None],
    is_stored: Callable[[], bool] = lambda: False,
) -> _Result:
    """
    Call *write* in a transaction, and again if a concurrent one interfered.

    Of two simultaneous callbacks, one may have created the row that the other did not
    find; or the database aborts one of them to resolve a deadlock.

    Args:
        restart: reverts what the last attempt changed in memory.
        is_stored: whether the last attempt was committed. Called if an error follows
            *write*: a commit may succeed although its acknowledgment is lost, and the
            site's ``on_commit`` hooks may fail afterwards. Such an error is only
            logged.

    Raises:
        IntegrityError, InternalError, OperationalError: from the last attempt.
    """
    connection = connections[router.db_for_write(TokenGrant)]
    tries, wait = 1, _FIRST_WAIT
    while True:
        is_written = False
        try:
            with transaction.atomic(using=connection.alias):
                result = write()
                is_written = True
            return result
        except Exception as exc:
            if is_written and not connection.in_atomic_block and insist(is_stored):
                logger.exception("Stored, but an error followed the commit")
                return result
            # A deadlock also aborts an outer transaction.
            is_over = connection.in_atomic_block and not isinstance(exc, IntegrityError)
            if not isinstance(exc, _PASSING) or is_over or tries == _TRIES:
                raise
            logger.info("Retrying a write (%s)", type(exc).__name__)
            if isinstance(exc, InternalError):
                _drop(connection)
        restart()
        time.sleep(wait * randbelow(1000) / 1000)
        tries, wait = tries + 1, 2 * wait


def _drop(connection: BaseDatabaseWrapper) -> None:
    """
    Make the next statement open a new connection.

    After a failover, PostgreSQL's old server may still run and refuse each write
    (``InternalError``); a pool would hand out its connection again.
    """
    if connection.vendor == "postgresql" and connection.connection is not None:
        connection.connection.close()
    connection.close()
