"""Time limits and shutdowns that strike while tokens are on their way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import connection, connections, transaction

from django_smart.exceptions import RefreshInTransactionError
from django_smart.grants.batch import refresh_grants
from django_smart.grants.refresh import get_access_token, refresh_grant
from django_smart.grants.uninterrupted import uninterrupted
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.testing import EHRSimulator
from tests.factories import make_grants, reload_grant


@pytest.fixture
def limit() -> Iterator[Callable[[], None]]:
    """Strikes as the soft time limit of a worker's task does."""

    def raise_it(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield lambda: signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


@contextmanager
def _struck(limit: Callable[[], None]) -> Iterator[None]:
    """Let *limit* strike right before the first new token is written."""
    struck: list[str] = []

    def execute_later(execute: Any, sql: str, *args: Any) -> Any:
        is_write = sql.startswith("UPDATE") and "refresh_token" in sql.split("WHERE")[0]
        if is_write and not struck:
            struck.append(sql)
            limit()
        return execute(sql, *args)

    with connection.execute_wrapper(execute_later):
        yield
    assert struck


def _count_lost(ehr: EHRSimulator) -> int:
    """Refresh tokens that would work, and that no grant has."""
    kept = {grant.refresh_token for grant in TokenGrant.objects.all()}
    return sum(
        not token.used and token.value not in kept
        for token in ehr.store.refresh_tokens.values()
    )


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("number", "refresh"),
    [
        (1, lambda grant_ids: refresh_grant(reload_grant(grant_ids[0]))),
        (3, refresh_grants),
    ],
    ids=["on demand", "batch"],
)
def test_time_limit_comes_after_the_tokens_are_stored(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    limit: Callable[[], None],
    number: int,
    refresh: Callable[[list[int]], object],
) -> None:
    grant_ids = make_grants(ehr, registration, number)
    with pytest.raises(SoftTimeLimitExceeded), _struck(limit):
        refresh(grant_ids)
    assert len(ehr.requests_to("refresh")) == len(grant_ids)
    assert _count_lost(ehr) == 0
    for grant_id in grant_ids:
        assert reload_grant(grant_id).lease_owner == ""
        assert get_access_token(reload_grant(grant_id))
    assert ehr.reused_refresh_tokens == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite refuses it")
def test_time_limit_waits_for_the_connection_that_no_rollback_reaches(
    ehr: EHRSimulator, registration: ClientRegistration, limit: Callable[[], None]
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    grant = reload_grant(grant_id)

    def strike(respond: Any, request: Any) -> Any:
        limit()
        return respond(request)

    ehr.interceptors.append(strike)
    with pytest.raises(SoftTimeLimitExceeded), transaction.atomic():
        refresh_grant(grant)
    connections.close_all()
    assert _count_lost(ehr) == 0


@pytest.mark.django_db(transaction=True)
def test_batch_inside_a_transaction_sends_nothing(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 2)
    with (
        pytest.raises(RefreshInTransactionError, match="outside transactions"),
        transaction.atomic(),
    ):
        refresh_grants(grant_ids)
    assert ehr.requests_to("refresh") == []
    assert refresh_grants(grant_ids).refreshed == 2


def test_second_signal_does_not_wait(limit: Callable[[], None]) -> None:
    done = []

    def strike_twice() -> None:
        with uninterrupted():
            limit()
            done.append("after the first")
            limit()
            done.append("after the second")

    with pytest.raises(SoftTimeLimitExceeded):
        strike_twice()
    assert done == ["after the first"]
    # The handler is in its place again.
    with pytest.raises(SoftTimeLimitExceeded):
        limit()


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_process_that_is_asked_to_end_does_so_afterward() -> None:
    code = """
import signal
from django_smart.grants.uninterrupted import uninterrupted
with uninterrupted():
    signal.raise_signal(signal.SIGTERM)
    print("stored", flush=True)
print("too late")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "stored\n"
    assert done.returncode == -signal.SIGTERM
