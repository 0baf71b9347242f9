"""``sync_record``: the sink has what the EHR lets the grant read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from werkzeug.wrappers import Response

from django_smart.contrib.records import sync_record
from django_smart.contrib.records.models import StoredResource, SyncRun
from django_smart.contrib.records.sinks import (
    EncryptedModelSink,
    ModelSink,
    NDJSONSink,
    Sink,
)
from django_smart.exceptions import NoGrantError, RecordBusyError
from django_smart.fhir.json import dump_json, load_json
from django_smart.grants.ending import disconnect_grant
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from django_smart.testing import EHRSimulator
from tests.contrib.records.world import shorten_pages
from tests.ehr import PATIENT, connect, make_browser
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

SCOPE = "openid fhirUser launch/patient offline_access "


class MemorySink(Sink):
    """Notes what it receives."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.deleted: list[str] = []
        self.completed = 0

    def put(self, resources: Sequence[dict[str, Any]]) -> None:
        self.received += [f"{one['resourceType']}/{one['id']}" for one in resources]

    def delete(self, resource_type: str, ids: Sequence[str]) -> None:
        self.deleted += [f"{resource_type}/{id_}" for id_ in ids]

    def complete(self, run: SyncRun) -> None:
        self.completed += 1


def make_grant(ehr: EHRSimulator, scope: str = "patient/*.rs") -> TokenGrant:
    """A patient's connection."""
    ClientRegistration.objects.update(standalone_scope=SCOPE + scope)
    grant = connect(make_browser(), ehr, patient=PATIENT).grant
    assert grant is not None
    ehr.clear_requests()
    return grant


@pytest.fixture
def ehr(db: None, ehr: EHRSimulator) -> EHRSimulator:
    """An EHR that is registered here."""
    make_registration()
    return ehr


@pytest.fixture
def grant(ehr: EHRSimulator) -> TokenGrant:
    return make_grant(ehr)


def names_at_the_ehr(ehr: EHRSimulator, *types: str) -> set[str]:
    """The patient's resources."""
    found = set()
    for kind in types or ehr.data:
        for one in ehr.data[kind].values():
            subject = one.get("subject") or one.get("patient") or {}
            is_patient = kind == "Patient" and one["id"] == PATIENT
            if is_patient or subject.get("reference") == f"Patient/{PATIENT}":
                found.add(f"{kind}/{one['id']}")
    return found


def change_one(ehr: EHRSimulator, **values: Any) -> str:
    """Somebody at the EHR changes one of the patient's Observations."""
    name = min(names_at_the_ehr(ehr, "Observation"))
    resource_id = name.partition("/")[2]
    old = ehr.data["Observation"][resource_id]
    moment = timezone.now() + timedelta(hours=1)
    meta = {**old["meta"], "lastUpdated": moment.isoformat(), "versionId": "77"}
    ehr.data["Observation"][resource_id] = {**old, **values, "meta": meta}
    return name


def make_full_due() -> None:
    then = timezone.now() - timedelta(days=8)
    SyncRun.objects.update(full_at=then)


def searches(ehr: EHRSimulator) -> list[dict[str, str]]:
    """The searches by patient, without their further pages."""
    queries = [dict(one.query) for one in ehr.requests_to("fhir")]
    return [query for query in queries if "patient" in query]


def test_first_run_reads_everything(ehr: EHRSimulator, grant: TokenGrant) -> None:
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.is_complete, run.states
    assert len(sink.received) == len(set(sink.received))
    assert names_at_the_ehr(ehr) <= set(sink.received)
    assert sink.completed == 1
    assert sum(run.count().values()) == len(sink.received)


