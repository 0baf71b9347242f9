"""How grants are doing: counts by status, what is due, and since when."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from django_smart.contrib.monitoring import read_health
from django_smart.models import ClientRegistration, ServerState, TokenGrant
from tests.ehr import connect, make_browser
from tests.factories import make_grant, make_registration, make_server
from tests.grants.working import refresh_grants

pytestmark = pytest.mark.django_db

NOW = timezone.now().replace(microsecond=0)


@pytest.fixture
def registration() -> ClientRegistration:
    """At the server ``harbour``, without an EHR behind it."""
    return make_registration()


def read(registration: ClientRegistration) -> Any:
    return read_health()[registration.server_id]


def test_grants_are_counted_by_status(registration):
    for status in ("active", "active", "needs_reauthorization", "revoked"):
        make_grant(registration, status=status)
    health = read(registration)
    assert (health.slug, health.is_active) == ("harbour", True)
    assert health.grants == {
        "active": 2,
        "held": 0,
        "needs_reauthorization": 1,
        "revoked": 1,
        "expired": 0,
    }


def test_server_without_grants_has_zeros(registration):
    health = read(registration)
    assert set(health.grants.values()) == {0}
    assert (health.due, health.failing, health.oldest_due_at) == (0, 0, None)
    assert health.last_success_at is None
    assert health.overdue == timedelta(0)


def test_due_grants_are_counted_with_the_longest_wait(registration):
    for minutes in (1, 7, 3):
        make_grant(registration, refresh_due_at=NOW - timedelta(minutes=minutes))
    make_grant(registration)
    health = read(registration)
    assert health.due == 3
    assert health.oldest_due_at == NOW - timedelta(minutes=7)
    assert health.overdue == health.read_at - health.oldest_due_at


def test_what_no_worker_refreshes_is_not_due(registration):
    before = NOW - timedelta(minutes=1)
    gone = get_user_model().objects.create_user("gone", is_active=False)
    make_grant(registration, refresh_due_at=before, is_offline=False)
    make_grant(registration, refresh_due_at=before, status="revoked")
    make_grant(registration, refresh_due_at=before, user=gone)
    assert read(registration).due == 0


def test_grants_of_a_registration_that_is_stopped_are_told_of_apart(registration):
    make_grant(registration, refresh_due_at=NOW - timedelta(minutes=1))
    ClientRegistration.objects.update(refresh_stopped_at=NOW)
    health = read(registration)
    assert (health.due, health.stopped_registrations) == (0, 1)


def test_last_success_failure_and_pause_are_those_of_the_server(registration):
    ServerState.objects.update(
        last_success_at=NOW - timedelta(minutes=2),
        last_failure_at=NOW - timedelta(minutes=1),
        last_error="server_timeout",
        paused_until=NOW + timedelta(hours=3),
    )
    health = read(registration)
    assert health.last_success_at == NOW - timedelta(minutes=2)
    assert health.last_failure_at == NOW - timedelta(minutes=1)
    assert health.last_error == "server_timeout"
    assert health.paused_until == NOW + timedelta(hours=3)


def test_pause_that_is_over_is_none(registration):
    ServerState.objects.update(paused_until=NOW)
    assert read(registration).paused_until is None


@pytest.mark.usefixtures("ehr")
def test_refresh_and_its_failure_leave_their_times(registration, ehr):
    grant_id = connect(make_browser(), ehr).grant_id
    assert grant_id is not None
    for faults in ([], ["refresh_500"]):
        ehr.faults = faults
        TokenGrant.objects.update(refresh_due_at=timezone.now())
        refresh_grants([grant_id])
    health = read(registration)
    assert health.last_success_at is not None
    assert health.last_failure_at > health.last_success_at
    assert (health.last_error, health.failing) == ("token_server_error", 1)


def test_failing_grants_are_the_active_ones_whose_last_refresh_failed(registration):
    make_grant(registration, refresh_failures=3)
    make_grant(registration, refresh_failures=1, status="revoked")
    make_grant(registration)
    assert read(registration).failing == 1


def test_each_server_is_counted_for_itself(registration):
    other = make_registration(
        server__slug="lake", server__base_url="https://lake.example.org/fhir"
    )
    second = ClientRegistration.objects.create(
        server=other.server, client_id="another", ehr_scope="", standalone_scope=""
    )
    for one in (registration, other, second):
        make_grant(one, refresh_due_at=NOW - timedelta(minutes=one.pk))
    health = {one.slug: one for one in read_health().values()}
    assert list(health) == ["harbour", "lake"]
    assert [one.due for one in health.values()] == [1, 2]
    assert [one.grants["active"] for one in health.values()] == [1, 2]
    assert list(read_health([other.server_id])) == [other.server_id]


def test_number_of_queries_does_not_grow_with_servers(
    registration, django_assert_num_queries
):
    for number in range(5):
        make_server(slug=f"s{number}", base_url=f"https://ehr.example.org/{number}")
    make_grant(registration)
    with django_assert_num_queries(3):
        assert len(read_health()) == 6
