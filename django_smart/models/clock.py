"""The database's clock, which all hosts share."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models.functions import Now
from django.utils import timezone

__all__ = ["DatabaseClock", "DatabaseNow"]


class DatabaseNow(Now):
    """
    The current time of the database's clock, plus *offset*.

    A host with a wrong clock must not take a lease that another host still holds.
    """

    def __init__(self, offset: timedelta = timedelta()) -> None:
        super().__init__()
        self._microseconds = offset // timedelta(microseconds=1)

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """Use the time of this statement, not of the transaction."""
        sql = "(STATEMENT_TIMESTAMP() + %s * INTERVAL '1 microsecond')"
        return sql, [self._microseconds]

    def as_mysql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """Use UTC, as times are stored, whatever the time zone of the session."""
        return "(UTC_TIMESTAMP(6) + INTERVAL %s MICROSECOND)", [self._microseconds]

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """Use this host's clock: a file has no other."""
        now = timezone.now() + timedelta(microseconds=self._microseconds)
        return "%s", [connection.ops.adapt_datetimefield_value(now)]


class DatabaseClock:
    """
    A clock that continues from a time that a query returned.

    Args:
        now: the database's time, just read.
    """

    def __init__(self, now: datetime) -> None:
        # In the time zone of a connection, sums are of local time.
        self._now, self._since = now.astimezone(UTC), time.monotonic()

    def __call__(self) -> datetime:
        """Return the time now."""
        return self._now + timedelta(seconds=time.monotonic() - self._since)
