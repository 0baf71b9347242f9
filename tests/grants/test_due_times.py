"""When a grant is due, and that the next tick of beat still comes in time."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_smart.grants.due_times import get_refresh_due_at, get_retry_at
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from django_smart.protocol.quirks import Quirks
from django_smart.schedule import BEAT_SCHEDULE

RECEIVED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
TICK = BEAT_SCHEDULE["django_smart.refresh_due_grants"]["schedule"].run_every
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
# What the task, the worker and the request to the EHR take.
WORK = timedelta(seconds=3)


def wait_for(
    lifetime: int, *, unused: timedelta = timedelta(0), **quirks: Any
) -> timedelta:
    """Time from the tokens to when they are due; *quirks* are the server's."""
    grant = TokenGrant(
        registration=ClientRegistration(server=FHIRServer(quirks=Quirks(**quirks))),
        received_at=RECEIVED_AT,
        expires_at=RECEIVED_AT + timedelta(seconds=lifetime),
        last_used_at=RECEIVED_AT - unused,
    )
    return get_refresh_due_at(grant) - RECEIVED_AT


@pytest.mark.compliance("REF-09")
@pytest.mark.parametrize("lifetime", [45, 60, 300, 3600])
def test_the_tick_after_a_token_is_due_comes_before_its_end(lifetime: int) -> None:
    for _ in range(20):
        assert wait_for(lifetime) + TICK + WORK <= timedelta(seconds=lifetime)


@pytest.mark.parametrize("lifetime", [0, 1, 8, 20])
def test_tokens_that_end_at_once_are_not_refreshed_all_the_time(lifetime: int) -> None:
    assert wait_for(lifetime) == timedelta(seconds=30)


def test_a_long_token_is_due_in_the_last_part_of_its_life() -> None:
    for _ in range(20):
        assert timedelta(minutes=39) <= wait_for(3600) <= timedelta(minutes=45)


def test_grants_of_one_hour_do_not_come_due_in_one_minute() -> None:
    # The most crowded minute of a million that were given at once, by a sample.
    waits = Counter(wait_for(3600) // timedelta(minutes=1) for _ in range(6000))
    assert len(waits) >= 6
    assert max(waits.values()) < 1200


# Grants that die unused


def test_long_token_is_refreshed_before_the_refresh_token_dies_unused() -> None:
    year = 365 * DAY
    for _ in range(20):
        due = wait_for(year // SECOND, refresh_token_lifetime=90 * DAY)
        assert 0.64 * 90 * DAY <= due <= 0.751 * 90 * DAY
    # Where nothing is known of its life it is not left alone for a year either.
    assert wait_for(year // SECOND) <= 7 * DAY


def test_grant_that_nobody_uses_is_only_kept_alive(settings: Any) -> None:
    lifetime = {"refresh_token_lifetime": 90 * DAY}
    assert wait_for(3600, unused=60 * DAY, **lifetime) < HOUR
    settings.SMART_REFRESH_IDLE_AFTER = 30 * 24 * 3600
    assert wait_for(3600, unused=29 * DAY, **lifetime) < HOUR
    assert wait_for(3600, unused=30 * DAY, **lifetime) > 55 * DAY
    assert wait_for(3600, unused=30 * DAY) == 7 * DAY


# Failures


def test_attempts_after_failures_are_spread_over_a_time_that_doubles() -> None:
    now = RECEIVED_AT
    for failures, limit in ((1, 20), (2, 40), (5, 320), (12, 3600), (10**6, 3600)):
        waits = [get_retry_at(failures=failures, now=now) - now for _ in range(200)]
        assert timedelta(0) <= min(waits) < timedelta(seconds=limit / 4)
        assert timedelta(seconds=limit * 3 / 4) < max(waits) <= timedelta(seconds=limit)


def test_attempts_come_more_often_before_an_end_that_is_known() -> None:
    now = RECEIVED_AT
    for left, limit in ((7200, 3600), (600, 300), (60, 30), (5, 10), (-60, 3600)):
        ends_at = now + timedelta(seconds=left)
        waits = [
            get_retry_at(failures=20, now=now, ends_at=ends_at) - now
            for _ in range(200)
        ]
        assert timedelta(seconds=limit * 3 / 4) < max(waits) <= timedelta(seconds=limit)


def test_no_attempt_comes_before_the_server_wants_it() -> None:
    for _ in range(20):
        due = get_retry_at(failures=1, now=RECEIVED_AT, retry_after=120)
        assert due == RECEIVED_AT + timedelta(seconds=120)
    due = get_retry_at(failures=1, now=RECEIVED_AT, retry_after=10**9)
    assert due == RECEIVED_AT + DAY
