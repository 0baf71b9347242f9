"""Which records the task and the command read, and which they forget."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db.models import F
from django.test import Client
from django.utils import timezone
from werkzeug.wrappers import Response

from django_smart.contrib.monitoring import GrantCollector
from django_smart.contrib.records import sync_record
from django_smart.contrib.records.due import build_sink, find_due_grants
from django_smart.contrib.records.models import StoredResource, SyncedType, SyncRun
from django_smart.contrib.records.schedule import RECORDS_SCHEDULE
from django_smart.contrib.records.signals import record_synced
from django_smart.contrib.records.sinks import ModelSink, NDJSONSink
from django_smart.contrib.records.tasks import sync_due_records
from django_smart.grants.ending import disconnect_grant
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    ServerState,
    TokenGrant,
)
from django_smart.testing import EHRSimulator
from tests.celery import Broker
from tests.ehr import PATIENT, connect, launch, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

RECORD_SCOPE = "openid fhirUser launch/patient offline_access patient/*.rs"


@pytest.fixture(autouse=True)
def sink(settings: Any) -> None:
    path = "django_smart.contrib.records.sinks.ModelSink"
    settings.SMART_RECORDS_SINK = path


@pytest.fixture
def grant(db: None, ehr: EHRSimulator) -> TokenGrant:
    """A patient's connection."""
    make_registration(
        standalone_scope=RECORD_SCOPE,
        ehr_scope="launch openid fhirUser offline_access patient/*.rs",
    )
    return connect_again(ehr)


def connect_again(ehr: EHRSimulator) -> TokenGrant:
    grant = connect(make_browser(), ehr, patient=PATIENT).grant
    assert grant is not None
    # The patient's own account, and no clinician's.
    Identity.objects.update(fhir_user=f"Patient/{PATIENT}")
    return grant


def make_due() -> None:
    then = timezone.now() - timedelta(hours=25)
    SyncRun.objects.update(started_at=then, finished_at=then)


def test_task_reads_each_record_once_a_day(grant: TokenGrant) -> None:
    sync_due_records()
    run = SyncRun.objects.get()
    assert run.is_complete
    sync_due_records()
    run.refresh_from_db()
    assert run.number == 1
    make_due()
    sync_due_records()
    run.refresh_from_db()
    assert run.number == 2