def test_next_run_delivers_only_what_changed(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    sync_record(grant, MemorySink())
    changed = change_one(ehr, status="amended")
    ehr.clear_requests()
    sink = MemorySink()
    sync_record(grant, sink)
    assert sink.received == [changed]
    assert any("_lastUpdated" in query for query in searches(ehr))


@pytest.mark.parametrize("does", ["refuses", "ignores"])
def test_server_without_last_updated_is_read_whole_and_compared(
    ehr: EHRSimulator, grant: TokenGrant, does: str
) -> None:
    def respond(handler: Any, request: Any) -> Any:
        query, asked, _ = request.query_string.partition(b"&_lastUpdated=")
        if asked and does == "refuses":
            return Response("{}", 400, mimetype="application/fhir+json")
        request.query_string = query
        return handler(request)

    ehr.interceptors.append(respond)
    sync_record(grant, MemorySink())
    changed = change_one(ehr, status="amended")
    sink = MemorySink()
    assert sync_record(grant, sink).is_complete
    assert sink.received == [changed]


def test_nothing_is_delivered_twice(ehr: EHRSimulator, grant: TokenGrant) -> None:
    sync_record(grant, MemorySink())
    make_full_due()
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.is_full
    assert sink.received == []


def test_deleted_resource_is_deleted_by_the_weekly_run(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    sync_record(grant, MemorySink())
    name = max(names_at_the_ehr(ehr, "Observation"))
    del ehr.data["Observation"][name.partition("/")[2]]
    sink = MemorySink()
    sync_record(grant, sink)
    assert sink.deleted == []
    make_full_due()
    sync_record(grant, sink)
    assert sink.deleted == [name]


@pytest.mark.parametrize("kind", [ModelSink, EncryptedModelSink])
def test_weekly_run_does_not_load_the_copies_that_it_looks_for(
    ehr: EHRSimulator, grant: TokenGrant, kind: type[ModelSink]
) -> None:
    sink = kind()
    run = sync_record(grant, sink)
    gone, kept, *_ = run.copies.filter(resource_type="Observation")
    before = kept.resource
    for each in (gone, kept):
        del ehr.data["Observation"][each.resource_id]

    def fail(handler: Any, request: Any) -> Response:
        is_kept = request.path.endswith(kept.resource_id)
        return Response("", 500) if is_kept else handler(request)

    ehr.interceptors.append(fail)
    make_full_due()
    with CaptureQueriesContext(connection) as captured:
        run = sync_record(grant, sink)
    left = run.copies.filter(pk__in=[gone.pk, kept.pk])
    found = [(one.pk, one.seen, one.resource) for one in left]
    assert found == [(kept.pk, run.number, before)]
    reads = [one["sql"] for one in captured if one["sql"].startswith("SELECT")]
    assert not [sql for sql in reads if "encrypted_content" in sql]


def test_model_sink_has_the_record(ehr: EHRSimulator, grant: TokenGrant) -> None:
    run = sync_record(grant, ModelSink())
    copies = {str(one.resource["id"]): one.resource for one in run.copies.all()}
    for resource_id, resource in ehr.data["Observation"].items():
        if resource["subject"]["reference"] == f"Patient/{PATIENT}":
            assert copies[resource_id]["status"] == resource["status"]
    assert StoredResource.objects.exclude(content="").exists()


def test_encrypted_copies_are_unreadable_in_the_database(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    run = sync_record(grant, EncryptedModelSink(), types=["Patient"])
    copy = run.copies.get(resource_type="Patient")
    assert copy.content == ""
    assert copy.resource["id"] == PATIENT


def test_ndjson_sink_has_a_line_for_each_resource(
    ehr: EHRSimulator, grant: TokenGrant, tmp_path: Path
) -> None:
    run = sync_record(grant, NDJSONSink(tmp_path))
    (path,) = tmp_path.iterdir()
    resources = [load_json(line) for line in path.read_bytes().splitlines()]
    names = [f"{one['resourceType']}/{one['id']}" for one in resources]
    assert len(names) == len(set(names)) == sum(run.count().values())
    assert path.stat().st_mode & 0o077 == 0


def test_what_was_written_without_progress_is_cut_off(
    ehr: EHRSimulator, grant: TokenGrant, tmp_path: Path
) -> None:
    sync_record(grant, NDJSONSink(tmp_path))
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    path.write_bytes(before + b'{"resourceType": "Observation", "id": "lost"}\n')
    sync_record(grant, NDJSONSink(tmp_path))
    assert path.read_bytes() == before


def test_scope_limits_the_types(ehr: EHRSimulator) -> None:
    grant = make_grant(
        ehr, "patient/Observation.rs?category=laboratory patient/Patient.r"
    )
    run = sync_record(grant, MemorySink())
    assert set(run.states) == {"Observation", "Patient"}
    assert [query["category"] for query in searches(ehr)] == ["laboratory"]


def test_two_runs_of_one_record_exclude_each_other(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert SyncRun.objects.take(run.pk, "another process")
    with pytest.raises(RecordBusyError):
        sync_record(grant, sink)
    SyncRun.objects.update(busy_until=timezone.now() - timedelta(seconds=1))
    assert sync_record(grant, sink).is_finished


@pytest.mark.parametrize("status", [200, 400, 403, 500])
def test_process_that_lost_its_run_ends_no_type(
    ehr: EHRSimulator, grant: TokenGrant, status: int
) -> None:
    def take(handler: Any, request: Any) -> Any:
        response = handler(request)
        if request.path.endswith("/Observation"):
            # It was stopped for longer than its lease.
            SyncRun.objects.update(owner="another process")
            response.status_code = status
        return response

    ehr.interceptors.append(take)
    run = sync_record(grant, MemorySink())
    assert (run.is_finished, run.last_error) == (False, "record_busy")
    assert run.states["Observation"] == "waiting"
    assert SyncRun.objects.get().owner == "another process"
    assert not any("category" in query for query in searches(ehr))


def test_pause_of_the_server_is_respected(ehr: EHRSimulator, grant: TokenGrant) -> None:
    FHIRServer.objects.update(paused=True)
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert (run.is_finished, run.last_error) == (False, "server_paused")
    assert ehr.requests_to("fhir") == []
    FHIRServer.objects.update(paused=False)
    assert sync_record(grant, sink).is_complete


def test_later_run_that_cannot_begin_is_not_finished(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    sync_record(grant, MemorySink())
    changed = change_one(ehr)
    FHIRServer.objects.update(paused=True)
    sync_record(grant, MemorySink())
    run = SyncRun.objects.get()
    assert (run.is_finished, run.last_error) == (False, "server_paused")
    FHIRServer.objects.update(paused=False)
    sink = MemorySink()
    assert sync_record(grant, sink).is_complete
    assert sink.received == [changed]


def test_later_run_that_an_error_ended_is_not_finished(
    ehr: EHRSimulator, grant: TokenGrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise OSError

    sink = MemorySink()
    sync_record(grant, sink)
    with monkeypatch.context() as patch:
        patch.setattr(sink, "truncate", fail)
        with pytest.raises(OSError):
            sync_record(grant, sink)
    run = SyncRun.objects.get()
    assert (run.is_finished, run.last_error) == (False, "internal_error")
    assert sync_record(grant, sink).is_complete


def test_later_run_that_was_interrupted_is_not_finished(
    ehr: EHRSimulator, grant: TokenGrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    sink = MemorySink()
    sync_record(grant, sink)
    changed = change_one(ehr)
    sink.received.clear()
    with monkeypatch.context() as patch:
        patch.setattr(sink, "truncate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sync_record(grant, sink)
    assert not SyncRun.objects.get().is_finished
    assert sync_record(grant, sink).is_complete
    assert sink.received == [changed]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "2026-01-01", "now", ""])
def test_odd_time_of_a_change_stops_no_run(
    ehr: EHRSimulator, grant: TokenGrant, time: str
) -> None:
    for resource in ehr.data["Observation"].values():
        resource["meta"] = {**resource["meta"], "lastUpdated": time}
    sync_record(grant, MemorySink())
    sink = MemorySink()
    assert sync_record(grant, sink).is_complete
    assert sink.received == []


def test_page_that_the_sink_did_not_take_is_delivered_by_the_next_run(
    ehr: EHRSimulator, grant: TokenGrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(resources: Sequence[dict[str, Any]]) -> None:
        if resources[0]["resourceType"] == "Observation":
            raise OSError
        sink.received += [f"{one['resourceType']}/{one['id']}" for one in resources]

    def shorten(handler: Any, request: Any) -> Response:
        shorten_pages(request, 2)
        return handler(request)  # type: ignore[no-any-return]

    ehr.interceptors.append(shorten)
    sink = MemorySink()
    with monkeypatch.context() as patch:
        patch.setattr(sink, "put", fail)
        with pytest.raises(OSError):
            sync_record(grant, sink)
    assert sync_record(grant, sink).is_complete
    assert names_at_the_ehr(ehr, "Observation") <= set(sink.received)


def test_ended_grant_is_refused(ehr: EHRSimulator, grant: TokenGrant) -> None:
    disconnect_grant(grant)
    with pytest.raises(NoGrantError):
        sync_record(grant, MemorySink())


def test_new_connection_continues_the_record(ehr: EHRSimulator) -> None:
    sync_record(make_grant(ehr), MemorySink())
    sink = MemorySink()
    run = sync_record(make_grant(ehr), sink)
    assert sink.received == []
    assert SyncRun.objects.get() == run


@pytest.mark.parametrize("asked", ["61", "3600"])
def test_run_ends_if_the_ehr_asks_for_a_long_wait(
    ehr: EHRSimulator, grant: TokenGrant, asked: str
) -> None:
    busy = Response("{}", 429, {"Retry-After": asked}, mimetype="application/fhir+json")
    ehr.interceptors.append(lambda *_: busy)
    run = sync_record(grant, MemorySink())
    assert (run.is_finished, run.last_error) == (False, "fhir_unavailable")
    ehr.interceptors.clear()
    assert sync_record(grant, MemorySink()).is_complete


@pytest.mark.parametrize("lack", ["shifted pages", "vanished category"])
def test_resource_that_a_list_lacks_is_not_deleted(
    ehr: EHRSimulator, grant: TokenGrant, lack: str
) -> None:
    sync_record(grant, MemorySink())
    make_full_due()

    def respond(handler: Any, request: Any) -> Any:
        response = handler(request)
        if request.path.endswith("/Observation"):
            bundle = load_json(response.get_data())
            missing = bundle["entry"].pop()
            if lack == "vanished category":
                bundle["total"] -= 1
            response.set_data(dump_json(bundle))
            lacking.append(missing["resource"]["id"])
        return response

    lacking: list[str] = []
    ehr.interceptors.append(respond)
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.is_full
    assert run.is_complete is (lack == "vanished category")
    assert lacking
    assert sink.deleted == []


@pytest.mark.parametrize("odd", [5, "x" * 65, "a\0", ""])
def test_odd_id_stops_no_other_resource(
    ehr: EHRSimulator, grant: TokenGrant, odd: object
) -> None:
    names = names_at_the_ehr(ehr, "Observation")
    name = min(names)
    resource = ehr.data["Observation"][name.partition("/")[2]]
    ehr.data["Observation"][name.partition("/")[2]] = {**resource, "id": odd}
    sink = MemorySink()
    sync_record(grant, sink)
    assert names - {name} <= set(sink.received)


def test_resource_that_became_another_patients_is_deleted(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    # As one that trusts its apps; others refuse the read, so the copy stays.
    ehr.checks -= {"compartment"}
    sync_record(grant, MemorySink())
    name = change_one(ehr, subject={"reference": "Patient/another"})
    make_full_due()
    sink = MemorySink()
    sync_record(grant, sink)
    assert (sink.received, sink.deleted) == ([], [name])


def test_search_that_was_cut_off_is_repeated(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    names = names_at_the_ehr(ehr, "Observation")
    change_one(ehr)

    def cut_off(handler: Any, request: Any) -> Any:
        response = handler(request)
        if request.path.endswith("/Observation"):
            bundle = load_json(response.get_data())
            bundle["entry"].pop()
            bundle["link"] = [{"relation": "next"}]
            response.set_data(dump_json(bundle))
        return response

    ehr.interceptors.append(cut_off)
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.states["Observation"] == "partial"
    assert not names <= set(sink.received)
    ehr.interceptors.clear()
    assert sync_record(grant, sink).is_complete
    assert names <= set(sink.received)


def test_category_that_was_cut_off_is_repeated_after_one_that_was_not(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    names = names_at_the_ehr(ehr, "Observation")

    def cut_off(handler: Any, request: Any) -> Any:
        if request.path.endswith("/Observation") and "category" not in request.args:
            return Response("{}", 400, mimetype="application/fhir+json")
        response = handler(request)
        if request.args.get("category") == "vital-signs":
            bundle = load_json(response.get_data())
            bundle["entry"].pop()
            response.set_data(dump_json(bundle))
        return response

    ehr.interceptors.append(cut_off)
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.in_state("partial") == ["Observation"]
    assert len(names - set(sink.received)) == 1


@pytest.mark.parametrize("kind", ["Patient", "Observation"])
def test_type_that_failed_is_partial_and_read_the_next_time(
    ehr: EHRSimulator, grant: TokenGrant, kind: str
) -> None:
    def fail(handler: Any, request: Any) -> Any:
        if f"/{kind}" in request.path:
            return Response("{}", 500, mimetype="application/fhir+json")
        return handler(request)

    ehr.interceptors.append(fail)
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.in_state("partial") == [kind]
    ehr.interceptors.clear()
    assert sync_record(grant, sink).is_complete
    assert names_at_the_ehr(ehr, kind) <= set(sink.received)


def test_resource_that_shifted_to_a_page_before_is_read_the_next_time(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    names = names_at_the_ehr(ehr, "Observation")
    change_one(ehr)

    def shift(handler: Any, request: Any) -> Any:
        shorten_pages(request, 10)
        for saved in ehr.saved_searches.values():
            if "_getpagesoffset=10" in request.url:
                saved.resources.pop(0)
        return handler(request)

    ehr.interceptors.append(shift)
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.in_state("partial") == ["Observation"]
    assert not names <= set(sink.received)
    ehr.interceptors.clear()
    assert sync_record(grant, sink).is_complete
    assert names <= set(sink.received)


def test_pages_that_are_too_large_are_asked_for_in_parts(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    for resource in ehr.data["Observation"].values():
        resource["note"] = [{"text": "x" * 2_000_000}]
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.is_complete, run.states
    assert names_at_the_ehr(ehr) <= set(sink.received)


def test_resource_that_is_too_large_stops_no_other_type(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    resource = ehr.data["Condition"][
        min(names_at_the_ehr(ehr, "Condition")).partition("/")[2]
    ]
    resource["note"] = [{"text": "x" * 11_000_000}]
    sink = MemorySink()
    run = sync_record(grant, sink)
    assert run.in_state("partial") == ["Condition"]
    assert names_at_the_ehr(ehr, "Observation") <= set(sink.received)


def test_request_is_repeated_while_the_ehr_is_busy(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    def be_busy(handler: Any, request: Any) -> Any:
        if request.path.endswith("/Observation") and len(asked) < 2:
            asked.append(request.path)
            return Response(
                "{}", 503, {"Retry-After": "0"}, mimetype="application/fhir+json"
            )
        return handler(request)

    asked: list[str] = []
    ehr.interceptors.append(be_busy)
    assert sync_record(grant, MemorySink()).is_complete
    assert len(asked) == 2


@pytest.mark.parametrize("attachments", [False, True])
def test_attachments_are_read_if_asked_for(
    ehr: EHRSimulator, grant: TokenGrant, attachments: bool
) -> None:
    ehr.data["Binary"]["scan"] = {
        "resourceType": "Binary",
        "id": "scan",
        "contentType": "text/plain",
        "data": "aGVsbG8=",
        "meta": {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00Z"},
        "securityContext": {"reference": f"Patient/{PATIENT}"},
    }
    attachment = {"attachment": {"url": f"{ehr.base_url}/Binary/scan"}}
    change_one(ehr, content=[attachment])
    sink = MemorySink()
    run = sync_record(grant, sink, attachments=attachments)
    assert ("Binary/scan" in sink.received) is attachments
    assert run.is_complete
