"""How fast a server is asked, and when it is left alone: without a database."""

from __future__ import annotations

import time
from typing import Any

import pytest

from django_smart.exceptions import TokenServerError
from django_smart.grants.pacing import Breaker, Pace


def _down(status_code: int = 500, **values: Any) -> TokenServerError:
    return TokenServerError("Down.", status_code=status_code, **values)


def test_fifth_failure_in_a_row_needs_a_pause() -> None:
    breaker = Breaker()
    for _ in range(4):
        assert breaker.note_outage(_down()) is None
    # A response in between begins anew.
    assert breaker.note_response() is False
    for _ in range(4):
        assert breaker.note_outage(_down()) is None
    pause = breaker.note_outage(_down())
    assert pause is not None
    assert 3 <= pause <= 30
    assert breaker.is_open
    assert breaker.error_code == "token_server_error"
    assert breaker.note_end() is None


def test_turn_that_meets_nothing_but_failures_needs_a_pause() -> None:
    breaker = Breaker()
    assert breaker.note_end() is None
    breaker.note_outage(_down())
    pause = breaker.note_end()
    assert pause is not None
    assert 3 <= pause <= 30
    breaker = Breaker()
    breaker.note_response()
    breaker.note_outage(_down())
    assert breaker.note_end() is None


def test_server_that_was_down_is_tried_once() -> None:
    breaker = Breaker(is_probe=True)
    assert breaker.note_outage(_down(), of_grant=True) is not None
    # A response that was under way does not end it.
    assert breaker.note_response() is False
    assert breaker.is_probe
    breaker = Breaker(is_probe=True)
    assert breaker.note_response() is True
    assert not breaker.is_probe
    assert breaker.note_response() is False


def test_rest_that_a_server_asks_for_is_kept() -> None:
    breaker = Breaker()
    assert breaker.note_outage(_down(503, retry_after=120)) == 120
    # A later response may ask for a longer pause; another failure asks for none.
    assert breaker.note_outage(_down()) is None
    assert breaker.note_outage(_down(429, retry_after=300)) == 300
    assert breaker.note_response() is False
    pause = Breaker().note_outage(_down(429))
    assert pause is not None
    assert 3 <= pause <= 30
    assert Breaker().note_outage(_down(503, retry_after=10**6)) == 3600


def test_grant_that_always_fails_does_not_count_unless_the_server_was_down() -> None:
    breaker = Breaker()
    for _ in range(9):
        assert breaker.note_outage(_down(), of_grant=True) is None
    assert breaker.note_end() is None


@pytest.mark.parametrize("rate", [0.16, 5, 200])
def test_no_second_exceeds_the_limit(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, sent = 1000.0, list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(rate)
    for number in range(50):
        now += pace.get_wait()
        pace.note_sent()
        sent.append(now)
        # Once, the server takes long.
        now += 0.2 if number == 20 else 0.0
    for number, start in enumerate(sent):
        period = max(1.0, 1 / rate)
        within = sum(each < start + period - 1e-6 for each in sent[number:])
        assert within <= max(rate, 1)
    assert sent[-1] - sent[0] <= 50 / (0.9 * rate) + 0.2


def test_server_without_a_limit_is_asked_at_once() -> None:
    pace = Pace(None)
    pace.note_sent()
    assert pace.get_wait() == 0
    assert pace.count_within(5) > 10**6
    assert Pace(10).count_within(5) == 45
    assert Pace(0.1).count_within(5) == 1
