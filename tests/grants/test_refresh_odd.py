"""Odd answers, lifetimes and clocks: nothing is lost, and nothing asked for twice."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import time_machine
from django.db import connection
from django.utils import timezone
from werkzeug.wrappers import Request, Response

from django_smart.grants.refresh import get_access_token
from django_smart.grants.turn import RefreshResult
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.signals import grant_lost
from django_smart.testing import EHRSimulator
from tests.answers import Respond, answer
from tests.ehr import listening
from tests.factories import (
    make_due,
    make_grant,
    make_grants,
    make_registration,
    make_server,
    reload_grant,
)
from tests.grants.working import refresh_due, refresh_grants

pytestmark = pytest.mark.django_db

# On SQLite the clock of the host is that of the database.
_ONE_CLOCK = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="has no clock of its own"
)
_OFF = pytest.mark.parametrize("off", [timedelta(minutes=10), -timedelta(minutes=10)])


def _refuse(ehr: EHRSimulator, grant_id: int, errors: list[str]) -> None:
    """Refuse the refresh token of one grant as OpenEMR does, with each of *errors*."""
    dead = reload_grant(grant_id).refresh_token

    def respond(respond: Respond, request: Request) -> Response:
        if dead.encode() not in request.get_data():
            return respond(request)
        error = json.dumps({"error": errors.pop(0)})
        return Response(error, status=401, content_type="application/json")

    ehr.interceptors.append(respond)


def _refresh_at(hours: list[float], *grant_ids: int) -> None:
    now = timezone.now()
    for each in hours:
        with time_machine.travel(now + timedelta(hours=each)):
            refresh_grants([make_due(grant_id) for grant_id in grant_ids])


@pytest.mark.usefixtures("database_travels")
@pytest.mark.parametrize("error", ["invalid_request", "invalid_client", "no_such"])
def test_refusal_that_repeats_for_a_day_ends_the_grant(
    ehr: EHRSimulator, registration: ClientRegistration, error: str
) -> None:
    dead, other = make_grants(ehr, registration, 2)
    _refuse(ehr, dead, [error] * 5)
    with listening(grant_lost) as lost:
        _refresh_at([0, 6, 12, 18], other, dead)
        assert reload_grant(dead).status == "active"
        assert lost == []
        _refresh_at([24], other, dead)
    assert reload_grant(dead).status == "needs_reauthorization"
    assert [each["grant"].pk for each in lost] == [dead]
    assert reload_grant(other).status == "active"
    registration.refresh_from_db()
    assert registration.refresh_stopped_at is None


_SAME = ["invalid_request"] * 5


@pytest.mark.usefixtures("database_travels")
@pytest.mark.parametrize(
    ("hours", "errors", "is_other_refreshed"),
    [
        pytest.param([0, 5, 10, 15, 20], _SAME, True, id="within a day"),
        pytest.param([0, 8, 16, 24], _SAME, True, id="four"),
        pytest.param([0, 6, 12, 18, 24], _SAME, False, id="no other grant"),
        pytest.param(
            [0, 6, 12, 18, 24],
            ["invalid_request", "invalid_scope", *_SAME],
            True,
            id="another error",
        ),
        pytest.param(
            [0, 6, 12, 18, 24], ["temporarily_unavailable"] * 5, True, id="passing"
        ),
    ],
)
def test_refusal_that_may_pass_costs_no_grant(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    hours: list[float],
    errors: list[str],
    is_other_refreshed: bool,
) -> None:
    dead, other = make_grants(ehr, registration, 2)
    # It was just refreshed, and its access token has ended now.
    now = timezone.now()
    TokenGrant.objects.update(received_at=now, expires_at=now)
    _refuse(ehr, dead, [*errors])
    _refresh_at(hours, *([other] if is_other_refreshed else []), dead)
    assert reload_grant(dead).status == "active"


@pytest.mark.usefixtures("database_travels")
def test_new_connection_says_nothing_about_a_refused_grant(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (dead,) = make_grants(ehr, registration, 1)
    _refuse(ehr, dead, [*_SAME])
    _refresh_at([0, 6, 12, 18], dead)
    with time_machine.travel(timezone.now() + timedelta(hours=24)):
        make_grant(registration)
        refresh_grants([make_due(dead)])
    assert reload_grant(dead).status == "active"


@pytest.mark.usefixtures("database_travels")
def test_refresh_of_another_client_says_nothing_about_a_refused_grant(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (dead,) = make_grants(ehr, registration, 1)
    elsewhere = make_server(slug="b", base_url="https://b.example.org/fhir")
    (other,) = make_grants(ehr, make_registration(elsewhere), 1)
    refreshed_at = timezone.now() + timedelta(hours=23)
    TokenGrant.objects.filter(pk=other).update(received_at=refreshed_at)
    _refuse(ehr, dead, [*_SAME])
    _refresh_at([0, 6, 12, 18, 24], dead)
    assert reload_grant(dead).status == "active"


def test_answer_that_would_keep_a_worker_busy_is_not_parsed(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    before = reload_grant(grant_id).refresh_token
    # Ten megabytes of this take seconds, and come compressed in no time.
    answer(ehr, "/auth/token", vendor_note=[[]] * 200_000)
    assert refresh_due() == RefreshResult(failed=1)
    after = reload_grant(grant_id)
    assert (after.status, after.last_error) == ("active", "response_too_large")
    assert after.refresh_token == before


def test_token_that_ends_as_it_comes_is_used_and_not_renewed_all_the_time(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    ehr.access_token_lifetime = 0
    (grant_id,) = make_grants(ehr, registration, 1)
    assert refresh_due() == RefreshResult(refreshed=1)
    assert refresh_due() == RefreshResult()
    grant = reload_grant(grant_id)
    assert get_access_token(grant) == reload_grant(grant_id).access_token
    assert grant.status == "active"


@_ONE_CLOCK
@_OFF
def test_host_whose_clock_is_off_refreshes_as_the_others_do(
    ehr: EHRSimulator, registration: ClientRegistration, off: timedelta
) -> None:
    ehr.access_token_lifetime = 300
    due, later = make_grants(ehr, registration, 2)
    now = timezone.now()
    TokenGrant.objects.filter(pk=due).update(
        refresh_due_at=now - timedelta(seconds=1), expires_at=now + timedelta(minutes=1)
    )
    TokenGrant.objects.filter(pk=later).update(
        refresh_due_at=now + timedelta(minutes=5), expires_at=now + timedelta(minutes=6)
    )
    with time_machine.travel(now + off):
        assert refresh_due() == RefreshResult(refreshed=1)
        assert refresh_due() == RefreshResult()
    grant = reload_grant(due)
    assert abs(grant.received_at - timezone.now()) < timedelta(minutes=1)
    assert grant.expires_at - grant.received_at == timedelta(seconds=300)
    assert grant.refresh_due_at is not None
    assert timedelta(minutes=3) < grant.refresh_due_at - timezone.now()
    assert grant.refresh_due_at < grant.expires_at
    assert reload_grant(later).received_at < now


@_ONE_CLOCK
@_OFF
def test_view_of_a_host_whose_clock_is_off_asks_for_no_token_too_many(
    ehr: EHRSimulator, registration: ClientRegistration, off: timedelta
) -> None:
    (grant_id,) = make_grants(ehr, registration, 1)
    now = timezone.now()
    with time_machine.travel(now + off):
        # Ended by either clock.
        token = get_access_token(reload_grant(grant_id))
    stored = reload_grant(grant_id)
    assert stored.access_token == token
    assert abs(stored.received_at - timezone.now()) < timedelta(minutes=1)
    ends = timezone.now() + timedelta(minutes=5)
    TokenGrant.objects.update(expires_at=ends)
    ehr.clear_requests()
    with time_machine.travel(now + off):
        assert get_access_token(reload_grant(grant_id)) == token
    assert ehr.requests == []
