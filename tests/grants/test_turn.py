"""A worker's turn: overlapping requests, few statements, and nothing lost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import (
    DataError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
)
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_smart.exceptions import ReauthorizationRequiredError
from django_smart.grants import turn
from django_smart.grants.engine import run_tick
from django_smart.grants.refresh import get_access_token
from django_smart.grants.turn import RefreshResult, serve
from django_smart.models import ClientRegistration, FHIRServer, ServerState, TokenGrant
from django_smart.signals import grant_lost, grant_refreshed
from django_smart.testing import EHRSimulator
from tests.answers import after_answer
from tests.clocks import HostClock
from tests.ehr import PATIENT, connect, listening, make_browser
from tests.factories import (
    find_due,
    make_grants,
    make_server,
    reload_grant,
)
from tests.grants.working import refresh_due, refresh_grants

pytestmark = pytest.mark.django_db


def _lost_answers(ehr: EHRSimulator) -> int:
    """Refresh tokens that are good for something and that no grant has."""
    kept = {grant.refresh_token for grant in TokenGrant.objects.active()}
    return sum(
        not token.used and token.value not in kept
        for token in ehr.store.refresh_tokens.values()
    )


def _writes_tokens(sql: str) -> bool:
    """Whether a statement stores what the EHR answered."""
    return sql.startswith("UPDATE") and "refresh_token" in sql.partition(" WHERE ")[0]


# Speed


def test_requests_of_a_batch_overlap_within_a_limit(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    settings: Any,
) -> None:
    settings.SMART_REFRESH_THREADS = 4
    grant_ids = make_grants(ehr, registration, 12)
    lock, running, most = threading.Lock(), 0, 0
    together = threading.Barrier(4, timeout=60)

    def respond_slowly(respond: Any, request: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if request.path.endswith("/auth/token"):
            together.wait()
        with lock:
            running -= 1
        return respond(request)

    ehr.interceptors.append(respond_slowly)
    assert refresh_grants(grant_ids) == RefreshResult(refreshed=12)
    assert most == 4
    assert _lost_answers(ehr) == 0


def test_batch_needs_hardly_more_than_a_statement_for_a_grant(
    ehr: EHRSimulator, registration: ClientRegistration, host_clock: HostClock
) -> None:
    # However long it takes here, no lease has to be held for longer.
    host_clock.stop()
    make_grants(ehr, registration, 100)
    refresh_grants(make_grants(ehr, registration, 1))  # the configuration is known then
    with CaptureQueriesContext(connection) as captured:
        assert refresh_due() == RefreshResult(refreshed=100)
    statements = [
        each["sql"]
        for each in captured
        if not each["sql"].startswith(("SAVEPOINT", "RELEASE"))
    ]
    counts = [sql for sql in statements if "django_smart_refreshcount" in sql]
    statements = [sql for sql in statements if sql not in counts]
    # With the tick, two slices, and the end of the turn.
    assert len(statements) <= 112, statements[:6]
    updates = [sql for sql in statements if sql.startswith("UPDATE")]
    assert len(updates) <= 106
    # One for each outcome and length of a call, or a few where it is the first.
    assert 1 <= len(counts) <= 12


@pytest.mark.django_db(transaction=True)
def test_threads_of_a_batch_open_no_connection(
    ehr: EHRSimulator, registration: ClientRegistration, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant_ids = make_grants(ehr, registration, 20)
    connected: list[str] = []
    connect_it = type(connections["default"]).connect

    def count(self: Any) -> None:
        connected.append(threading.current_thread().name)
        connect_it(self)

    monkeypatch.setattr(type(connections["default"]), "connect", count)
    assert refresh_grants(grant_ids) == RefreshResult(refreshed=20)
    assert connected in ([], [threading.main_thread().name])


def test_answer_is_stored_the_moment_it_comes(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 3)
    stored = threading.Semaphore(0)
    late = iter([True])

    def respond_late_once(respond: Any, request: Any) -> Any:
        if request.path.endswith("/auth/token") and next(late, False):
            # The others are stored while this one is on its way.
            assert stored.acquire(timeout=60)
            assert stored.acquire(timeout=60)
        return respond(request)

    def note(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if _writes_tokens(sql):
            stored.release()
        return result

    ehr.interceptors.append(respond_late_once)
    with connection.execute_wrapper(note):
        assert refresh_grants(grant_ids) == RefreshResult(refreshed=3)


# Who may send


def test_same_message_twice_at_once_refreshes_once(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 5)
    again: list[RefreshResult] = []

    def deliver_again(execute: Any, sql: str, *args: Any) -> Any:
        if _writes_tokens(sql) and not again:
            again.append(serve(registration.server_id))
        return execute(sql, *args)

    with connection.execute_wrapper(deliver_again):
        assert serve(registration.server_id) == RefreshResult(refreshed=5)
    assert again == [RefreshResult()]
    assert len(ehr.requests_to("refresh")) == 5
    assert ehr.reused_refresh_tokens == 0


def test_grants_of_a_dead_worker_are_taken_up_when_its_leases_end(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 3)
    now = timezone.now()
    TokenGrant.objects.take_leases(
        grant_ids, owner="a dead one", length=timedelta(seconds=30)
    )
    assert refresh_due() == RefreshResult()
    TokenGrant.objects.update(lease_expires_at=now - timedelta(seconds=1))
    # First, it has time to store what it may have in memory.
    assert refresh_due() == RefreshResult()
    assert TokenGrant.objects.update(refresh_due_at=now) == 3
    assert refresh_due() == RefreshResult(refreshed=3)


def test_turn_of_a_dead_worker_ends_by_itself(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 1)
    states = ServerState.objects
    length = timedelta(seconds=30)
    assert states.take_turn(registration.server_id, token="a dead one", length=length)
    assert refresh_due() == RefreshResult()
    assert serve(registration.server_id) == RefreshResult()
    states.update(turn_until=timezone.now())
    assert refresh_due() == RefreshResult(refreshed=1)
    # It was suspended only, and gives nothing back that is another's now.
    assert states.take_turn(registration.server_id, token="another", length=length)
    assert not states.end_turn(registration.server_id, token="a dead one")
    assert states.get().turn_token == "another"


def test_turn_ends_after_some_seconds_and_sends_its_successor(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    host_clock: HostClock,
    settings: Any,
) -> None:
    settings.SMART_REFRESH_THREADS = 1
    make_grants(ehr, registration, 9)
    host_clock.stop()
    after_answer(ehr, lambda: host_clock.shift(3))
    sent: list[Any] = []
    run_tick(sent.append)
    (server_id,) = sent
    assert serve(server_id, send=sent.append) == RefreshResult(refreshed=4)
    assert sent == [server_id] * 2
    # What it did not begin is free for the next one.
    assert not TokenGrant.objects.exclude(lease_owner="").exists()
    # Its message is on its way: no tick sends another one.
    run_tick(sent.append)
    assert sent == [server_id] * 2
    assert serve(server_id).refreshed == 4
    assert serve(server_id, send=sent.append) == RefreshResult(refreshed=1)
    assert sent == [server_id] * 2


def test_slow_server_rests_while_others_wait_for_a_process(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    host_clock: HostClock,
    settings: Any,
) -> None:
    settings.SMART_REFRESH_THREADS = 1
    make_grants(ehr, registration, 9)
    host_clock.stop()
    after_answer(ehr, lambda: host_clock.shift(9))
    other = make_server(slug="other", base_url="https://other.example.org/r4")
    ServerState.objects.announce([other.pk])
    sent: list[Any] = []
    assert serve(registration.server_id, send=sent.append).refreshed == 2
    assert sent == []
    ServerState.objects.filter(pk=other.pk).update(turn_until=timezone.now())
    assert serve(registration.server_id, send=sent.append).refreshed == 2
    assert sent == [registration.server_id]


def test_slow_server_has_no_more_grants_leased_than_requests_under_way(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    # Of a lease that is not used yet, a page would wait for the end.
    settings.SMART_REFRESH_THREADS = 4
    make_grants(ehr, registration, 20)
    leased: list[int] = []

    def look(execute: Any, sql: str, *args: Any) -> Any:
        if _writes_tokens(sql):
            leased.append(TokenGrant.objects.exclude(lease_owner="").count())
        return execute(sql, *args)

    after_answer(ehr, lambda: time.sleep(0.1))
    with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(look):
        patch.setattr(turn, "_SLICE", 0.1)
        assert serve(registration.server_id) == RefreshResult(refreshed=20)
    assert max(leased) <= 8


def test_operator_pauses_a_server_during_a_turn(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    settings.SMART_REFRESH_THREADS = 1
    make_grants(ehr, registration, 5)

    def pause(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if _writes_tokens(sql):
            FHIRServer.objects.update(paused=True)
        return result

    with pytest.MonkeyPatch.context() as patch, connection.execute_wrapper(pause):
        patch.setattr(turn, "_MOST_LEASED", 1)
        assert serve(registration.server_id) == RefreshResult(refreshed=1)
    assert not TokenGrant.objects.exclude(lease_owner="").exists()


def test_processes_share_the_turn_of_a_giant_server(
    ehr: EHRSimulator, registration: ClientRegistration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "_MOST_LEASED", 5)
    FHIRServer.objects.update(turns=2)
    make_grants(ehr, registration, 20)
    shared: list[RefreshResult] = []

    def send(server_id: int, token: str = "") -> None:
        # No other process begins a turn of its own meanwhile.
        assert serve(server_id) == RefreshResult()
        assert serve(server_id, token="of an earlier turn") == RefreshResult()
        shared.append(serve(server_id, token=token))

    result = serve(registration.server_id, send=send)
    assert len(shared) == 1
    assert shared[0].refreshed + result.refreshed == 20
    assert shared[0].refreshed > 0
    assert ehr.reused_refresh_tokens == 0


def test_tokens_that_a_process_still_stores_after_an_outage_are_not_lost(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    # It has a response in memory, and the database was away until its lease expired.
    TokenGrant.objects.take_leases([grant_id], owner="it", length=timedelta(seconds=-1))
    grant = reload_grant(grant_id)
    used = grant.refresh_token_digest
    grant.set_tokens(access_token="new", refresh_token="new")
    grant.refresh_due_at = timezone.now() + timedelta(hours=1)
    assert refresh_grants([grant_id]) == RefreshResult(skipped=1)
    assert TokenGrant.objects.store_refreshed(grant, used_digest=used)
    assert refresh_due() == RefreshResult()
    assert ehr.requests_to("refresh") == []


def test_grants_that_are_gone_or_ended_meanwhile_are_left_alone(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    user = get_user_model().objects.create(username="maria")
    grant_ids = make_grants(ehr, registration, 5, user=user)
    deleted, revoked, fresh, first, second = grant_ids
    TokenGrant.objects.filter(pk=deleted).delete()
    TokenGrant.objects.filter(pk=revoked).end_pending_revocation(now=timezone.now())
    get_access_token(reload_grant(fresh))
    ehr.clear_requests()
    get_user_model().objects.update(is_active=False)
    assert refresh_grants(grant_ids) == RefreshResult(skipped=5)
    get_user_model().objects.update(is_active=True)
    assert refresh_grants(grant_ids) == RefreshResult(refreshed=2, skipped=3)
    assert len(ehr.requests_to("refresh")) == 2
    assert all(
        reload_grant(pk).access_token != reload_grant(fresh).access_token
        for pk in (first, second)
    )


@pytest.mark.parametrize("on_demand", [False, True])
@pytest.mark.parametrize("has_connected_again", [False, True])
def test_grant_lost_meanwhile_is_revived_by_the_token_that_arrives_later(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    on_demand: bool,
    has_connected_again: bool,
) -> None:
    # This process was suspended with the response; another one sent the old token,
    # which the EHR refused.
    user = get_user_model().objects.create(username="maria")
    (grant_id,) = make_grants(ehr, registration, 1, user=user)
    lost: list[int] = []

    def lose_first(execute: Any, sql: str, *args: Any) -> Any:
        if _writes_tokens(sql) and not lost:
            lost.append(grant_id)
            TokenGrant.objects.filter(pk=grant_id).lose(error="invalid_grant")
            if has_connected_again:
                make_grants(ehr, registration, 1, user=user)
        return execute(sql, *args)

    def refresh_it() -> object:
        if on_demand:
            return get_access_token(reload_grant(grant_id))
        return refresh_grants([grant_id])

    with connection.execute_wrapper(lose_first):
        if has_connected_again and on_demand:
            with pytest.raises(ReauthorizationRequiredError):
                refresh_it()
        else:
            refresh_it()
    grant = reload_grant(grant_id)
    assert not has_connected_again or _lost_answers(ehr) == 1
    if has_connected_again:
        # Its tokens are revoked.
        assert grant.status == TokenGrant.Status.NEEDS_REAUTHORIZATION
        assert TokenGrant.objects.filter(is_revocation_pending=True).count() == 1
        return
    assert grant.status == TokenGrant.Status.ACTIVE
    assert grant.was_restored
    assert _lost_answers(ehr) == 0
    TokenGrant.objects.update(refresh_due_at=timezone.now())
    assert refresh_due() == RefreshResult(refreshed=1)
    assert ehr.reused_refresh_tokens == 0


def test_token_that_was_not_replaced_revives_no_grant(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    # The EHR has refused this very token since.
    ehr.rotate_refresh_tokens = False
    (grant_id,) = make_grants(ehr, registration, 1)
    lost: list[int] = []

    def lose_first(execute: Any, sql: str, *args: Any) -> Any:
        if _writes_tokens(sql) and not lost:
            lost.append(grant_id)
            TokenGrant.objects.filter(pk=grant_id).lose(error="invalid_grant")
        return execute(sql, *args)

    with connection.execute_wrapper(lose_first):
        assert refresh_grants([grant_id]).refreshed == 0
    assert lost
    assert reload_grant(grant_id).status == TokenGrant.Status.NEEDS_REAUTHORIZATION


@contextmanager
def _calling(receiver: Callable[..., None]) -> Iterator[None]:
    grant_refreshed.connect(receiver)
    try:
        yield
    finally:
        grant_refreshed.disconnect(receiver)


def test_answers_do_not_wait_for_receivers_of_others(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 4)
    before = TokenGrant.objects.in_bulk(grant_ids)
    stored: list[int] = []
    told: list[int] = []
    answered = threading.Semaphore(0)

    def be_slow(grant: TokenGrant, **_: Any) -> None:
        if not told:
            assert all(answered.acquire(timeout=60) for _ in range(4))
            time.sleep(0.5)  # until they are in the queue
        told.append(grant.pk)
        stored.append(
            sum(
                each.refresh_token != before[each.pk].refresh_token
                for each in TokenGrant.objects.all()
            )
        )

    after_answer(ehr, answered.release)
    with _calling(be_slow):
        assert refresh_grants(grant_ids) == RefreshResult(refreshed=4)
    assert sorted(told) == grant_ids
    assert stored[1:] == [4, 4, 4]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("threads", [0, 1])
def test_machine_that_has_no_more_threads_keeps_no_lease_and_no_batch_waiting(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    grant_ids = make_grants(ehr, registration, 4)
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_few(self: threading.Thread) -> None:
        if self.name.startswith("django_smart-refresh"):
            if len(started) == threads:
                refused.set()
                raise RuntimeError("can't start new thread")
            started.append(self)
        start(self)

    # The first one is busy when the second is wanted.
    refused = threading.Event()
    after_answer(ehr, lambda: refused.wait(60))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_few)
        with pytest.raises(RuntimeError, match="new thread"):
            refresh_grants(grant_ids)
    assert len(ehr.requests_to("refresh")) == threads
    assert _lost_answers(ehr) == 0
    assert not TokenGrant.objects.exclude(lease_owner="").exists()
    assert refresh_grants(grant_ids).refreshed == 4 - threads


def test_worker_that_slept_past_its_leases_sends_nothing_more(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    host_clock: HostClock,
    settings: Any,
) -> None:
    settings.SMART_REFRESH_THREADS = 1
    first, *others = make_grants(ehr, registration, 3)

    def sleep_long(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if _writes_tokens(sql):
            # As a host that was suspended finds it.
            host_clock.shift(10**4)
            TokenGrant.objects.filter(pk__in=others).update(
                lease_owner="another",
                lease_expires_at=timezone.now() + timedelta(hours=1),
            )
        return result

    with connection.execute_wrapper(sleep_long):
        result = refresh_grants([first, *others])
    assert result == RefreshResult(refreshed=1, skipped=2)
    assert len(ehr.requests_to("refresh")) == 1
    assert reload_grant(others[0]).lease_owner == "another"


# Nothing is lost


@contextmanager
def _failing(
    is_meant: Callable[[str], bool],
    *,
    times: int | None = 2,
    after_write: bool = False,
    error: type[Exception] = OperationalError,
    clock: HostClock | None = None,
    is_away: bool = False,
) -> Iterator[list[str]]:
    """Let statements fail, as if the database had gone; *clock* ends all patience."""
    failed: list[str] = []

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        if not is_meant(sql) or len(failed) == times:
            return execute(sql, *args)
        failed.append(sql)
        if clock is not None:
            clock.shift(100)
        if is_away:
            connection.close()
        if after_write:
            execute(sql, *args)
        raise error("server closed the connection unexpectedly")

    with connection.execute_wrapper(fail):
        yield failed


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("error", "after_write"),
    [(OperationalError, False), (InterfaceError, True), (InternalError, False)],
)
def test_new_tokens_are_stored_although_the_database_goes_away(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    after_write: bool,
    error: type[Exception],
) -> None:
    grant_ids = make_grants(ehr, registration, 4)
    with _failing(_writes_tokens, after_write=after_write, error=error) as failed:
        assert refresh_grants(grant_ids) == RefreshResult(refreshed=4)
    assert len(failed) == 2
    assert _lost_answers(ehr) == 0


@pytest.mark.django_db(transaction=True)
def test_stored_tokens_are_found_although_the_connection_breaks_again(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 4)
    seen: list[bool] = []

    def is_first(sql: str) -> bool:
        # The UPDATE, and the SELECT that looks whether it was executed.
        is_write = _writes_tokens(sql)
        columns, _, condition = sql.partition(" FROM ")
        is_look = "received_at" in condition and "received_at" not in columns
        if not (is_write or is_look):
            return False
        seen.append(is_write)
        return seen.count(is_write) == 1

    with _failing(is_first, after_write=True) as failed:
        assert refresh_grants(grant_ids) == RefreshResult(refreshed=4)
    assert len(failed) == 2
    assert _lost_answers(ehr) == 0
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="as its driver closes")
def test_tokens_wait_for_as_long_as_the_database_is_away(
    ehr: EHRSimulator, registration: ClientRegistration, host_clock: HostClock
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    with _failing(_writes_tokens, times=4, clock=host_clock, is_away=True) as failed:
        get_access_token(reload_grant(grant_id))
    assert len(failed) == 4
    assert _lost_answers(ehr) == 0


def _let_try_again(registration: ClientRegistration) -> None:
    """Let the minutes between two attempts of a stopped registration pass."""
    assert ClientRegistration.objects.filter(
        pk=registration.pk, refresh_probe_at__isnull=False
    ).update(refresh_probe_at=timezone.now() - timedelta(seconds=1))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [OperationalError, DataError, ProgrammingError])
def test_tokens_that_the_database_refuses_stop_the_registration(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    host_clock: HostClock,
    settings: Any,
    error: type[Exception],
) -> None:
    settings.SMART_REFRESH_THREADS = 2
    settings.SMART_HTTP_TIMEOUT = (1000, 1000, 1000)
    make_grants(ehr, registration, 20)

    def is_full_store(sql: str) -> bool:
        # As where a value does not fit, or a column is gone.
        return _writes_tokens(sql) and "expires_at" in sql

    with _failing(is_full_store, times=None, clock=host_clock, error=error):
        result = refresh_due()
        assert refresh_due() == RefreshResult()
        # A trial write fails as well, so nothing is sent.
        before = len(ehr.requests_to("refresh"))
        _let_try_again(registration)
        assert refresh_due().refreshed == 0
        assert len(ehr.requests_to("refresh")) == before
    sent = len(ehr.requests_to("refresh"))
    assert 1 <= sent == result.failed <= 4
    # What was under way is kept as far as it can be.
    assert _lost_answers(ehr) == 0
    assert TokenGrant.objects.active().count() == 20
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "tokens_not_stored"
    # Once the reason is gone, they go on by themselves.
    _let_try_again(registration)
    assert refresh_due().refreshed == 1
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is None
    assert refresh_due() == RefreshResult(refreshed=19)
    assert ehr.reused_refresh_tokens == 0


@pytest.mark.django_db(transaction=True)
def test_refresh_token_is_kept_where_not_even_the_stop_can_be_stored(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    host_clock: HostClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)

    def is_refused(sql: str) -> bool:
        is_stop = sql.startswith("UPDATE") and "refresh_stop_reason" in sql
        return is_stop or (_writes_tokens(sql) and "expires_at" in sql)

    with _failing(is_refused, times=None, clock=host_clock, error=DataError) as failed:
        assert refresh_grants([grant_id]) == RefreshResult(failed=1)
    assert len(failed) >= 2
    assert _lost_answers(ehr) == 0
    assert reload_grant(grant_id).last_error == "tokens_not_stored"
    assert "the refresh token was stored alone" in caplog.text


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "postgresql", reason="as PostgreSQL fails")
def test_new_tokens_are_stored_although_the_old_server_has_become_read_only(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 2)
    written: list[str] = []

    def fail_over(execute: Any, sql: str, *args: Any) -> Any:
        if _writes_tokens(sql):
            if not written:
                execute("SET default_transaction_read_only = on", None, *args[1:])
            written.append(sql)
        return execute(sql, *args)

    with connection.execute_wrapper(fail_over):
        assert refresh_grants(grant_ids) == RefreshResult(refreshed=2)
    assert len(written) == 3
    assert _lost_answers(ehr) == 0


def test_receiver_that_fails_does_not_stop_the_batch(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grant_ids = make_grants(ehr, registration, 3)

    def fail(**_: Any) -> None:
        raise RuntimeError("a fault of the site's")

    grant_refreshed.connect(fail)
    try:
        with caplog.at_level(logging.ERROR):
            refresh_grants(grant_ids)
    finally:
        grant_refreshed.disconnect(fail)
    assert len(ehr.requests_to("refresh")) == 3
    assert _lost_answers(ehr) == 0
    assert caplog.text.count("error during its refresh") == 3


# Refusals


def test_grant_that_the_ehr_has_ended_is_lost_and_the_others_go_on(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    user = get_user_model().objects.create(username="maria")
    first, ended, last = make_grants(ehr, registration, 3, user=user)
    ehr.revoke_grant(reload_grant(ended).refresh_token)
    with listening(grant_lost) as lost:
        result = refresh_grants([first, ended, last])
    assert result == RefreshResult(refreshed=2, failed=1)
    assert [(each["grant"].pk, each["error_code"]) for each in lost] == [
        (ended, "invalid_grant")
    ]
    stored = reload_grant(ended)
    assert stored.status == "needs_reauthorization"
    with pytest.raises(ReauthorizationRequiredError):
        get_access_token(stored)
    # Its owner is shown how to connect again, as no other grant is for this patient.
    TokenGrant.objects.filter(pk=ended).update(patient_id=PATIENT)
    browser = make_browser()
    browser.force_login(user)
    page = browser.get("/smart/connections/").content.decode()
    assert "/smart/login/?server=harbour" in page
    assert "Connect Harbour Hospital again" in page


def test_refused_credentials_stop_the_registration_and_burn_no_grant(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    settings: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.SMART_REFRESH_THREADS = 2
    make_grants(ehr, registration, 20)
    ehr.faults.add("refresh_invalid_client")
    with caplog.at_level(logging.ERROR), listening(grant_lost) as lost:
        result = refresh_due()
        # One shows that it is not about those two.
        assert refresh_due() == RefreshResult(failed=1)
        for _ in range(3):
            assert refresh_due() == RefreshResult()
    assert lost == []
    # Those that were under way when the first answer came.
    assert 1 <= result.failed <= 3
    assert len(ehr.requests_to("refresh")) == result.failed + 1
    assert TokenGrant.objects.active().exclude(refresh_token="").count() == 20
    assert not TokenGrant.objects.exclude(lease_owner="").exists()
    assert caplog.text.count("refused our credentials (invalid_client)") == 1
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is not None
    # The server itself is well: other registrations go on.
    assert ServerState.objects.get().paused_until is None


def _new_secret(registration: ClientRegistration) -> None:
    registration.client_secret = "another one"
    registration.save(update_fields=["client_secret"])


def _refresh_for_a_person(registration: ClientRegistration) -> None:
    """Some minutes later: until then nothing is sent."""
    ClientRegistration.objects.update(refresh_probe_at=timezone.now())
    registration.refresh_from_db()
    last = TokenGrant.objects.order_by("-pk").first()
    assert last is not None
    get_access_token(reload_grant(last.pk))


@pytest.mark.parametrize("mend", [_new_secret, _refresh_for_a_person])
def test_registration_goes_on_with_credentials_that_work(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    mend: Callable[[ClientRegistration], None],
) -> None:
    make_grants(ehr, registration, 4)
    ehr.faults.add("refresh_invalid_client")
    refresh_due()
    ehr.faults.clear()
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is not None
    registration.landing_page = "/chart/"
    registration.save()
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is not None

    mend(registration)

    registration.refresh_from_db()
    assert registration.refresh_stopped_at is None


def test_missing_credentials_postpone_the_batch_and_send_nothing(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 3)
    ClientRegistration.objects.update(client_secret="", client_secret_env="NOT_SET")
    for failures in (1, 20):
        assert refresh_grants(grant_ids) == RefreshResult(failed=3)
        for grant in TokenGrant.objects.all():
            assert grant.status == "active"
            assert grant.last_error == "credentials_unusable"
            assert (grant.refresh_failures, grant.lease_owner) == (failures, "")
            assert grant.refresh_due_at is not None
            # Soon, since nothing tells when the secret is there.
            wait = grant.refresh_due_at - timezone.now()
            assert wait < timedelta(minutes=6)
        TokenGrant.objects.update(refresh_failures=20, refresh_due_at=timezone.now())
    assert ehr.requests_to("refresh") == []


def test_token_that_cannot_be_decrypted_fails_alone(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    broken, good = make_grants(ehr, registration, 2)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE django_smart_tokengrant SET refresh_token = 'x' WHERE id = %s",
            [broken],
        )
    assert refresh_grants([broken, good]) == RefreshResult(refreshed=1, failed=1)
    row = TokenGrant.objects.filter(pk=broken).defer("refresh_token")
    assert row.values_list("status", "last_error", "lease_owner").get() == (
        *("active", "credentials_unusable", ""),
    )
    assert not find_due().filter(pk=broken).exists()


def test_context_of_an_open_launch_goes_along(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    opened = connect(make_browser(), ehr)
    TokenGrant.objects.update(refresh_due_at=timezone.now())
    next(iter(ehr.store.grants())).context["intent"] = "reconcile"
    assert refresh_grants([opened.grant_id or 0]) == RefreshResult(refreshed=1)
    opened.refresh_from_db()
    assert opened.context["intent"] == "reconcile"
