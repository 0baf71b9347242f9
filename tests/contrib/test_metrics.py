"""The same numbers for Prometheus."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from django_smart.contrib.monitoring import GrantCollector
from django_smart.grants.counting import Outcomes, count_lost, count_refresh
from django_smart.grants.deployment import hold_grants
from django_smart.models import TaskRun
from django_smart.models.task_run import REFRESH
from tests.factories import make_grant, make_registration

prometheus_client = pytest.importorskip(
    "prometheus_client", reason="needs the extra prometheus"
)


@pytest.fixture
def registry():
    """With the collector."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(GrantCollector())
    return registry


@pytest.mark.django_db
def test_numbers_are_those_of_the_database(registry):
    registration = make_registration()
    make_grant(registration, status="revoked", patient_id="hush-patient")
    make_grant(registration, refresh_failures=2)
    make_grant(registration, refresh_due_at=timezone.now() - timedelta(minutes=2))
    text = prometheus_client.generate_latest(registry).decode()
    lines = text.splitlines()
    assert 'django_smart_grants{server="harbour",status="active"} 2.0' in lines
    assert 'django_smart_grants{server="harbour",status="revoked"} 1.0' in lines
    assert 'django_smart_grants{server="harbour",status="expired"} 0.0' in lines
    assert 'django_smart_grants_due{server="harbour"} 1.0' in lines
    assert 'django_smart_grants_failing{server="harbour"} 1.0' in lines
    labels = {"server": "harbour"}
    overdue = registry.get_sample_value(
        "django_smart_grants_oldest_overdue_seconds", labels
    )
    assert 120 <= overdue < 180
    assert 'django_smart_refresh_paused{server="harbour"} 0.0' in lines
    assert 'django_smart_registrations_stopped{server="harbour"} 0.0' in lines
    assert "hush" not in text


@pytest.mark.django_db
def test_trouble_of_a_server_is_told(registry):
    now = timezone.now()
    make_registration(
        refresh_stopped_at=now,
        server__state__paused_until=now + timedelta(minutes=1),
        server__state__last_success_at=now - timedelta(minutes=2),
        server__state__last_failure_at=now,
    )

    def get(name: str) -> Any:
        return registry.get_sample_value(f"django_smart_{name}", {"server": "harbour"})

    assert get("refresh_paused") == get("registrations_stopped") == 1
    assert get("last_failure_timestamp_seconds") == now.timestamp()
    assert get("last_success_timestamp_seconds") == now.timestamp() - 120


@pytest.mark.django_db
def test_counts_of_all_processes_are_shown(registry):
    registration = make_registration()

    def get(name: str, **labels: str) -> Any:
        labels["server"] = "harbour"
        return registry.get_sample_value(f"django_smart_{name}", labels)

    # Zero before the first one, or the first would be no increase.
    assert get("refreshes_total", code="ok") == 0
    assert get("grants_lost_total", reason="invalid_grant") == 0
    assert get("refresh_seconds_count") == 0
    for seconds in (0.05, 0.3, 0.4, 99):
        count_refresh(make_grant(registration), "ok", seconds=seconds)
    outcomes = Outcomes(registration.server_id)
    outcomes.add("discovery_unreachable", number=7)
    outcomes.write()
    count_lost(make_grant(registration), "invalid_grant")
    assert get("refreshes_total", code="ok") == 4
    assert get("refreshes_total", code="discovery_unreachable") == 7
    assert get("grants_lost_total", reason="invalid_grant") == 1
    assert get("refresh_seconds_bucket", le="0.1") == 1
    assert get("refresh_seconds_bucket", le="0.5") == 3
    assert get("refresh_seconds_bucket", le="20.0") == 3
    # Those that were not sent took no time.
    assert get("refresh_seconds_count") == get("refresh_seconds_bucket", le="+Inf") == 4
    assert get("refresh_seconds_sum") == pytest.approx(99.75)


@pytest.mark.django_db
def test_run_and_owner_are_shown_for_the_site(registry):
    def get(name: str) -> Any:
        return registry.get_sample_value(f"django_smart_{name}")

    assert get("last_run_timestamp_seconds") is None
    assert get("deployment_adopted") == 1
    TaskRun.objects.note(REFRESH)
    hold_grants()
    assert time.time() - get("last_run_timestamp_seconds") < 60
    assert get("deployment_adopted") == 0


@pytest.mark.django_db
def test_server_that_never_answered_has_no_time(registry):
    make_registration()
    text = prometheus_client.generate_latest(registry).decode()
    assert "django_smart_last_success_timestamp_seconds{" not in text
    assert "django_smart_last_failure_timestamp_seconds{" not in text


@pytest.mark.django_db(transaction=True)
def test_scrape_in_a_thread_of_its_own_leaves_no_connection(registry):
    make_registration()

    def scrape() -> bool:
        prometheus_client.generate_latest(registry)
        return connection.connection is None

    with ThreadPoolExecutor() as threads:
        assert threads.submit(scrape).result()


def test_registering_asks_no_database():
    """Without the fixture of the database, a query would fail."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(GrantCollector())
    assert "django_smart_grants" in registry._names_to_collectors
