"""The database's clock: the one that all hosts share."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from django.db.models.functions import Now
from django.utils import timezone

__all__ = ["DatabaseClock", "DatabaseNow"]


class DatabaseNow(Now):
    """
    The time now, or *offset* later, by the clock of the database.

    A host whose own clock is wrong must not take a lease that another one still holds.
    """

    def __init__(self, offset: timedelta = timedelta()) -> None:
        super().__init__()
        self._microseconds = offset // timedelta(microseconds=1)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """As of this statement, not of the transaction."""
        sql = "(STATEMENT_TIMESTAMP() + %s * INTERVAL '1 microsecond')"
        return sql, [self._microseconds]

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """In UTC, as times are stored, whatever the time zone of the session."""
        return "(UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND)", [self._microseconds]

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """Of this host: the file has no other."""
        now = timezone.now() + timedelta(microseconds=self._microseconds)
        return "%s", [connection.ops.adapt_datetimefield_value(now)]


class DatabaseClock:
    """
    Goes on from a time that a query brought, whatever the clock of this host says.

    Args:
        now: by the clock of the database, a moment ago.
    """

    def __init__(self, now: datetime) -> None:
        self._now, self._since = now, time.monotonic()

    def __call__(self) -> datetime:
        """Return the time now."""
        return self._now + timedelta(seconds=time.monotonic() - self._since)
