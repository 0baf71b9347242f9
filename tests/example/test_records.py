"""Copies of a connected record: filled once, then only what changed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from kombu.exceptions import OperationalError

from django_smart.conf import conf
from django_smart.grants.ending import disconnect_grant
from django_smart.models import ClientRegistration, Launch, TokenGrant
from django_smart.signals import (
    fhir_request_finished,
    grant_revoked,
    launch_completed,
)
from django_smart.tasks import purge
from django_smart.testing import EHRSimulator
from example_project.records import tasks
from example_project.records.models import Copy, Progress
from example_project.records.tasks import sync_all_records, sync_records
from tests.celery import Broker
from tests.ehr import PATIENT, connect, make_browser

pytestmark = pytest.mark.django_db


@pytest.fixture
def receivers() -> Iterator[None]:
    """What the settings of the example switch on."""
    launch_completed.connect(tasks.on_connected)
    grant_revoked.connect(tasks.on_disconnected)
    yield
    launch_completed.disconnect(tasks.on_connected)
    grant_revoked.disconnect(tasks.on_disconnected)


@pytest.fixture
def grant(ehr: EHRSimulator, receivers: None) -> TokenGrant:
    """A patient's connection that outlives the sign-in, and whose copies are filled."""
    scope = "openid fhirUser launch/patient offline_access patient/*.rs"
    ClientRegistration.objects.update(standalone_scope=scope)
    grant = connect(make_browser(), ehr, patient=PATIENT).grant
    assert grant is not None
    return grant


def _ids(resource_type: str = "Observation") -> set[str]:
    copies = Copy.objects.filter(resource_type=resource_type)
    return set(copies.values_list("resource_id", flat=True))


def _at_the_ehr(ehr: EHRSimulator, resource_type: str = "Observation") -> set[str]:
    subject = f"Patient/{PATIENT}"
    return {
        each["id"]
        for each in ehr.data[resource_type].values()
        if each["subject"]["reference"] == subject
    }


def _queries(ehr: EHRSimulator) -> list[dict[str, str]]:
    """The searches, without their further pages."""
    queries = [dict(one.query) for one in ehr.requests_to("fhir")]
    return [query for query in queries if "patient" in query]


def _change(ehr: EHRSimulator, **values: Any) -> dict[str, Any]:
    """Somebody at the EHR changes one of the patient's Observations."""
    resource_id = min(_at_the_ehr(ehr))
    resource = {**ehr.data["Observation"][resource_id], **values}
    moment = timezone.now() + timedelta(hours=1)
    resource["meta"] = {**resource["meta"], "lastUpdated": moment.isoformat()}
    ehr.data["Observation"][resource_id] = resource
    return resource


def _delete_one(ehr: EHRSimulator) -> str:
    resource_id = max(_at_the_ehr(ehr))
    del ehr.data["Observation"][resource_id]
    return resource_id


def test_connecting_reads_everything(ehr: EHRSimulator, grant: TokenGrant) -> None:
    assert _ids() == _at_the_ehr(ehr) != set()
    assert Progress.objects.count() == len(tasks.RESOURCE_TYPES)
    assert {each.owner for each in Copy.objects.all()} == {grant.user}


def test_person_is_connected_while_the_broker_is_down(
    ehr: EHRSimulator, receivers: None, broker: Broker
) -> None:
    scope = "launch/patient openid fhirUser offline_access patient/*.rs"
    ClientRegistration.objects.update(standalone_scope=scope)
    broker.error = OperationalError("no broker")
    launch = connect(make_browser(), ehr, patient=PATIENT)
    assert launch.status == Launch.Status.COMPLETED
    broker.error = None
    sync_all_records()
    assert broker.messages == [("sync_records", (launch.grant_id,))]


