"""
A separate database connection, which a rollback of the caller does not affect.

It cannot use rows that the caller's transaction has locked, and would wait for them
forever, because the caller waits for it. So each wait is limited, except for the writes
that must not be lost: to a grant's row, which was free when its lease was taken.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

from django.db import Error, OperationalError, connections, router

from ..exceptions import RefreshInTransactionError
from ..models import TokenGrant
from .uninterrupted import uninterrupted

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = [
    "is_in_transaction",
    "refuse_in_transaction",
    "run_on_own_connection",
    "unless_locked",
    "waiting_for_locks",
]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# Other writers of a grant lock its row only for milliseconds.
_LIMIT = 3  # seconds
_LIMITED = {
    "postgresql": f"SET lock_timeout = '{_LIMIT}s'",
    "mysql": f"SET SESSION innodb_lock_wait_timeout = {_LIMIT}",
}
_UNLIMITED = {
    "postgresql": "RESET lock_timeout",
    "mysql": "SET SESSION innodb_lock_wait_timeout = DEFAULT",
}
_LOCK_NOT_AVAILABLE = ("55P03", 1205)  # PostgreSQL's state, MariaDB's number
_STATES = ("sqlstate", "pgcode")  # of psycopg, and of psycopg2


class _Thread(threading.local):
    is_limited = False


_thread = _Thread()


def is_in_transaction() -> bool:
    """Return whether the caller could roll back what is written now."""
    connection = _get_connection()
    if not connection.in_atomic_block:
        return not connection.get_autocommit()
    # Ignore the transaction that django.test.TestCase wraps around a test.
    outermost_of_test = getattr(connection.atomic_blocks[-1], "_from_testcase", False)
    return not outermost_of_test


def refuse_in_transaction() -> None:
    """
    Refuse what is not worth a connection of its own.

    Raises:
        RefreshInTransactionError: the caller could roll back new tokens.
    """
    if is_in_transaction():
        raise RefreshInTransactionError(
            "Grants that are due must be refreshed outside of a transaction: make the "
            "call before atomic() begins, and wrap no Celery task of django_smart in "
            "one."
        )


def run_on_own_connection(function: Callable[[], _Result]) -> _Result:
    """
    Call *function* in a separate thread; return or raise its result.

    Outside :func:`waiting_for_locks`, it does not wait for locks.

    Raises:
        RefreshInTransactionError: it needs a row that another transaction, most likely
            the caller's, has locked.
    """
    outcome: list[_Result] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _leave_pool()
            _execute(_LIMITED)
            _thread.is_limited = True
            outcome.append(function())
        except BaseException as exc:  # noqa: BLE001 (raised again by the caller)
            failure.append(exc)
        finally:
            _forget_limit()
            connections.close_all()

    # With the caller's context, in which errors are noted that a template hides.
    thread = threading.Thread(
        target=copy_context().run, args=(run,), name="django_smart-token", daemon=True
    )
    with uninterrupted():
        thread.start()
        thread.join()
    if not failure:
        return outcome[0]
    if _is_about_a_lock(failure[0]):
        raise RefreshInTransactionError(
            "A new access token is needed, but the surrounding transaction has locked "
            "a row that must be updated with it: make the call before atomic() begins, "
            "or before the row is locked."
        ) from failure[0]
    raise failure[0]


@contextmanager
def waiting_for_locks() -> Iterator[None]:
    """Wait for locked rows inside the block, as long as necessary."""
    if not _thread.is_limited:
        yield
        return
    _execute(_UNLIMITED)
    _thread.is_limited = False
    try:
        yield
    finally:
        _thread.is_limited = True
        # A broken connection is reopened, or fails at the next statement.
        with suppress(Error):
            _execute(_LIMITED)


def _is_about_a_lock(error: BaseException) -> bool:
    cause = error.__cause__
    if not isinstance(error, OperationalError) or cause is None:
        return False
    states = (getattr(cause, name, None) for name in _STATES)
    return any(code in _LOCK_NOT_AVAILABLE for code in (*states, *cause.args[:1]))


@contextmanager
def unless_locked(message: str, *args: object) -> Iterator[None]:
    """Leave the block at a locked row, and log that."""
    try:
        yield
    except OperationalError as exc:
        # This breaks a transaction.
        if _get_connection().in_atomic_block or not _is_about_a_lock(exc):
            raise
        logger.warning(message, *args)


def _leave_pool() -> None:
    """
    Open this thread's connection outside Django's pool.

    The caller keeps a pooled connection and waits: if all callers do, none is left.
    """
    connection = _get_connection()
    options = connection.settings_dict["OPTIONS"]
    if options.get("pool"):
        without = {**options, "pool": False}
        connections[connection.alias] = type(connection)(
            {**connection.settings_dict, "OPTIONS": without}, connection.alias
        )


def _forget_limit() -> None:
    """Reset the limit before, for example, PgBouncer reuses the connection."""
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
