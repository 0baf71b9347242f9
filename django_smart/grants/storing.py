"""Writes that must not be lost because of another one, or of a moment's outage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from secrets import randbelow
from typing import TYPE_CHECKING, TypeVar

from django.db import (
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    connection,
    connections,
    router,
    transaction,
)

from ..models import TokenGrant
from .separate_connection import waiting_for_locks

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["insist", "store_together"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# A database that fails over is back by then.
_LONGEST = 60.0
_FIRST_WAIT = 0.05
_LONGEST_WAIT = 0.5
_TRIES = 4


def insist(write: Callable[[], _Result]) -> _Result:
    """
    Do *write*, again and again while the database cannot be reached.

    For new tokens: the EHR may have taken the old ones back, and nobody else has these.

    Args:
        write: compare-and-set; it may have happened although an error came.

    Raises:
        OperationalError, InterfaceError, InternalError: of the last try, or of the only
            one inside a transaction.
    """
    using = router.db_for_write(TokenGrant)
    deadline = time.monotonic() + _LONGEST
    wait = _FIRST_WAIT
    while True:
        try:
            with waiting_for_locks():
                return write()
        except (InterfaceError, InternalError, OperationalError) as exc:
            if connections[using].in_atomic_block or time.monotonic() > deadline:
                raise
            logger.warning(
                "New tokens are not stored yet, once more (%s)", type(exc).__name__
            )
        _drop(connections[using])
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def store_together(
    write: Callable[[], _Result], *, restart: Callable[[], None]
) -> _Result:
    """
    Do *write* in a transaction, and again where another one got in its way.

    Of two callbacks at one moment one may have made the row that the other looked for
    in vain; or the database ends one of them, to take both out of a deadlock.

    Args:
        restart: takes back what the last try changed in memory.

    Raises:
        IntegrityError, InternalError, OperationalError: of the last try.
    """
    tries, wait = 1, _FIRST_WAIT
    while True:
        try:
            with transaction.atomic():
                return write()
        except (IntegrityError, InternalError, OperationalError) as exc:
            # A deadlock takes an outer transaction with it.
            is_over = connection.in_atomic_block and not isinstance(exc, IntegrityError)
            if is_over or tries == _TRIES:
                raise
            logger.info("A write is tried once more (%s)", type(exc).__name__)
            if isinstance(exc, InternalError):
                _drop(connection)
        restart()
        time.sleep(wait * randbelow(1000) / 1000)
        tries, wait = tries + 1, 2 * wait


def _drop(connection: BaseDatabaseWrapper) -> None:
    """
    Have the next statement open another connection.

    After a failover PostgreSQL's old server may be there still, and refuse each write
    (an ``InternalError``); a pool would give its connection out once more.
    """
    if connection.vendor == "postgresql" and connection.connection is not None:
        connection.connection.close()
    connection.close()