def test_the_next_run_reads_only_what_changed(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    changed = _change(ehr, status="amended")
    ehr.clear_requests()
    sync_records(grant.pk)
    assert all("_lastUpdated" in query for query in _queries(ehr))
    copy = Copy.objects.get(resource_id=changed["id"], resource_type="Observation")
    assert copy.content["status"] == "amended"
    progress = Progress.objects.get(resource_type="Observation")
    assert progress.changed_at == changed["meta"]["lastUpdated"]
    assert _ids() == _at_the_ehr(ehr)


def test_deletions_are_found_by_the_next_fill(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    deleted = _delete_one(ehr)
    sync_records(grant.pk)
    assert deleted in _ids()
    then = timezone.now() - tasks.FILL_EVERY - timedelta(minutes=1)
    Progress.objects.update(filled_at=then)
    ehr.clear_requests()
    sync_records(grant.pk)
    assert not any("_lastUpdated" in query for query in _queries(ehr))
    assert _ids() == _at_the_ehr(ehr)


def test_failure_leaves_copies_and_progress_as_they_were(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    before = Progress.objects.get(resource_type="Observation").changed_at
    changed = _change(ehr, status="amended")
    ehr.faults.add("fhir_500")
    sync_records(grant.pk)
    assert Progress.objects.get(resource_type="Observation").changed_at == before
    ehr.faults.clear()
    sync_records(grant.pk)
    copy = Copy.objects.get(resource_id=changed["id"], resource_type="Observation")
    assert copy.content["status"] == "amended"


def test_server_without_times_is_read_as_a_whole(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    Progress.objects.update(changed_at="")
    ehr.clear_requests()
    sync_records(grant.pk)
    assert not any("_lastUpdated" in query for query in _queries(ehr))


def test_beat_queues_each_connection(ehr: EHRSimulator, grant: TokenGrant) -> None:
    ehr.clear_requests()
    sync_all_records()
    assert len(_queries(ehr)) == len(tasks.RESOURCE_TYPES)
    TokenGrant.objects.update(status=TokenGrant.Status.REVOKED)
    ehr.clear_requests()
    sync_all_records()
    assert _queries(ehr) == []


def test_disconnecting_deletes_the_copies(
    grant: TokenGrant, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        disconnect_grant(grant)
    assert Copy.objects.count() == Progress.objects.count() == 0


def test_disconnecting_during_the_fill_leaves_no_copies(
    grant: TokenGrant, django_capture_on_commit_callbacks: Any
) -> None:
    for model in (Copy, Progress):
        model.objects.all().delete()

    def disconnect(**values: Any) -> None:
        with django_capture_on_commit_callbacks(execute=True):
            disconnect_grant(grant)

    fhir_request_finished.connect(disconnect)
    try:
        sync_records(grant.pk)
    finally:
        fhir_request_finished.disconnect(disconnect)
    assert Copy.objects.count() == Progress.objects.count() == 0


def test_copies_are_deleted_after_the_purge_of_a_lost_grant(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    other = min(set(ehr.data["Patient"]) - {PATIENT})
    connect(make_browser(), ehr, patient=other)
    lost = TokenGrant.objects.filter(pk=grant.pk)
    lost.end(TokenGrant.Status.NEEDS_REAUTHORIZATION, now=timezone.now())
    sync_all_records()
    assert Copy.objects.filter(patient_id=PATIENT).exists()
    lost.update(ended_at=timezone.now() - conf.SMART_PURGE_AFTER)
    purge()
    assert not lost.exists()
    sync_all_records()
    for model in (Copy, Progress):
        left = model.objects.values_list("patient_id", flat=True)
        assert set(left) == {other}


def test_connecting_again_keeps_them(
    ehr: EHRSimulator, grant: TokenGrant, django_capture_on_commit_callbacks: Any
) -> None:
    before = set(Copy.objects.values_list("pk", flat=True))
    with django_capture_on_commit_callbacks(execute=True):
        again = connect(make_browser(), ehr, patient=PATIENT).grant
    assert again is not None
    assert again.pk != grant.pk
    assert set(Copy.objects.values_list("pk", flat=True)) == before
