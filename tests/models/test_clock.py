"""The clock that continues from the database's time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from django_smart.models.clock import DatabaseClock


def test_clock_goes_on_through_the_end_of_daylight_saving_time() -> None:
    # As a connection with a TIME_ZONE returns it: half past two, for the second time.
    berlin = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    passed = DatabaseClock(berlin)() - datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    assert timedelta(0) <= passed < timedelta(minutes=1)
