"""The JSON health view: for staff and for who has the token."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection
from django.test import Client
from django.urls import path
from django.utils import timezone

from django_smart.views import HealthView
from tests.factories import make_grant, make_registration

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

TOKEN = "a token of the monitor's own"

urlpatterns = [
    path("health/", HealthView.as_view(token=TOKEN, overdue_after=600)),
    path("staff/", HealthView.as_view()),
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
        "is_active": True,
        "grants": {
            "active": 2,
            "needs_reauthorization": 0,
            "revoked": 0,
            "expired": 0,
        },
        "due": 1,
        "failing": 0,
        "paused_until": None,
        "stopped_registrations": 0,
        "last_success_at": None,
        "last_failure_at": None,
        "last_error": "",
    }


def test_grant_that_waits_too_long_is_told_by_the_status():
    late = timezone.now() - timedelta(minutes=11)
    make_grant(make_registration(), refresh_due_at=late)
    response = get()
    assert (response.status_code, response.json()["status"]) == (503, "overdue")
    assert response.json()["servers"][0]["due"] == 1


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
