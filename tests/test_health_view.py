"""The JSON health view: for staff and for who has the token."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.urls import path
from django.utils import timezone

from django_smart.grants.deployment import hold_grants
from django_smart.models import FHIRServer, ServerState, TaskRun
from django_smart.models.task_run import REFRESH
from django_smart.views import HealthView
from tests.factories import make_grant, make_registration
from tests.redaction.reporting import ADMINS

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

TOKEN = "a token of the monitor's own"

urlpatterns = [
    path("health/", HealthView.as_view(token=TOKEN, overdue_after=600)),
    path("staff/", HealthView.as_view()),
    path("broken/", lambda request: HttpResponse(status=503)),
]


def get(path: str = "/health/", token: str | None = TOKEN, **headers: str) -> Any:
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return Client().get(path, headers=headers)


def sign_in(*, is_staff: bool, may_view: bool) -> Client:
    user = User.objects.create_user("somebody", is_staff=is_staff)
    if may_view:
        user.user_permissions.add(Permission.objects.get(codename="view_fhirserver"))
    browser = Client()
    browser.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return browser


def test_monitor_with_the_token_gets_the_counts():
    registration = make_registration()
    make_grant(registration, patient_id="hush-patient")
    make_grant(registration, refresh_due_at=timezone.now() - timedelta(minutes=2))
    response = get()
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    assert "no-store" in response["Cache-Control"]
    assert "hush" not in response.text
    body = response.json()
    assert body["status"] == "ok"
    (server,) = body["servers"]
    assert 120 <= server.pop("oldest_overdue_seconds") < 180
    assert server == {
        "server": "harbour",
        "status": "ok",
        "is_active": True,
        "grants": {
            "active": 2,
            "held": 0,
            "needs_reauthorization": 0,
            "revoked": 0,
            "expired": 0,
        },
        "due": 1,
        "failing": 0,
        "lost_last_hour": 0,
        "paused": False,
        "paused_until": None,
        "stopped_registrations": 0,
        "ending": 0,
        "last_success_at": None,
        "last_failure_at": None,
        "last_error": "",
    }


LATE = timedelta(minutes=11)


def get_status() -> tuple[int, str, str]:
    """Of the answer, of the site, and of its first server."""
    response = get()
    body = response.json()
    return response.status_code, body["status"], body["servers"][0]["status"]


def make_late(**values: Any) -> None:
    """A grant that has waited too long, at the server that has *values*."""
    make_grant(make_registration(**values), refresh_due_at=timezone.now() - LATE)


def test_grant_that_waits_too_long_while_nothing_runs_shows_no_worker():
    make_late()
    assert get_status() == (503, "no_worker", "overdue")
    TaskRun.objects.note(REFRESH)
    TaskRun.objects.update(ran_at=timezone.now() - LATE)
    assert get_status() == (503, "no_worker", "overdue")


def test_grant_that_waits_too_long_although_workers_run_is_overdue():
    TaskRun.objects.note(REFRESH)
    make_late()
    assert get_status() == (503, "overdue", "overdue")
    assert get().json()["servers"][0]["due"] == 1


@pytest.mark.parametrize("minutes", [1, -1])
def test_grants_that_wait_for_the_ehr_are_no_fault_of_the_workers(minutes):
    TaskRun.objects.note(REFRESH)
    until = timezone.now() + timedelta(minutes=minutes)
    make_late(server__state__paused_until=until)
    assert get_status() == (503, "ehr_paused", "ehr_paused")


def test_pause_by_an_operator_or_for_a_moment_is_no_alarm():
    make_registration(server__paused=True)
    assert get_status() == (200, "ok", "ehr_paused")
    FHIRServer.objects.update(paused=False)
    ServerState.objects.update(paused_until=timezone.now() + timedelta(minutes=1))
    assert get_status() == (200, "ok", "ehr_paused")


def test_server_at_which_more_than_a_fifth_of_the_grants_fail_is_failing():
    registration = make_registration()
    for _ in range(20):
        make_grant(registration)
    failing: dict[str, Any] = {"refresh_failures": 1}
    for _ in range(5):
        make_grant(registration, **failing)
    # Nobody refreshes these.
    others: list[dict[str, Any]] = [{"is_offline": False}, {"status": "revoked"}]
    for other in others:
        make_grant(registration, **failing, **other)
    assert get_status() == (200, "ok", "ok")
    make_grant(registration, **failing)
    assert get_status() == (503, "failing", "failing")
    FHIRServer.objects.update(is_active=False)
    assert get_status() == (200, "ok", "ok")


def test_few_failing_grants_are_no_alarm():
    registration = make_registration()
    for _ in range(4):
        make_grant(registration, refresh_failures=9)
    assert get_status() == (200, "ok", "ok")


def test_many_lost_grants_are_told_by_the_status():
    registration = make_registration()
    lost: dict[str, Any] = {
        "status": "needs_reauthorization",
        "ended_at": timezone.now(),
    }
    for _ in range(19):
        make_grant(registration, **lost)
    over = timezone.now() - timedelta(days=1)
    make_grant(registration, ends_at=over, **lost)
    assert get_status() == (200, "ok", "ok")
    make_grant(registration, **lost)
    assert get_status() == (503, "many_lost", "many_lost")


def test_registration_whose_grants_are_refused_has_lost_many():
    make_registration(
        refresh_stopped_at=timezone.now(), refresh_stop_reason="grants_refused"
    )
    assert get_status() == (503, "many_lost", "many_lost")


def test_worst_of_several_servers_is_the_status_of_the_site():
    TaskRun.objects.note(REFRESH)
    make_late()
    make_registration(
        server__slug="lake",
        server__base_url="https://lake.example.org/fhir",
        refresh_stopped_at=timezone.now(),
    )
    assert get_status() == (503, "stopped", "overdue")


def test_registration_that_is_stopped_is_told_by_the_status():
    make_grant(make_registration(refresh_stopped_at=timezone.now()))
    response = get()
    assert (response.status_code, response.json()["status"]) == (503, "stopped")
    assert response.json()["servers"][0]["stopped_registrations"] == 1


def test_site_without_servers_is_well():
    assert get().json()["servers"] == []


@pytest.mark.parametrize("token", ["", "another", TOKEN + "x", "é", None])
def test_other_token_is_refused(token):
    response = get(token=token)
    assert response.status_code == 401
    assert response["WWW-Authenticate"] == "Bearer"
    assert "servers" not in response.json()


@pytest.mark.parametrize("token", ["", TOKEN, None])
def test_without_a_token_of_the_sites_none_is_taken(token):
    response = get("/staff/", token=token)
    assert response.status_code == 403
    assert "staff" in response.json()["error"]


@pytest.mark.parametrize("address", ["/staff/", "/health/"])
def test_staff_who_may_view_servers_get_the_counts(address):
    browser = sign_in(is_staff=True, may_view=True)
    assert browser.get(address).json()["status"] == "ok"


@pytest.mark.parametrize(("is_staff", "may_view"), [(True, False), (False, True)])
def test_others_who_are_signed_in_are_refused(is_staff, may_view):
    browser = sign_in(is_staff=is_staff, may_view=may_view)
    assert browser.get("/staff/").status_code == 403


@pytest.mark.parametrize("values", [{}, {"is_staff": True}])
def test_users_of_a_model_without_staff_or_permissions_are_refused(values):
    request: Any = RequestFactory().get("/staff/")
    request.user = SimpleNamespace(is_active=True, **values)
    assert HealthView.as_view()(request).status_code == 403


def test_short_token_is_a_mistake_of_the_configuration():
    with pytest.raises(ImproperlyConfigured, match="16 characters"):
        HealthView.as_view(token="short")


def test_it_is_read_only():
    assert Client().post("/health/").status_code == 405


def test_database_that_is_away_is_told_of_without_an_error_page():
    def fail(*_: Any) -> None:
        raise DatabaseError("the connection was lost: hush")

    with connection.execute_wrapper(fail):
        response = get()
    assert (response.status_code, response.json()) == (503, {"status": "unavailable"})


def test_unhealthy_state_mails_nobody(settings, mailoutbox):
    settings.ADMINS = ADMINS
    hold_grants()
    for _ in range(2):
        assert get().status_code == 503
    assert mailoutbox == []
    # Django's default LOGGING mails this of any other view.
    assert Client().get("/broken/").status_code == 503
    assert len(mailoutbox) == 1


def test_grants_of_another_deployment_are_no_health():
    hold_grants()
    response = get()
    assert (response.status_code, response.json()["status"]) == (503, "not_adopted")
