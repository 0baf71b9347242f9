"""Outages and rate limits: how fast a server is asked, by all workers together."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_smart import transport
from django_smart.exceptions import SMARTError, TokenError
from django_smart.grants import turn
from django_smart.grants.engine import refresh_for
from django_smart.grants.refresh import get_access_token, refresh_grant
from django_smart.grants.stopping import resume_refreshes, stop_refreshes
from django_smart.grants.turn import RefreshResult
from django_smart.launches.purge import purge
from django_smart.models import ClientRegistration, FHIRServer, ServerState, TokenGrant
from django_smart.signals import grant_lost
from django_smart.testing import EHRSimulator
from tests.answers import Away, refuse_refresh
from tests.ehr import listening
from tests.factories import (
    find_due,
    make_grants,
    make_identity,
    make_registration,
    make_server,
    make_user,
    reload_grant,
)
from tests.grants.working import refresh_due, refresh_grants, tick
from tests.threads import run_together

pytestmark = pytest.mark.django_db


@pytest.fixture
def one_thread(settings: Any) -> None:
    """Requests one after another, so that they can be counted."""
    settings.SMART_REFRESH_THREADS = 1


def _end_pause() -> None:
    ServerState.objects.update(paused_until=timezone.now())


def _end_any_pause() -> None:
    """End the pause, if there is one."""
    ServerState.objects.exclude(paused_until=None).update(paused_until=timezone.now())


def _get_pause(server: FHIRServer) -> timedelta:
    assert server.state.paused_until is not None
    assert server.state.last_failure_at is not None
    return server.state.paused_until - server.state.last_failure_at


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
    assert timedelta(seconds=3) <= _get_pause(server) <= timedelta(seconds=30)
    assert server.state.last_error == "token_server_error"
    # Neither beat nor a message that is on its way asks for anything.
    ServerState.objects.update(paused_until=timezone.now() + timedelta(hours=1))
    assert tick() == []
    assert refresh_grants(grant_ids) == RefreshResult(skipped=30)
    assert len(ehr.requests_to("refresh")) == 5
    assert not TokenGrant.objects.exclude(lease_owner="").exists()
    assert TokenGrant.objects.active().exclude(refresh_token="").count() == 30


@pytest.mark.usefixtures("one_thread")
def test_server_is_tried_again_with_one_grant_after_each_pause(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 30)
    ehr.faults.add("refresh_500")
    refresh_due()
    for _ in range(3):
        _end_pause()
        ehr.clear_requests()
        assert refresh_due() == RefreshResult(failed=1)
        assert len(ehr.requests_to("refresh")) == 1
        pause = _get_pause(FHIRServer.objects.get())
        assert timedelta(seconds=3) <= pause <= timedelta(seconds=30)
    # The grant that tried last waits; it is not the one that decides alone.
    assert not TokenGrant.objects.filter(refresh_failures__gt=1).exists()


@pytest.mark.usefixtures("one_thread")
def test_after_an_outage_everything_that_waited_for_it_is_due(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 20)
    ehr.faults.add("refresh_500")
    refresh_due()
    ehr.faults.clear()
    later = TokenGrant.objects.filter(refresh_failures=1)
    later.update(refresh_due_at=timezone.now() + timedelta(minutes=30))
    assert later.count() == 5
    _end_pause()
    tokens = {reload_grant(pk).refresh_token: pk for pk in grant_ids}
    sent: list[int] = []

    def note(request: Any) -> None:
        if token := dict(request.form).get("refresh_token"):
            sent.append(tokens[token])

    ehr.on_request = note

    assert refresh_due() == RefreshResult(refreshed=20)
    state = FHIRServer.objects.get().state
    assert state.paused_until is None
    assert state.last_success_at is not None
    # Those that had failed come last: the first one tests the server.
    assert sent == [*grant_ids[5:], *grant_ids[:5]]


def _fail_for(ehr: EHRSimulator, grant_ids: Iterable[int]) -> None:
    """From now on, let the server fail for these grants, and for no other."""
    grants = TokenGrant.objects.filter(pk__in=grant_ids)
    tokens = {grant.refresh_token for grant in grants}

    def respond(go_on: Any, request: Any) -> Any:
        body = request.get_data(as_text=True)
        if not any(token in body for token in tokens):
            return go_on(request)
        ehr.faults.add("refresh_500")
        try:
            return go_on(request)
        finally:
            ehr.faults.clear()

    ehr.interceptors.append(respond)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("was_down", [False, True])
@pytest.mark.parametrize("have_all_failed", [False, True])
def test_grants_that_always_fail_do_not_hold_up_the_others(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    was_down: bool,
    have_all_failed: bool,
) -> None:
    grant_ids = make_grants(ehr, registration, 20)
    # Their tokens ended first, and they fail again whenever they are due.
    failing, others = grant_ids[:12], grant_ids[12:]
    always = TokenGrant.objects.filter(pk__in=failing)
    always.update(refresh_failures=3, last_error="token_server_error")
    if have_all_failed:
        rest = TokenGrant.objects.filter(pk__in=others)
        rest.update(refresh_failures=1, last_error="token_server_error")
    _fail_for(ehr, failing)
    before = timezone.now() if was_down else None
    ServerState.objects.update(paused_until=before)
    # After an outage, the first tick is for the attempt that ends it.
    for _ in range(2):
        refresh_due()
        _end_any_pause()
    assert not find_due().filter(pk__in=others)
    assert {grant.last_error for grant in always} == {"token_server_error"}
    for _ in range(3):
        # Each time after an outage, or after a 429, if there was one before.
        ServerState.objects.update(paused_until=before)
        TokenGrant.objects.update(refresh_due_at=timezone.now())
        for _ in range(2):
            _end_any_pause()
            refresh_due()
        assert not find_due().filter(pk__in=others)


@pytest.mark.usefixtures("one_thread")
def test_grants_that_have_failed_once_do_not_hold_up_the_others(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 20)
    # Of a part of the EHR that is down, for example.
    failing, others = grant_ids[:12], grant_ids[12:]
    TokenGrant.objects.filter(pk__in=failing).update(refresh_failures=1)
    _fail_for(ehr, failing)
    refresh_due()
    assert not find_due().filter(pk__in=others)


def test_grant_that_fails_alone_pauses_its_server_three_times_at_most(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (failing,) = make_grants(ehr, registration, 1)
    _fail_for(ehr, [failing])
    for is_paused in (True, True, True, False):
        assert refresh_grants([failing]).failed == 1
        assert (ServerState.objects.get().paused_until is not None) is is_paused
        ServerState.objects.update(paused_until=None)
        TokenGrant.objects.update(refresh_due_at=timezone.now())


def test_refusal_is_an_answer_of_a_server_that_is_there(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    _end_pause()
    ehr.faults.add("refresh_invalid_grant")
    assert refresh_grants([grant_id]).failed == 1
    assert ServerState.objects.get().paused_until is None


def test_server_whose_configuration_cannot_be_had_is_left_alone_too(
    registration: ClientRegistration, ehr: EHRSimulator
) -> None:
    grant_ids = make_grants(ehr, registration, 2)
    with transport.mounted("https://ehr.example.org", Away()):
        assert refresh_grants(grant_ids) == RefreshResult(failed=2)
        assert _get_pause(FHIRServer.objects.get()) >= timedelta(seconds=3)
        TokenGrant.objects.update(refresh_due_at=timezone.now())
        assert refresh_grants(grant_ids) == RefreshResult(skipped=2)
    grant = reload_grant(grant_ids[0])
    assert grant.status == "active"
    # Others do not ask while nothing is known of it.
    assert grant.last_error in {"server_unreachable", "discovery_busy"}


def test_turn_ends_when_nothing_can_be_sent_for_many_grants(
    registration: ClientRegistration, ehr: EHRSimulator, monkeypatch: Any
) -> None:
    make_grants(ehr, registration, 40)
    monkeypatch.setattr(turn, "_MOST_READ", 20)
    with (
        transport.mounted("https://ehr.example.org", Away()),
        CaptureQueriesContext(connection) as queries,
    ):
        refresh_due()
    assert len(queries) < 60


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


@pytest.mark.usefixtures("one_thread")
def test_failures_elsewhere_do_not_shorten_the_rest_a_server_asked_for(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 8)
    until = timezone.now() + timedelta(minutes=10)

    def rest(execute: Any, sql: str, *args: Any) -> Any:
        result = execute(sql, *args)
        if sql.startswith("UPDATE") and "last_error" in sql:
            # What another process was answered meanwhile, as turns can be shared.
            ServerState.objects.update(paused_until=until)
        return result

    ehr.faults.add("refresh_500")
    with connection.execute_wrapper(rest):
        assert refresh_grants(grant_ids).failed > 0
    assert ServerState.objects.get().paused_until == until


@pytest.mark.django_db(transaction=True)
def test_rate_limit_is_never_passed_by_turns_after_each_other(
    ehr: EHRSimulator, registration: ClientRegistration, monkeypatch: Any
) -> None:
    monkeypatch.setattr(turn, "_LONGEST", 0.5)
    FHIRServer.objects.update(quirks={"rate_limit": 20})
    make_grants(ehr, registration, 32)
    sent: list[float] = []
    ehr.on_request = lambda _: sent.append(time.monotonic())
    results = list(refresh_for(30))
    assert sum(result.refreshed for result in results) == 32
    assert len(results) >= 3
    token_requests = sent[-31:]
    # In any half of a second, with what a busy machine may delay the last of them.
    for number, start in enumerate(token_requests):
        assert sum(each < start + 0.5 for each in token_requests[number:]) <= 20
    assert sent[-1] - sent[0] > 1.4


def test_limit_of_ten_per_minute_is_kept(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    FHIRServer.objects.update(quirks={"rate_limit": 10 / 60})
    make_grants(ehr, registration, 5)
    for number in range(1, 4):
        began = timezone.now()
        assert refresh_due() == RefreshResult(refreshed=1)
        ended = timezone.now()
        assert len(ehr.requests_to("refresh")) == number
        # No process waits, and no message leaves before the next one may be sent.
        assert refresh_due() == RefreshResult()
        until = ServerState.objects.get().turn_until
        assert until is not None
        assert began + timedelta(seconds=6) < until < ended + timedelta(seconds=7)
        ServerState.objects.update(turn_until=timezone.now())


# A server that refuses nearly all grants


def _lose(ehr: EHRSimulator, grant_ids: Iterable[int]) -> None:
    for grant_id in grant_ids:
        ehr.revoke_grant(reload_grant(grant_id).refresh_token)


def test_server_that_refuses_nearly_all_grants_loses_few(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 120)
    _lose(ehr, grant_ids)
    with listening(grant_lost) as lost:
        for _ in range(3):
            refresh_due()
    assert len(lost) == 20
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"
    assert TokenGrant.objects.active().count() == 100
    # A person meets an error, and does not lose the grant either.
    with pytest.raises(TokenError) as caught:
        get_access_token(reload_grant(grant_ids[-1]))
    assert caught.value.code == "grants_refused"
    assert TokenGrant.objects.active().count() == 100


def test_refusals_that_a_killed_process_met_count_as_well(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 40)
    # All that is left of that process is in the rows.
    TokenGrant.objects.filter(pk__in=grant_ids[:20]).lose(error="invalid_grant")
    _lose(ehr, grant_ids[20:])
    refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"
    assert TokenGrant.objects.active().count() == 20


def test_losses_of_another_client_stop_no_registration(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    elsewhere = make_server(slug="b", base_url="https://b.example.org/fhir")
    make_grants(ehr, make_registration(elsewhere), 20)
    TokenGrant.objects.all().lose(error="invalid_grant")
    grant_ids = make_grants(ehr, registration, 2)
    _lose(ehr, grant_ids)
    refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == ""
    assert TokenGrant.objects.active().count() == 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [160, pytest.param(20_000, marks=pytest.mark.long)])
def test_storm_of_refusals_at_processes_beside_each_other_loses_few(
    ehr: EHRSimulator, registration: ClientRegistration, number: int
) -> None:
    grant_ids = make_grants(ehr, registration, number)
    ehr.faults.add("refresh_invalid_grant")

    def work(part: list[int]) -> None:
        for grant_id in part:
            with suppress(SMARTError):
                refresh_grant(reload_grant(grant_id))

    parts = [grant_ids[start::4] for start in range(4)]
    run_together(*[lambda part=part: work(part) for part in parts], refresh_due)
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"
    lost = TokenGrant.objects.lost(within=timedelta(hours=1)).count()
    assert 20 <= lost <= 100
    assert TokenGrant.objects.active().count() == number - lost
    # Nor does a tick send more.
    assert tick() == []
    assert len(ehr.requests_to("refresh")) <= 300


def test_operator_gets_back_what_such_a_server_took(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    user = make_user()
    grant_ids = make_grants(ehr, registration, 30, user=user)
    for grant_id in grant_ids:
        TokenGrant.objects.filter(pk=grant_id).update(patient_id=str(grant_id))
    ehr.faults.add("refresh_invalid_grant")
    refresh_due()
    ehr.faults.clear()
    lost = list(TokenGrant.objects.lost(within=timedelta(hours=1)).order_by("pk"))
    assert len(lost) == 20
    # One connected again meanwhile, and one was lost too long ago.
    TokenGrant.objects.filter(pk=lost[0].pk).update(
        ended_at=timezone.now() - timedelta(hours=25)
    )
    TokenGrant.objects.filter(pk=grant_ids[-1]).update(patient_id=lost[1].patient_id)
    registration.refresh_from_db()
    # A refresh that works is no proof: those that came later are good.
    assert not resume_refreshes(registration)
    call_command("smart_refresh", "--resume")
    assert TokenGrant.objects.active().count() == 28
    assert ehr.reused_refresh_tokens == 0
    assert purge().grants_deleted == 0
    assert reload_grant(lost[0].pk).refresh_token == ""


def test_lost_grants_are_not_purged_while_an_operator_can_restore_them(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    settings.SMART_PURGE_AFTER = 3600
    lost, expired = make_grants(ehr, registration, 2)
    grants = TokenGrant.objects.all()
    grants.filter(pk=lost).lose(error="invalid_grant")
    grants.filter(pk=expired).end("expired", now=timezone.now())
    grants.update(ended_at=timezone.now() - timedelta(hours=23))
    assert purge().grants_deleted == 1
    assert grants.restore_lost() == 1
    grants.lose(error="invalid_grant")
    grants.update(ended_at=timezone.now() - timedelta(hours=25))
    assert purge().grants_deleted == 1


@pytest.mark.parametrize(
    ("is_offline", "status", "is_newer", "is_restored"),
    [
        (True, "active", True, False),
        # Connected again, and disconnected.
        (True, "revoked", True, False),
        # A chart that is open, and what was connected before.
        (False, "active", True, True),
        (True, "active", False, True),
    ],
)
def test_what_its_owner_has_replaced_is_not_restored(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    is_offline: bool,
    status: str,
    is_newer: bool,
    is_restored: bool,
) -> None:
    ids = make_grants(ehr, registration, 2, user=make_user(), patient_id="p")
    other, lost = ids if not is_newer else ids[::-1]
    TokenGrant.objects.filter(pk=lost).lose(error="invalid_grant")
    TokenGrant.objects.filter(pk=other).update(is_offline=is_offline, status=status)
    assert TokenGrant.objects.restore_lost() == is_restored
    assert (reload_grant(lost).status == "active") is is_restored


@pytest.mark.parametrize(
    ("accounts", "is_restored"),
    [
        (["clinic", "hospital"], True),
        (["clinic", "clinic"], False),
        # Nothing says that it was another account.
        ([None, "clinic"], False),
        (["clinic", None], False),
    ],
)
def test_grant_of_another_account_at_the_ehr_has_replaced_nothing(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    accounts: list[str | None],
    is_restored: bool,
) -> None:
    user = make_user()
    known = {name: make_identity(user, subject=name) for name in set(accounts) if name}
    lost, newer = make_grants(ehr, registration, 2, user=user)
    for pk, name in zip((lost, newer), accounts, strict=True):
        grants = TokenGrant.objects.filter(pk=pk)
        grants.update(identity=known.get(name or ""))
    TokenGrant.objects.filter(pk=lost).lose(error="invalid_grant")
    assert TokenGrant.objects.restore_lost() == is_restored


def test_grant_that_is_disconnected_during_a_resume_stays_ended(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    grants = TokenGrant.objects.all()
    grants.lose(error="invalid_grant")

    def disconnect(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("UPDATE") and "was_restored" in sql:
            grants.end_pending_revocation(now=timezone.now())
        return execute(sql, *args)

    with connection.execute_wrapper(disconnect):
        assert grants.restore_lost() == 0
    assert reload_grant(grant_id).status == "revoked"


def test_grants_that_are_really_gone_do_not_stop_a_resumed_registration(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 45)
    _lose(ehr, grant_ids[:28])
    with listening(grant_lost) as lost:
        refresh_due()
        registration.refresh_from_db()
        assert registration.refresh_stop_reason == "grants_refused"
        assert len(lost) == 20
        # Another failure meanwhile changes nothing about that.
        ehr.faults.add("refresh_invalid_request")
        call_command("smart_refresh", "--resume")
        ehr.faults.clear()
        failed = TokenGrant.objects.filter(last_error="invalid_request")
        assert failed.update(refresh_due_at=timezone.now()) >= 28
        refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == ""
    assert (
        sorted(TokenGrant.objects.active().values_list("pk", flat=True))
        == (grant_ids[28:])
    )
    assert len(lost) == 20 + 28
    # Others that are refused now count as ever.
    grant_ids = make_grants(ehr, registration, 60)
    _lose(ehr, grant_ids)
    refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"


def test_grants_that_a_resumed_registration_loses_again_can_be_restored(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 60)
    ehr.faults.add("refresh_invalid_grant")
    refresh_due()
    # Too early: the server is as before.
    call_command("smart_refresh", "--resume")
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"
    assert TokenGrant.objects.lost(within=timedelta(hours=1)).count() == 40
    ehr.faults.clear()
    call_command("smart_refresh", "--resume")
    refresh_due()
    assert TokenGrant.objects.active().count() == 60
    assert ehr.reused_refresh_tokens == 0


def test_operator_who_accepts_losses_resumes_once(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    dead = make_grants(ehr, registration, 70)
    good = make_grants(ehr, registration, 30)
    _lose(ehr, dead)
    refresh_due()
    call_command("smart_refresh", "--resume", "--accept-losses")
    # Also those that were refreshed or claimed before the registration was stopped.
    active = TokenGrant.objects.active()
    active.update(refresh_due_at=timezone.now())
    refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == ""
    assert sorted(active.values_list("pk", flat=True)) == good
    assert active.filter(was_restored=True).count() == 0
    # Those that were refreshed since are protected as ever.
    _lose(ehr, good)
    active.update(refresh_due_at=timezone.now())
    refresh_due()
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"
    assert active.count() == 10


def test_grant_that_is_refused_like_a_client_stops_no_others(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    dead, *good = make_grants(ehr, registration, 3)
    refuse_refresh(ehr, reload_grant(dead), "invalid_client")
    for _ in range(3):
        TokenGrant.objects.update(refresh_due_at=timezone.now())
        assert refresh_due().refreshed == len(good)
    # Another one that is dead comes later.
    refuse_refresh(ehr, reload_grant(good[0]), "invalid_client")
    TokenGrant.objects.update(refresh_due_at=timezone.now())
    assert refresh_due().refreshed == 1
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is None
    assert TokenGrant.objects.filter(last_error="invalid_client").count() == 2


def test_refusals_of_another_client_stop_no_registration(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    refused = {"last_error": "invalid_client", "refresh_failures": 1}
    elsewhere = make_server(slug="b", base_url="https://b.example.org/fhir")
    make_grants(ehr, make_registration(elsewhere), 1, **refused)
    # Those that end with their launch are refused as others are.
    grant_ids = make_grants(ehr, registration, 2)
    TokenGrant.objects.filter(pk__in=grant_ids).update(is_offline=False)
    stopped = ClientRegistration.objects.filter(refresh_stopped_at__isnull=False)
    for grant_id in grant_ids:
        assert not stopped.exists()
        refuse_refresh(ehr, reload_grant(grant_id), "invalid_client")
        with pytest.raises(TokenError):
            get_access_token(reload_grant(grant_id))
    assert stopped.get() == registration


# Attempts at a registration that is stopped


def _stop(ehr: EHRSimulator, registration: ClientRegistration, fault: str) -> list[int]:
    """Refresh until the registration is stopped and tried; returns what it keeps."""
    make_grants(ehr, registration, 40)
    ehr.faults.add(fault)
    kept = TokenGrant.objects.active()
    for _ in range(2):
        refresh_due()
        registration.refresh_from_db()
        assert registration.refresh_stopped_at is not None
        # Those that were refused are due later.
        kept.update(refresh_due_at=timezone.now())
    ehr.clear_requests()
    return list(kept.values_list("pk", flat=True))


def _end_probe_pause() -> None:
    ClientRegistration.objects.update(refresh_probe_at=timezone.now())


_FAULTS = ["refresh_invalid_client", "refresh_invalid_grant"]


@pytest.mark.parametrize("fault", _FAULTS)
def test_stopped_registration_is_tried_with_one_grant_every_few_minutes(
    ehr: EHRSimulator, registration: ClientRegistration, fault: str
) -> None:
    kept = _stop(ehr, registration, fault)
    for _ in range(2):
        assert tick() == []
        assert refresh_grants(kept) == RefreshResult(skipped=len(kept))
        with pytest.raises(TokenError) as caught:
            get_access_token(_make_stale(kept[0]))
        assert caught.value.code in {"grants_refused", "token_refused"}
        assert ehr.requests_to("refresh") == []
        _end_probe_pause()
        assert refresh_due() == RefreshResult(failed=1)
        # A message that was on its way asks for no more either.
        assert refresh_grants(kept) == RefreshResult(skipped=len(kept))
        assert len(ehr.requests_to("refresh")) == 1
        ehr.clear_requests()
    assert TokenGrant.objects.active().count() == len(kept)


def _make_stale(grant_id: int) -> TokenGrant:
    TokenGrant.objects.filter(pk=grant_id).update(expires_at=timezone.now())
    return reload_grant(grant_id)


@pytest.mark.django_db(transaction=True)
def test_of_all_processes_one_tries_a_stopped_registration(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    kept = _stop(ehr, registration, "refresh_invalid_client")
    _end_probe_pause()

    def refresh(grant_id: int) -> None:
        with suppress(SMARTError):
            refresh_grant(reload_grant(grant_id))

    run_together(*[lambda pk=pk: refresh(pk) for pk in kept[:2]], refresh_due)
    assert len(ehr.requests_to("refresh")) == 1


def test_attempt_that_works_resumes_a_registration_with_good_credentials(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    kept = _stop(ehr, registration, "refresh_invalid_client")
    ehr.faults.clear()
    _end_probe_pause()
    assert refresh_due() == RefreshResult(refreshed=1)
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is None
    assert registration.refresh_probe_at is None
    refresh_due()
    assert len(ehr.requests_to("refresh")) == len(kept)


def test_new_credentials_make_what_waited_for_them_due(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    kept = _stop(ehr, registration, "refresh_invalid_client")
    waiting = TokenGrant.objects.filter(last_error="invalid_client")
    later = timezone.now() + timedelta(hours=1)
    assert waiting.update(refresh_failures=9, refresh_due_at=later)
    ehr.faults.clear()
    registration.signing_algorithm = "ES256"
    registration.token_endpoint_auth_method = "client_secret_post"
    registration.save()
    assert find_due().count() == len(kept)
    assert not TokenGrant.objects.filter(refresh_failures__gt=0).exists()


def test_stop_that_came_meanwhile_is_not_lifted(
    registration: ClientRegistration,
) -> None:
    stop_refreshes(registration, reason="invalid_client")
    registration.refresh_from_db()
    # Known before an attempt, whose answer arrives after another worker's.
    rows = ClientRegistration.objects.filter(pk=registration.pk)
    rows.update(refresh_stop_reason="grants_refused")
    assert not resume_refreshes(registration)
    assert rows.get().refresh_stop_reason == "grants_refused"


def test_tokens_that_cannot_be_stored_stop_attempts_that_another_reason_allows(
    registration: ClientRegistration, caplog: pytest.LogCaptureFixture
) -> None:
    stop_refreshes(registration, reason="invalid_client")
    assert _reload(registration).refresh_probe_at is not None
    caplog.clear()
    stop_refreshes(registration, reason="tokens_not_stored")
    stored = _reload(registration)
    assert stored.refresh_stop_reason == "tokens_not_stored"
    assert stored.refresh_probe_at is not None
    assert stored.refresh_probe_at > timezone.now() + timedelta(minutes=4)
    assert "refused to store new tokens" in caplog.text
    # It is replaced by no other, as it allows the least.
    stop_refreshes(registration, reason="invalid_client")
    assert _reload(registration).refresh_stop_reason == "tokens_not_stored"


def test_tokens_that_cannot_be_stored_leave_what_an_operator_can_restore(
    registration: ClientRegistration,
) -> None:
    stop_refreshes(registration, reason="grants_refused")
    assert _reload(registration).refresh_probe_at is not None
    stop_refreshes(registration, reason="tokens_not_stored")
    stored = _reload(registration)
    assert stored.refresh_stop_reason == "grants_refused"
    assert stored.refresh_probe_at is None


def _reload(registration: ClientRegistration) -> ClientRegistration:
    return ClientRegistration.objects.get(pk=registration.pk)


def test_stopped_registration_is_not_tried_with_a_grant_that_always_fails(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    always, other = make_grants(ehr, registration, 2)
    TokenGrant.objects.filter(pk=always).update(refresh_failures=5)
    stop_refreshes(registration, reason="invalid_client")
    _end_probe_pause()
    token = reload_grant(other).refresh_token
    refresh_due()
    assert len(ehr.requests_to("refresh")) == 1
    assert reload_grant(other).refresh_token != token


def test_stopped_registration_is_tried_while_others_of_its_server_have_many_due(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    make_grants(ehr, registration, 1, refresh_failures=1)
    busy = make_registration(
        registration.server,
        client_id="another",
        is_ehr_default=False,
        is_standalone_default=False,
    )
    make_grants(ehr, busy, 5)
    stop_refreshes(registration, reason="invalid_client")
    refresh_due()
    assert _reload(registration).refresh_stopped_at is None


def test_grants_that_are_refused_like_a_client_stop_others_only_for_a_moment(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    *dead, good = make_grants(ehr, registration, 3)
    for grant_id in dead:
        refuse_refresh(ehr, reload_grant(grant_id), "invalid_client")
    assert refresh_grants(dead) == RefreshResult(failed=2)
    assert _reload(registration).refresh_stopped_at is not None
    # Not with those, which are due again by now and whose tokens expire first.
    expired = TokenGrant.objects.filter(pk__in=dead)
    expired.update(refresh_due_at=timezone.now(), expires_at=timezone.now())
    token = reload_grant(good).refresh_token
    assert refresh_due() == RefreshResult(refreshed=1)
    assert reload_grant(good).refresh_token != token
    assert _reload(registration).refresh_stopped_at is None


def test_attempt_that_works_is_no_proof_for_other_grants_that_were_refused(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    _stop(ehr, registration, "refresh_invalid_grant")
    ehr.faults.clear()
    _end_probe_pause()
    # While they work, each tick makes one.
    for number in (1, 2):
        assert refresh_due() == RefreshResult(refreshed=1)
        assert len(ehr.requests_to("refresh")) == number
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == "grants_refused"


def test_registration_whose_tokens_cannot_be_stored_is_not_tried(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    stop_refreshes(registration, reason="tokens_not_stored")
    assert tick() == []
    assert refresh_grants([grant_id]) == RefreshResult(skipped=1)
    with pytest.raises(TokenError) as caught:
        get_access_token(_make_stale(grant_id))
    assert caught.value.code == "tokens_not_stored"
    assert ehr.requests_to("refresh") == []
    call_command("smart_refresh", "--resume")
    assert len(ehr.requests_to("refresh")) == 1


def test_grants_that_end_one_by_one_among_many_are_lost_as_ever(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    grant_ids = make_grants(ehr, registration, 120)
    _lose(ehr, grant_ids[::4])
    refresh_due()
    assert TokenGrant.objects.active().count() == 90
    registration.refresh_from_db()
    assert registration.refresh_stop_reason == ""
