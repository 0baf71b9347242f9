"""
A database connection apart from the caller's, which a rollback of theirs cannot undo.

What the caller's transaction has locked is out of its reach, and waiting for it would
never end: the caller waits for us.  So each wait there has a limit, but for the writes
that must not get lost: to a grant's row, which was free when its lease was taken.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from django.db import Error, OperationalError, connections, router

from ..exceptions import RefreshInTransactionError
from ..models import TokenGrant

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = [
    "is_in_transaction",
    "note_exchange",
    "run_on_own_connection",
    "unless_locked",
    "waiting_for_locks",
]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# Whoever writes a grant beside us holds its row for milliseconds.
_LIMIT = 3  # seconds
_LIMITED = {
    "postgresql": f"SET lock_timeout = '{_LIMIT}s'",
    "mysql": f"SET SESSION innodb_lock_wait_timeout = {_LIMIT}",
}
_UNLIMITED = {
    "postgresql": "RESET lock_timeout",
    "mysql": "SET SESSION innodb_lock_wait_timeout = DEFAULT",
}
_NOTHING_SENT = "Nothing was sent."
_WHAT_CAME = "New tokens that came are stored."
_LOCK_NOT_AVAILABLE = ("55P03", 1205)  # PostgreSQL's state, MariaDB's number


class _Thread(threading.local):
    is_limited = has_exchanged = False


_thread = _Thread()


def is_in_transaction() -> bool:
    """Whether the caller could roll back what is written now."""
    connection = _get_connection()
    if not connection.in_atomic_block:
        return not connection.get_autocommit()
    # The transaction that django.test.TestCase wraps around a test is not the site's.
    outermost_of_test = getattr(connection.atomic_blocks[-1], "_from_testcase", False)
    return not outermost_of_test


def run_on_own_connection(function: Callable[[], _Result]) -> _Result:
    """
    What *function* returns or raises, called in a thread of its own.

    Outside of :func:`waiting_for_locks` it waits for none.

    Raises:
        RefreshInTransactionError: it met a row that somebody, most likely the caller,
            keeps locked.
    """
    outcome: list[_Result] = []
    failure: list[BaseException] = []
    exchanged: list[bool] = []

    def run() -> None:
        try:
            _execute(_LIMITED)
            _thread.is_limited = True
            outcome.append(function())
        except BaseException as exc:  # noqa: BLE001 (raised again by the caller)
            failure.append(exc)
        finally:
            exchanged.append(_thread.has_exchanged)
            _forget_limit()
            connections.close_all()

    thread = threading.Thread(target=run, name="django_smart-token", daemon=True)
    thread.start()
    thread.join()
    if not failure:
        return outcome[0]
    if _is_about_a_lock(failure[0]):
        raise RefreshInTransactionError(
            "A new access token is needed, and a row that goes with it is locked by "
            "the transaction this was called in: call before atomic() begins, or "
            f"before the row is locked. {_WHAT_CAME if exchanged[0] else _NOTHING_SENT}"
        ) from failure[0]
    raise failure[0]


def note_exchange() -> None:
    """From now on something may be sent."""
    _thread.has_exchanged = True


@contextmanager
def waiting_for_locks() -> Iterator[None]:
    """Wait for locked rows in the block, for as long as it takes."""
    if not _thread.is_limited:
        yield
        return
    _execute(_UNLIMITED)
    _thread.is_limited = False
    try:
        yield
    finally:
        _thread.is_limited = True
        # A connection that broke is made anew, or fails at the next statement.
        with suppress(Error):
            _execute(_LIMITED)


def _is_about_a_lock(error: BaseException) -> bool:
    cause = error.__cause__
    if not isinstance(error, OperationalError) or cause is None:
        return False
    code = getattr(cause, "sqlstate", None) or next(iter(cause.args), None)
    return code in _LOCK_NOT_AVAILABLE


@contextmanager
def unless_locked(message: str, *args: object) -> Iterator[None]:
    """Leave the block at a locked row, with a line in the log."""
    try:
        yield
    except OperationalError as exc:
        # A transaction is broken by it.
        if _get_connection().in_atomic_block or not _is_about_a_lock(exc):
            raise
        logger.warning(message, *args)


def _forget_limit() -> None:
    """Before a pool gives the connection to somebody else."""
    if _get_connection().connection is not None:
        with suppress(Error):
            _execute(_UNLIMITED)


def _execute(statements: dict[str, str]) -> None:
    connection = _get_connection()
    if connection.vendor in statements:
        with connection.cursor() as cursor:
            cursor.execute(statements[connection.vendor])


def _get_connection() -> BaseDatabaseWrapper:
    return connections[router.db_for_write(TokenGrant)]
