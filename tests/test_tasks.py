"""Celery's tasks: they take primary keys and do one thing, also twice."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from celery import Celery
from celery.beat import ScheduleEntry
from django.utils import timezone

from django_smart import tasks
from django_smart.grants.ending import disconnect_grant
from django_smart.models import FHIRServer, Launch, TokenGrant
from django_smart.schedule import BEAT_SCHEDULE
from django_smart.testing import EHRSimulator
from tests.celery import Broker, app
from tests.ehr import connect, make_browser, start_ehr_launch

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("registration")]


def test_beat_runs_tasks_that_exist() -> None:
    for entry in BEAT_SCHEDULE.values():
        assert entry["task"] in app.tasks
    assert tasks.refresh_due_grants.name in {
        entry["task"] for entry in BEAT_SCHEDULE.values()
    }


def test_beat_goes_on_when_daylight_saving_time_ends() -> None:
    site = Celery("clinic", set_as_current=False)
    site.conf.update(timezone="America/New_York")
    # Five seconds before the clocks are set back.
    before = datetime(2026, 11, 1, 5, 59, 55, tzinfo=UTC)
    with time_machine.travel(before, tick=False) as clock:
        for name, each in BEAT_SCHEDULE.items():
            entry = ScheduleEntry(name=name, app=site, **each)
            # Celery 5.7 counts in local time correctly, too.
            assert str(entry.last_run_at).endswith("+00:00")
            clock.shift(each["schedule"].run_every)
            is_due, _ = entry.is_due()
            assert is_due
            clock.move_to(before)
        # Beat keeps the schedule in a file.
        for each in BEAT_SCHEDULE.values():
            assert pickle.loads(pickle.dumps(each)) == each


def test_due_grants_are_sent_to_the_workers_by_their_server(
    ehr: EHRSimulator, broker: Broker
) -> None:
    connect(make_browser(), ehr)
    tasks.refresh_due_grants()
    assert broker.messages == []
    TokenGrant.objects.update(refresh_due_at=timezone.now() - timedelta(seconds=1))
    # Ticks that accumulated send one message.
    for _ in range(2):
        tasks.refresh_due_grants()
    # The message holds a key and nothing else.
    assert broker.messages == [("refresh_grants", (FHIRServer.objects.get().pk,))]
    # Whether it is late is for the database to say: the clocks of hosts differ.
    assert broker.options[0]["expires"] is None
    for _ in range(2):
        tasks.refresh_grants(*broker.messages[0][1])
    assert len(ehr.requests_to("refresh")) == 1


def test_work_is_acknowledged_late_as_it_may_run_twice() -> None:
    assert tasks.refresh_grants.acks_late is True


@pytest.mark.parametrize(
    ("name", "limit"), [("refresh_grants", 86400), ("purge", 3900)]
)
def test_time_limits_of_the_site_are_not_for_tasks_that_wait(
    name: str, limit: int
) -> None:
    site = Celery("clinic", set_as_current=False)
    site.conf.update(task_soft_time_limit=60, task_time_limit=300)
    waiting = site.tasks[f"django_smart.tasks.{name}"]
    assert (waiting.soft_time_limit, waiting.time_limit) == (3600, limit)


def test_batch_of_a_worker_that_was_killed_goes_to_another() -> None:
    assert tasks.refresh_grants.reject_on_worker_lost is True


def test_revoking_tells_the_ehr_once(ehr: EHRSimulator) -> None:
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    disconnect_grant(grant)
    for _ in range(2):
        tasks.refresh_due_grants.delay()
    # The refresh token and the access token.
    assert len(ehr.requests_to("revoke")) == 2


def test_servers_and_old_rows_are_seen_to(ehr: EHRSimulator) -> None:
    tasks.refresh_servers.delay()
    assert FHIRServer.objects.get().state.configuration is not None
    start_ehr_launch(make_browser(), ehr)
    Launch.objects.update(expires_at=timezone.now())
    tasks.purge.delay()
    assert Launch.objects.get().status == "failed"
