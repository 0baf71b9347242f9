"""Time limits and shutdowns that strike while tokens are on their way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.management import execute_from_command_line
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from django_smart.exceptions import RefreshInTransactionError
from django_smart.grants.refresh import get_access_token, refresh_grant
from django_smart.grants.storing import insist
from django_smart.grants.uninterrupted import is_asked_to_stop, uninterrupted
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.servers.discovery import get_configuration
from django_smart.testing import EHRSimulator
from tests.factories import make_grants, reload_grant
from tests.grants.working import refresh_grants

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


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
    get_configuration(registration.server)
    TokenGrant.objects.update(expires_at=timezone.now())
    grant = reload_grant(grant_id)

    def strike(respond: Any, request: Any) -> Any:
        limit()
        return respond(request)

    ehr.interceptors.append(strike)
    with pytest.raises(SoftTimeLimitExceeded), transaction.atomic():
        get_access_token(grant)
    assert len(ehr.requests_to("refresh")) == 1
    assert _count_lost(ehr) == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "refresh",
    [refresh_grants, lambda grant_ids: refresh_grant(reload_grant(grant_ids[0]))],
    ids=["batch", "one"],
)
def test_background_refresh_inside_a_transaction_sends_nothing(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    refresh: Callable[[list[int]], object],
) -> None:
    grant_ids = make_grants(ehr, registration, 2)
    with (
        pytest.raises(RefreshInTransactionError, match="outside of a transaction"),
        transaction.atomic(),
    ):
        refresh(grant_ids)
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


def test_what_c_code_may_have_installed_is_left_alone() -> None:
    # getsignal() reports the default then: faulthandler.register(SIGUSR1), uWSGI.
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    # A shell has a job in the background ignore it.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGINT, interrupt)


def test_each_of_several_signals_is_delivered(limit: Callable[[], None]) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))

    def strike() -> None:
        with uninterrupted():
            limit()
            signal.raise_signal(signal.SIGTERM)
            assert (seen, is_asked_to_stop()) == ([], True)

    try:
        with pytest.raises(SoftTimeLimitExceeded):
            strike()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]
    assert not is_asked_to_stop()


@pytest.mark.django_db
def test_batch_that_is_asked_to_stop_sends_no_more(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    limit: Callable[[], None],
    settings: Any,
) -> None:
    settings.SMART_REFRESH_THREADS = 1
    grant_ids = make_grants(ehr, registration, 4)
    with pytest.raises(SoftTimeLimitExceeded), _struck(limit):
        refresh_grants(grant_ids)
    assert len(ehr.requests_to("refresh")) < 4
    assert _count_lost(ehr) == 0
    assert not TokenGrant.objects.exclude(lease_owner="").exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("grant_id", "tries"), [(None, 1), (7, 3)])
def test_only_tokens_wait_for_the_database_of_a_process_that_ends(
    limit: Callable[[], None], grant_id: int | None, tries: int
) -> None:
    tried: list[int] = []

    def write() -> None:
        tried.append(1)
        if len(tried) < 3:
            raise OperationalError("the server closed the connection")

    def store() -> None:
        with uninterrupted():
            limit()
            insist(write, grant_id=grant_id)

    with pytest.raises(SoftTimeLimitExceeded):
        store()
    assert len(tried) == tries


@pytest.mark.django_db(transaction=True)
def test_smart_refresh_that_is_asked_to_end_stores_what_arrives(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 1)
    handlers = {each: signal.getsignal(each) for each in _ENDING}

    def end(_: object) -> None:
        if ehr.requests_to("refresh"):
            os.kill(os.getpid(), signal.SIGTERM)

    ehr.on_request = end
    try:
        with pytest.raises(SystemExit) as ended:
            execute_from_command_line(["manage.py", "smart_refresh"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 143
    assert len(ehr.requests_to("refresh")) == 1
    assert _count_lost(ehr) == 0
