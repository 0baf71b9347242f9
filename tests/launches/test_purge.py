"""What tidying up ends, revokes, deletes and keeps."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.db.models import ProtectedError, RestrictedError
from django.db.models.signals import pre_delete
from django.utils import timezone

from django_smart.clients import fhir_client_for
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.launches.held import end_expired_launches
from django_smart.launches.purge import purge
from django_smart.models import ClientRegistration, Identity, Launch, TokenGrant
from django_smart.signals import grant_ending, grant_revoked
from django_smart.testing import EHRSimulator
from tests.answers import answer
from tests.ehr import (
    connect,
    get_callback,
    get_launch,
    launch,
    listening,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.factories import end_wait, make_grant, make_grants, make_launch

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("database_travels", "registration"),
]


def test_purge_fails_launches_whose_callback_never_came(ehr: EHRSimulator) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        start_ehr_launch(make_browser(), ehr)
        assert purge().launches_failed == 0
        clock.shift(901)
        assert purge().launches_failed == 1
    row = Launch.objects.get()
    assert (row.status, row.error_code) == ("failed", "state_expired")
    assert row.code_verifier == ""


def test_purge_says_why_the_callback_of_a_launch_comes_too_late(
    ehr: EHRSimulator,
) -> None:
    browser = make_browser()
    callback = ehr.authorize(start_ehr_launch(browser, ehr))
    with time_machine.travel(timezone.now() + timedelta(seconds=901)):
        purge()
        response = get_callback(browser, callback)
    assert response.status_code == 400
    assert b"<code>state_expired</code>" in response.content


def test_purge_fails_no_launch_whose_callback_is_under_way(ehr: EHRSimulator) -> None:
    browser, failed = make_browser(), list[int]()
    with time_machine.travel(timezone.now(), tick=False) as clock:
        start = start_login(browser)
        clock.shift(890)

        def purge_first(respond: Any, request: Any) -> Any:
            if request.path.endswith("/auth/token"):
                clock.shift(20)
                failed.append(purge().launches_failed)
            return respond(request)

        ehr.interceptors.append(purge_first)
        response = get_callback(browser, ehr.authorize(start))
    assert get_launch(response).status == "open"
    assert failed == [0]


def test_purge_fails_launches_whose_callback_broke_off(ehr: EHRSimulator) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        start_ehr_launch(make_browser(), ehr)
        soon = timezone.now() + timedelta(minutes=5)
        Launch.objects.update(status=Launch.Status.CONSUMED, expires_at=soon)
        clock.shift(299)
        assert purge().launches_failed == 0
        clock.shift(1)
        assert purge().launches_failed == 1


def test_purge_ends_old_launches_and_what_they_alone_used(ehr: EHRSimulator) -> None:
    scope = "launch openid fhirUser online_access user/*.rs"
    ClientRegistration.objects.update(ehr_scope=scope)
    browser = make_browser()
    with time_machine.travel(timezone.now(), tick=False) as clock:
        online, offline = launch(browser, ehr), connect(browser, ehr)
        clock.shift(timedelta(hours=12))
        with listening(grant_revoked):
            result = purge()
    assert result.revocations_finished == 1
    for opened in (online, offline):
        opened.refresh_from_db()
        assert (opened.status, opened.error_code) == ("ended", "lifetime")
    assert TokenGrant.objects.get(launches=online).status == "revoked"
    assert TokenGrant.objects.get(launches=offline).status == "active"
    assert len(ehr.requests_to("revoke")) == 2


def test_purge_ends_the_grants_of_deactivated_users(ehr: EHRSimulator) -> None:
    opened = connect(make_browser(), ehr)
    assert purge().revocations_finished == 0
    get_user_model().objects.update(is_active=False)
    assert purge().revocations_finished == 1
    grant = TokenGrant.objects.get()
    assert (grant.status, grant.refresh_token) == ("revoked", "")
    opened.refresh_from_db()
    assert opened.status == "ended"


def test_purge_leaves_one_grant_of_tabs_that_are_closed(ehr: EHRSimulator) -> None:
    browser = make_browser()
    user = get_user_model().objects.create_user("maria")
    browser.force_login(user)
    older, newer = connect(browser, ehr), connect(browser, ehr)
    server = newer.registration.server
    purge()
    assert TokenGrant.objects.active().count() == 2
    Launch.objects.filter(pk=older.pk).end(reason="lifetime", now=timezone.now())
    purge()

    assert TokenGrant.objects.active().get().pk == newer.grant_id
    assert fhir_client_for(user, server).read("Patient", newer.context["patient"])


def test_purge_finishes_revocations_that_were_left_open(ehr: EHRSimulator) -> None:
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    disconnect_grant(grant)

    def be_down(respond: Any, request: Any) -> Any:
        raise OSError("no route")

    ehr.interceptors.append(be_down)
    assert purge().revocations_finished == 0
    ehr.interceptors.clear()
    end_wait()
    assert purge().revocations_finished == 1
    assert revoke_pending() == 0
    assert all(each.revoked for each in ehr.store.grants())


def test_what_is_long_over_does_not_wait_for_an_ehr(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    old, pending, *_ = make_grants(ehr, registration, 3)
    TokenGrant.objects.all().end_pending_revocation(now=timezone.now())
    TokenGrant.objects.filter(pk__in=[old, pending]).update(
        ended_at=timezone.now() - timedelta(days=31)
    )
    TokenGrant.objects.filter(pk=old).forget_tokens()
    left: list[set[int]] = []

    def look(respond: Any, request: Any) -> Any:
        left.append(set(TokenGrant.objects.values_list("pk", flat=True)))
        return respond(request)

    ehr.interceptors.append(look)
    result = purge()
    # Tokens that nobody was told of are there until somebody is.
    assert left
    assert all(old not in each and pending in each for each in left)
    assert (result.grants_deleted, result.revocations_finished) == (2, 2)
    assert TokenGrant.objects.count() == 1


def test_purge_deletes_what_was_never_finished_after_a_day(
    ehr: EHRSimulator, settings: Any
) -> None:
    browser = make_browser()
    with time_machine.travel(timezone.now(), tick=False) as clock:
        kept = launch(browser, ehr)
        start_ehr_launch(browser, ehr)
        clock.shift(901)
        assert purge().launches_failed == 1
        clock.shift(timedelta(days=1) - timedelta(seconds=1))
        assert purge().launches_deleted == 0
        clock.shift(1)
        assert purge().launches_deleted == 1
    assert Launch.objects.get() == kept


def test_purge_deletes_what_has_been_over_for_long(ehr: EHRSimulator) -> None:
    browser = make_browser()
    with time_machine.travel(timezone.now(), tick=False) as clock:
        ended, kept = launch(browser, ehr), connect(browser, ehr)
        browser.post("/smart/logout/")
        purge()
        clock.shift(timedelta(days=30) - timedelta(seconds=1))
        assert (purge().launches_deleted, Launch.objects.count()) == (0, 2)
        clock.shift(1)
        result = purge()
    assert (result.launches_deleted, result.grants_deleted) == (2, 1)
    assert ended.grant != kept.grant
    # A grant that lives keeps its user, though its launch is forgotten.
    assert TokenGrant.objects.get() == kept.grant
    assert Identity.objects.count() == 1


def test_memory_of_a_purge_does_not_grow_with_what_it_deletes(
    registration: ClientRegistration,
) -> None:
    over = timezone.now() - timedelta(days=400)
    peaks = []
    for number in (2_000, 8_000):
        TokenGrant.objects.bulk_create(
            TokenGrant(
                registration=registration,
                status="revoked",
                received_at=over,
                expires_at=over,
                ended_at=over,
            )
            for _ in range(number)
        )
        tracemalloc.start()
        assert purge().grants_deleted == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def _make_old(registration: ClientRegistration, number: int) -> list[int]:
    """Launches with their grants, as many of each, that ended a year ago."""
    over = timezone.now() - timedelta(days=365)
    times = {"received_at": over, "expires_at": over, "ended_at": over}
    TokenGrant.objects.bulk_create(
        TokenGrant(registration=registration, status="revoked", **times)
        for _ in range(number)
    )
    for grant in (found := list(TokenGrant.objects.order_by("-pk")[:number])):
        Launch.objects.create(
            registration=registration,
            grant=grant,
            status="ended",
            expires_at=over,
            ended_at=over,
            state_digest=str(grant.pk),
        )
    return [grant.pk for grant in found]


@contextmanager
def _refusing(sender: Any, pks: set[int], error: Exception) -> Iterator[None]:
    """A site that lets nobody delete these rows."""

    def refuse(instance: Any, **_: Any) -> None:
        if instance.pk in pks:
            raise error

    pre_delete.connect(refuse, sender)
    try:
        yield
    finally:
        pre_delete.disconnect(refuse, sender)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("error", [ProtectedError, RestrictedError])
def test_rows_that_a_site_protects_are_left_out_and_counted(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    caplog: pytest.LogCaptureFixture,
    error: type[ProtectedError | RestrictedError],
) -> None:
    first, second, *_ = _make_old(registration, 5)
    (pending,) = make_grants(ehr, registration, 1)
    TokenGrant.objects.filter(pk=pending).end_pending_revocation(now=timezone.now())
    grants, launches = {first, second}, set(Launch.objects.values_list("pk")[0])
    refused = error("Notes refer to it.", set())
    with (
        caplog.at_level(logging.WARNING, "django_smart.launches.purge"),
        _refusing(TokenGrant, grants, refused),
        _refusing(Launch, launches, refused),
    ):
        result = purge()
    assert (result.launches_deleted, result.grants_deleted) == (4, 3)
    assert result.revocations_finished == 1
    assert set(TokenGrant.objects.values_list("pk", flat=True)) == {*grants, pending}
    assert set(Launch.objects.values_list("pk", flat=True)) == launches
    messages = sorted(each.getMessage() for each in caplog.records)
    assert [each.partition(";")[0] for each in messages] == [
        "Not deleted, because the site protects them: 1 of django_smart.Launch",
        "Not deleted, because the site protects them: 2 of django_smart.TokenGrant",
    ]
    # Once the site lets them go.
    result = purge()
    assert (result.launches_deleted, result.grants_deleted) == (1, 2)


@pytest.mark.django_db(transaction=True)
def test_tokens_of_a_row_that_a_site_protects_are_deleted(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (kept,) = make_grants(ehr, registration, 1)
    over = timezone.now() - timedelta(days=31)
    TokenGrant.objects.all().end_pending_revocation(now=over)
    answer(ehr, "/auth/revoke", status=503)
    with _refusing(TokenGrant, {kept}, ProtectedError("Notes refer to it.", set())):
        purge()
    grant = TokenGrant.objects.get()
    assert (grant.access_token, grant.refresh_token) == ("", "")


@pytest.mark.django_db(transaction=True)
def test_purge_gets_past_more_protected_rows_than_it_deletes_at_once(
    registration: ClientRegistration,
) -> None:
    over = timezone.now() - timedelta(days=365)
    TokenGrant.objects.bulk_create(
        TokenGrant(
            registration=registration,
            status="revoked",
            received_at=over,
            expires_at=over,
            ended_at=over + timedelta(seconds=number),
        )
        for number in range(1_003)
    )
    *protected, _, _ = TokenGrant.objects.order_by("ended_at").values_list(
        "pk", flat=True
    )
    refused = ProtectedError("Notes refer to it.", set())
    with _refusing(TokenGrant, set(protected), refused):
        assert purge().grants_deleted == 2
    assert TokenGrant.objects.count() == len(protected)


def test_receivers_that_use_up_the_time_keep_nothing_from_being_revoked(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    now = timezone.now()
    make_grant(
        registration, ends_at=now + timedelta(days=1), ends_soon_at=now, is_offline=True
    )
    ended = make_grant(registration)
    TokenGrant.objects.filter(pk=ended.pk).end_pending_revocation(now=now)

    def never_return(**_: Any) -> None:
        raise KeyboardInterrupt

    grant_ending.connect(never_return)
    try:
        with pytest.raises(KeyboardInterrupt):
            purge()
    finally:
        grant_ending.disconnect(never_return)
    assert not TokenGrant.objects.awaiting_revocation().exists()


# A worker whose clock is wrong


@pytest.mark.usefixtures("database_stays")
def test_worker_whose_clock_is_ahead_ends_nothing(ehr: EHRSimulator) -> None:
    launch(make_browser(), ehr)
    ended = launch(make_browser(), ehr)
    Launch.objects.filter(pk=ended.pk).end(reason="idle", now=timezone.now())
    with time_machine.travel(timezone.now() + timedelta(days=31)):
        purge()
    assert Launch.objects.filter(status=Launch.Status.OPEN).count() == 1
    assert Launch.objects.count() == 2
    assert TokenGrant.objects.active().count() == 1


@pytest.mark.usefixtures("database_stays")
def test_question_is_not_over_by_the_clock_of_a_worker(
    registration: ClientRegistration,
) -> None:
    waiting = make_launch(
        registration,
        status=Launch.Status.HELD,
        expires_at=timezone.now() + timedelta(minutes=5),
    )
    with time_machine.travel(timezone.now() + timedelta(hours=1)):
        end_expired_launches()
    assert Launch.objects.get(pk=waiting.pk).status == Launch.Status.HELD


def test_question_whose_tokens_another_version_wrote_keeps_no_others_open(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    past = timezone.now() - timedelta(minutes=1)
    newer = make_launch(
        registration,
        status=Launch.Status.HELD,
        expires_at=past,
        held='{"of": "another version"}',
    )
    other = make_launch(registration, status=Launch.Status.HELD, expires_at=past)
    left = make_grants(ehr, registration, 1)
    TokenGrant.objects.filter(pk__in=left).end_pending_revocation(now=past)
    assert purge().revocations_finished == 1
    for each in (newer, other):
        each.refresh_from_db()
        assert (each.status, each.held) == ("failed", "")