def test_newest_grant_of_a_connection_reads_it(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    newer = connect_again(ehr)
    assert find_due_grants(ModelSink()) == [newer.pk]


def test_chart_that_a_clinician_opened_is_not_read(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    disconnect_grant(grant)
    launch(make_browser(), ehr)
    assert TokenGrant.objects.active().offline().exists()
    assert find_due_grants(ModelSink()) == []


def test_patient_that_a_clinician_chose_is_not_read(grant: TokenGrant) -> None:
    Identity.objects.update(fhir_user="Practitioner/1")
    assert find_due_grants(ModelSink()) == []
    Identity.objects.update(fhir_user="Patient/1")
    assert find_due_grants(ModelSink()) == [grant.pk]


def test_record_in_work_is_not_due(grant: TokenGrant) -> None:
    sync_due_records()
    make_due()
    assert SyncRun.objects.take(SyncRun.objects.get().pk, "another process")
    assert find_due_grants(ModelSink()) == []


@pytest.mark.parametrize("lack", ["paused", "busy", "stopped", "inactive"])
def test_record_at_a_server_that_is_left_alone_is_not_due(
    grant: TokenGrant, lack: str
) -> None:
    later = timezone.now() + timedelta(minutes=5)
    match lack:
        case "paused":
            FHIRServer.objects.update(paused=True)
        case "busy":
            ServerState.objects.update(paused_until=later)
        case "stopped":
            ClientRegistration.objects.update(refresh_stopped_at=timezone.now())
        case "inactive":
            ClientRegistration.objects.update(is_active=False)
    assert find_due_grants(ModelSink()) == []


@pytest.mark.parametrize(("minutes", "is_due"), [(59, False), (61, True)])
def test_run_that_the_ehr_asked_to_wait_is_due_after_that(
    ehr: EHRSimulator, grant: TokenGrant, minutes: int, is_due: bool
) -> None:
    be_busy(ehr)
    sync_due_records()
    assert SyncRun.objects.get().last_error == "fhir_unavailable"
    earlier = F("busy_until") - timedelta(minutes=minutes)
    SyncRun.objects.update(busy_until=earlier)
    assert bool(find_due_grants(ModelSink())) is is_due


def test_site_may_read_a_record_before_the_ehr_asked_for_it(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    be_busy(ehr)
    sync_due_records()
    ehr.interceptors.clear()
    assert sync_record(grant, ModelSink()).is_complete


def be_busy(ehr: EHRSimulator) -> None:
    headers = {"Retry-After": "3600"}
    busy = Response("{}", 429, headers, mimetype="application/fhir+json")
    ehr.interceptors.append(lambda *_: busy)


def test_message_is_discarded_when_the_next_tick_sends_it_again(
    grant: TokenGrant, broker: Broker
) -> None:
    sync_due_records()
    assert broker.messages == [("sync_record_of_grant", (grant.pk,))]
    tick = RECORDS_SCHEDULE["django_smart.contrib.records.sync_due_records"]
    assert broker.options[0]["expires"] == tick["schedule"]


def test_copies_go_with_the_connection(grant: TokenGrant) -> None:
    sync_due_records()
    assert StoredResource.objects.exists()
    disconnect_grant(grant)
    sync_due_records()
    assert not SyncRun.objects.exists()
    assert not StoredResource.objects.exists()


def test_copies_stay_while_another_grant_connects_the_record(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    sync_due_records()
    connect_again(ehr)
    disconnect_grant(grant)
    sync_due_records()
    assert StoredResource.objects.exists()


def test_copies_stay_after_the_ehr_ended_the_access(grant: TokenGrant) -> None:
    sync_due_records()
    TokenGrant.objects.update(status=TokenGrant.Status.NEEDS_REAUTHORIZATION)
    sync_due_records()
    assert StoredResource.objects.exists()


def test_file_goes_with_the_connection(
    grant: TokenGrant, settings: Any, tmp_path: Path
) -> None:
    settings.MEDIA_ROOT = tmp_path
    settings.SMART_RECORDS_SINK = f"{__name__}.build_files"
    sync_due_records()
    assert list(tmp_path.iterdir())
    disconnect_grant(grant)
    sync_due_records()
    assert not list(tmp_path.iterdir())


def build_files() -> NDJSONSink:
    return NDJSONSink(django_settings.MEDIA_ROOT)


def test_command_reads_what_is_due(grant: TokenGrant) -> None:
    out = StringIO()
    call_command("smart_sync", stdout=out)
    assert SyncRun.objects.get().is_complete
    assert f"[1/1] grant {grant.pk}" in out.getvalue()
    assert PATIENT not in out.getvalue()


def test_command_fails_if_a_record_waits(ehr: EHRSimulator, grant: TokenGrant) -> None:
    grant.registration.server.__class__.objects.update(paused=True)
    out = StringIO()
    with pytest.raises(CommandError):
        call_command("smart_sync", grant=grant.pk, stdout=out)
    assert "server_paused" in out.getvalue()


@pytest.mark.parametrize("path", ["", "nothing.like.this", "builtins.dict", "json"])
def test_wrong_sink_is_an_error(settings: Any, path: str) -> None:
    settings.SMART_RECORDS_SINK = path
    with pytest.raises(ImproperlyConfigured, match="SMART_RECORDS_SINK"):
        build_sink()
    with pytest.raises(CommandError, match="SMART_RECORDS_SINK"):
        call_command("smart_sync")
    found = [each.id for each in run_checks()]
    assert ("django_smart_records.E001" in found) == bool(path)


def test_admin_lists_runs_without_patient_ids(
    grant: TokenGrant, admin_client: Client
) -> None:
    sync_due_records()
    run = SyncRun.objects.get()
    page = admin_client.get("/admin/django_smart_records/syncrun/")
    assert page.status_code == 200
    assert PATIENT not in page.text
    detail = admin_client.get(f"/admin/django_smart_records/syncrun/{run.pk}/change/")
    assert "Observation" in detail.text


def test_deleted_user_takes_the_copies_along(
    grant: TokenGrant, settings: Any, tmp_path: Path
) -> None:
    settings.MEDIA_ROOT = tmp_path
    settings.SMART_RECORDS_SINK = f"{__name__}.build_files"
    sync_due_records()
    Identity.objects.all().delete()
    User.objects.all().delete()
    sync_due_records()
    assert not list(tmp_path.iterdir())
    assert not SyncRun.objects.exists()


def test_connections_show_how_far_the_record_was_read(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    browser = make_browser()
    connect(browser, ehr, patient=PATIENT)
    assert "kinds of records read" not in browser.get("/smart/connections/").text
    run = sync_record(grant, ModelSink())
    SyncedType.objects.filter(resource_type="Condition").update(
        state=SyncedType.State.REFUSED
    )
    page = browser.get("/smart/connections/").text
    number = len(run.states)
    assert f"{number - 1} of {number} kinds of records read" in page
    assert "does not share: health problems" in page
    SyncRun.objects.update(is_finished=False)
    page = browser.get("/smart/connections/").text
    assert f"{number - 1} of {number} kinds so far" in page


def test_metrics_count_records_and_show_the_oldest(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    registry = prometheus_client.CollectorRegistry()
    registry.register(GrantCollector())

    def get(name: str, **labels: str) -> float | None:
        labels["server"] = grant.registration.server.slug
        value: float | None = registry.get_sample_value(f"django_smart_{name}", labels)
        return value

    assert get("records", status="finished") is None
    sync_due_records()
    assert get("records", status="finished") == 1
    # Its process was killed right before it let the run go.
    SyncRun.objects.update(owner="killed")
    assert get("records", status="finished") == 1
    assert get("records", status="reading") == 0
    SyncRun.objects.update(owner="")
    make_due()
    day_and_hour = 25 * 3600
    assert (get("records_oldest_seconds") or 0) >= day_and_hour
    be_busy(ehr)
    sync_due_records()
    numbers = [get("records", status=each) for each in ("finished", "waiting")]
    assert numbers == [0, 1]
    assert (get("records_oldest_seconds") or 0) >= day_and_hour


def test_signal_tells_that_a_record_was_read(grant: TokenGrant) -> None:
    heard: list[Any] = []

    def hear(run: SyncRun, grant: TokenGrant, **_: Any) -> None:
        heard.append((run, grant))

    record_synced.connect(hear)
    run = sync_record(grant, ModelSink())
    assert heard == [(run, grant)]
    FHIRServer.objects.update(paused=True)
    make_due()
    sync_record(grant, ModelSink())
    assert len(heard) == 1


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("out", [StringIO(), Terminal()])
def test_command_shows_its_progress_to_a_person(
    grant: TokenGrant, out: StringIO
) -> None:
    call_command("smart_sync", stdout=out)
    assert ("#" in out.getvalue()) is out.isatty()
    assert "types complete" in out.getvalue().splitlines()[-1]


def test_bar_is_shown_when_only_a_reference_is_left_to_read(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    refuse = Response("{}", 403, mimetype="application/fhir+json")

    def respond(handler: Any, request: Any) -> Any:
        return refuse if "/Practitioner/" in request.path else handler(request)

    ehr.interceptors.append(respond)
    sync_due_records()
    assert SyncRun.objects.get().resources.filter(version="").exists()
    ehr.interceptors.clear()
    # The patient allows less than before, and nothing that is searched for.
    TokenGrant.objects.update(scope="patient/Practitioner.r offline_access")
    make_due()
    out, errors = Terminal(), StringIO()
    call_command("smart_sync", stdout=out, stderr=errors)
    assert errors.getvalue() == ""
    assert "0 of 0 types, 1 resources" in out.getvalue()
