"""The admin's lists where a busy site has been at work for years."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_smart.models import Launch, TokenGrant
from tests.factories import make_registration

pytestmark = [pytest.mark.django_db, pytest.mark.long, pytest.mark.timeout(600)]

_ROWS = 100_000
_USERS = 1000
_QUERIES = 14
_SECONDS = 5.0  # far less where nothing else runs


@pytest.fixture
def browser(admin_client: Client) -> Client:
    """Staff, where 100,000 launches led to as many grants in a year."""
    registration = make_registration()
    User.objects.bulk_create(User(username=f"user-{n}") for n in range(_USERS))
    users = list(User.objects.filter(username__startswith="user-"))
    now = timezone.now()
    launches, grants = [], []
    for number in range(_ROWS):
        at = now - timedelta(minutes=5 * number)
        user = users[number % _USERS]
        common: dict[str, Any] = {"registration": registration, "user": user}
        launches.append(
            Launch(
                **common,
                kind=Launch.Kind.EHR,
                status=Launch.Status.ENDED if number % 20 else Launch.Status.FAILED,
                error_code="" if number % 20 else "access_denied",
                state_digest=f"{number:064}",
                browser_digest="y",
                expires_at=at,
            )
        )
        grants.append(
            TokenGrant(
                **common,
                scope="patient/Patient.rs offline_access",
                is_offline=True,
                received_at=at,
                expires_at=at,
                refresh_due_at=at,
                ends_at=at,
            )
        )
    Launch.objects.bulk_create(launches, batch_size=2000)
    TokenGrant.objects.bulk_create(grants, batch_size=2000)
    return admin_client


def test_lists_of_a_hundred_thousand_rows_open_at_once(browser: Client) -> None:
    slow = []
    for path in (
        "launch/",
        "launch/?status__exact=failed",
        "launch/?q=access_denied",
        "launch/?q=user-77",
        "tokengrant/",
        "tokengrant/?status__exact=active",
        "tokengrant/?q=harbour",
        "tokengrant/?o=4",
        "tokengrant/?ends_at__isempty=0&o=7",
        "identity/",
        "fhirserver/",
        "clientregistration/",
    ):
        with CaptureQueriesContext(connection) as queries:
            start = time.perf_counter()
            response = browser.get(f"/admin/django_smart/{path}")
            seconds = time.perf_counter() - start
        assert response.status_code == 200
        if seconds > _SECONDS or len(queries) > _QUERIES:
            slow.append(f"{path}: {seconds:.1f} s, {len(queries)} queries")
    assert slow == []


def test_list_counts_and_selects_its_first_ten_thousand_rows(
    admin_client: Client,
) -> None:
    registration = make_registration()
    now = timezone.now()
    Launch.objects.bulk_create(
        [
            Launch(
                registration=registration,
                kind=Launch.Kind.EHR,
                state_digest=f"{number:064}",
                browser_digest="y",
                expires_at=now,
            )
            for number in range(10_001)
        ],
        batch_size=2000,
    )
    url = "/admin/django_smart/launch/"
    page = admin_client.get(url)
    oldest = Launch.objects.order_by("pk").first()
    latest = Launch.objects.order_by("pk").last()
    assert oldest is not None
    changes = page.context["cl"]
    assert changes.result_list[0] == latest
    assert changes.result_count == 10_000
    form = {"action": "end", "select_across": "1", "_selected_action": [oldest.pk]}
    admin_client.post(url, form)
    assert list(Launch.objects.pending()) == [oldest]
