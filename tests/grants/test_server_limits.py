"""Outages and rate limits: how fast a server is asked, by all workers together."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from django_smart import transport
from django_smart.grants.batch import RefreshResult, refresh_grants
from django_smart.grants.engine import claim_due_batches
from django_smart.grants.server_limits import get_batch_size, get_claim_limit
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from django_smart.testing import EHRSimulator
from tests.answers import Away, after_answer
from tests.factories import make_grants, make_registration, reload_grant
from tests.threads import run_together

pytestmark = pytest.mark.django_db


@pytest.fixture
def one_thread(settings: Any) -> None:
    """Requests one after another, so that they can be counted."""
    settings.SMART_REFRESH_THREADS = 1


def _end_pause() -> None:
    FHIRServer.objects.update(refresh_paused_until=timezone.now())


def _get_pause(server: FHIRServer) -> timedelta:
    assert server.refresh_paused_until is not None
    assert server.last_refresh_failure_at is not None
    return server.refresh_paused_until - server.last_refresh_failure_at


# Outages


@pytest.mark.usefixtures("one_thread")
def test_server_that_is_away_is_left_alone_and_no_grant_is_lost(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grant_ids = make_grants(ehr, registration, 30)
    refresh_grants(grant_ids[:1])  # the configuration is known then
    ehr.clear_requests()
    ehr.faults.add("refresh_503")
    with caplog.at_level(logging.WARNING):
        assert refresh_grants(grant_ids[1:]) == RefreshResult(skipped=24, failed=5)
    assert len(ehr.requests_to("refresh")) == 5
    assert "refreshes paused" in caplog.text
    server = FHIRServer.objects.get()
    assert server.refresh_failures == 5
    assert timedelta(seconds=1) <= _get_pause(server) <= timedelta(seconds=2)
    assert server.last_refresh_error == "token_server_error"
    # Neither beat nor a message that is on its way asks for anything.
    FHIRServer.objects.update(refresh_paused_until=timezone.now() + timedelta(hours=1))
    assert list(claim_due_batches()) == []
    assert refresh_grants(grant_ids) == RefreshResult(skipped=30)
    assert len(ehr.requests_to("refresh")) == 5
    assert not TokenGrant.objects.exclude(lease_owner="").exists()
    assert TokenGrant.objects.active().exclude(refresh_token="").count() == 30


@pytest.mark.usefixtures("one_thread")
def test_server_is_tried_again_with_one_grant_after_pauses_that_grow(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 30)
    ehr.faults.add("refresh_500")
    for batch in claim_due_batches():
        refresh_grants(batch)
    for failures in range(6, 20):
        _end_pause()
        TokenGrant.objects.update(claimed_until=None)
        ehr.clear_requests()
        batches = list(claim_due_batches())
        assert [len(batch) for batch in batches] == [1]
        assert refresh_grants(batches[0]) == RefreshResult(failed=1)
        assert len(ehr.requests_to("refresh")) == 1
        server = FHIRServer.objects.get()
        assert server.refresh_failures == failures
        limit = min(60, 2 ** (failures - 4))
        pause = _get_pause(server).total_seconds()
        assert 1 <= pause <= limit
    # The grant that tried last waits; it is not the one that decides alone.
    assert TokenGrant.objects.filter(refresh_failures__gt=1).count() < 15


@pytest.mark.usefixtures("one_thread")
def test_after_an_outage_what_waited_for_it_is_due_and_goes_by_need(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 20)
    ehr.faults.add("refresh_500")
    for batch in claim_due_batches():
        refresh_grants(batch)
    ehr.faults.clear()
    TokenGrant.objects.update(claimed_until=None)
    later = TokenGrant.objects.filter(refresh_failures=1)
    later.update(refresh_due_at=timezone.now() + timedelta(minutes=30))
    assert later.count() == 5
    _end_pause()
    ehr.clear_requests()

    (probe,) = claim_due_batches()
    assert refresh_grants(probe) == RefreshResult(refreshed=1)
    server = FHIRServer.objects.get()
    assert (server.refresh_failures, server.refresh_paused_until) == (0, None)
    assert server.last_refresh_at is not None
    (batch,) = claim_due_batches()
    left = [pk for pk in grant_ids if pk not in probe]
    assert batch == left
    assert refresh_grants(batch) == RefreshResult(refreshed=19)


@pytest.mark.django_db(transaction=True)
def test_of_all_workers_one_tries_a_server_again(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 3)
    FHIRServer.objects.update(
        refresh_failures=7, refresh_paused_until=timezone.now() - timedelta(seconds=1)
    )

    def respond_slowly(respond: Any, request: Any) -> Any:
        time.sleep(0.5)
        return respond(request)

    ehr.interceptors.append(respond_slowly)
    results = run_together(*[lambda pk=pk: refresh_grants([pk]) for pk in grant_ids])
    assert sorted(result.refreshed for result in results) == [0, 0, 1]
    assert len(ehr.requests_to("refresh")) == 1


@pytest.mark.usefixtures("one_thread")
def test_failures_with_answers_between_them_are_no_outage(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 4)
    for _ in range(3):
        ehr.faults.add("refresh_500")
        assert refresh_grants(grant_ids[:1]).failed == 1
        ehr.faults.clear()
        assert refresh_grants(grant_ids[1:2]).refreshed == 1
        TokenGrant.objects.update(refresh_due_at=timezone.now())
        assert FHIRServer.objects.get().refresh_failures == 0


def test_refusal_is_an_answer_of_a_server_that_is_there(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    FHIRServer.objects.update(refresh_failures=9, refresh_paused_until=timezone.now())
    ehr.faults.add("refresh_invalid_grant")
    assert refresh_grants([grant_id]).failed == 1
    assert FHIRServer.objects.get().refresh_failures == 0


def test_server_whose_configuration_cannot_be_had_is_left_alone_too(
    registration: ClientRegistration, ehr: EHRSimulator
) -> None:
    grant_ids = make_grants(ehr, registration, 2)
    with transport.mounted("https://ehr.example.org", Away()):
        for _ in range(5):
            TokenGrant.objects.update(refresh_due_at=timezone.now())
            assert refresh_grants(grant_ids) == RefreshResult(failed=2)
        assert _get_pause(FHIRServer.objects.get()) >= timedelta(seconds=1)
        FHIRServer.objects.update(
            refresh_paused_until=timezone.now() + timedelta(hours=1)
        )
        TokenGrant.objects.update(refresh_due_at=timezone.now())
        assert refresh_grants(grant_ids) == RefreshResult(skipped=2)
    grant = reload_grant(grant_ids[0])
    assert (grant.status, grant.last_error) == ("active", "server_unreachable")


# What a server asks for


@pytest.mark.usefixtures("one_thread")
def test_retry_after_is_kept_by_all_workers(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 5)
    ehr.faults.add("refresh_429")  # Retry-After: 120
    assert refresh_grants(grant_ids) == RefreshResult(skipped=4, failed=1)
    assert _get_pause(FHIRServer.objects.get()) == timedelta(seconds=120)
    assert refresh_grants(grant_ids) == RefreshResult(skipped=5)
    assert len(ehr.requests_to("refresh")) == 1


def test_rate_limit_decides_how_much_is_claimed() -> None:
    now = timezone.now()
    server = FHIRServer()
    assert get_claim_limit(server, claimed=0, now=now) == 10_000
    assert get_claim_limit(server, claimed=9_990, now=now) == 10
    assert get_batch_size(server) == 100
    server.rate_limit = 10
    assert get_claim_limit(server, claimed=0, now=now) == 90
    assert get_claim_limit(server, claimed=50, now=now) == 40
    assert get_batch_size(server) == 27
    server.refresh_slot_at = now + timedelta(seconds=4)
    assert get_claim_limit(server, claimed=0, now=now) == 54
    server.refresh_slot_at = now + timedelta(minutes=1)
    assert get_claim_limit(server, claimed=0, now=now) == 0
    server.rate_limit = 1
    assert get_batch_size(server) == 2


@pytest.mark.django_db(transaction=True)
def test_rate_limit_is_never_passed_by_workers_beside_each_other(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    FHIRServer.objects.update(rate_limit=20)
    grant_ids = make_grants(ehr, registration, 32)
    refresh_grants(grant_ids[:1])
    ehr.clear_requests()
    sent: list[float] = []
    ehr.on_request = lambda _: sent.append(time.monotonic())
    parts = [grant_ids[1 + start : 32 : 3] for start in range(3)]
    results = run_together(*[lambda part=part: refresh_grants(part) for part in parts])
    assert sum(result.refreshed for result in results) == 31
    # In any half of a second, with what a busy machine may delay the last of them.
    for number, start in enumerate(sent):
        assert sum(start <= each < start + 0.5 for each in sent[number:]) <= 20
    assert sent[-1] - sent[0] > 1.4


@pytest.mark.django_db(transaction=True)
def test_slow_answers_waste_no_turns(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    settings: Any,
) -> None:
    settings.SMART_REFRESH_THREADS = 2
    FHIRServer.objects.update(rate_limit=20)
    grant_ids = make_grants(ehr, registration, 31)
    refresh_grants(grant_ids[:1])
    after_answer(ehr, lambda: time.sleep(0.5))
    started = time.monotonic()
    parts = [grant_ids[1 + start : 31 : 3] for start in range(3)]
    results = run_together(*[lambda part=part: refresh_grants(part) for part in parts])
    assert [result.refreshed for result in results] == [10, 10, 10]
    # Six requests at a time, of half a second.  With turns for all that is left taken
    # anew each time, it would be 5.7 seconds.
    assert time.monotonic() - started < 5.4


def test_turn_that_is_too_far_away_is_left_to_a_later_tick(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 2)
    FHIRServer.objects.update(
        rate_limit=5, refresh_slot_at=timezone.now() + timedelta(seconds=40)
    )
    assert refresh_grants(grant_ids) == RefreshResult(skipped=2)
    assert ehr.requests_to("refresh") == []
    assert not TokenGrant.objects.exclude(lease_owner="").exists()


@pytest.mark.usefixtures("one_thread")
def test_turns_that_were_missed_are_taken_anew(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 4)
    FHIRServer.objects.update(rate_limit=50)
    refresh_grants(grant_ids[:1])
    after_answer(ehr, lambda: time.sleep(0.2))
    before = timezone.now()
    assert refresh_grants(grant_ids[1:]).refreshed == 3
    slot_at = FHIRServer.objects.get().refresh_slot_at
    # Three turns from the start on would have been over after 0.07 s.
    assert slot_at is not None
    assert slot_at - before > timedelta(seconds=0.4)


def test_server_with_a_backlog_does_not_keep_others_waiting(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    FHIRServer.objects.update(rate_limit=1)
    make_grants(ehr, registration, 50)
    other = make_registration(
        server__slug="other", server__base_url="https://other.example.org/r4"
    )
    newer = make_grants(ehr, other, 3)
    TokenGrant.objects.filter(pk__in=newer).update(expires_at=timezone.now())
    batches = list(claim_due_batches())
    assert batches[-1] == newer
    assert sum(map(len, batches[:-1])) == 9
