"""Bulk export: asked for, waited for, read line by line, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from django_smart.clients import backend_client_for
from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRRequestError,
    FHIRStatusError,
    MalformedFHIRResponseError,
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from django_smart.fhir import BulkExport, FHIRClient
from django_smart.testing import EHRSimulator
from django_smart.transport import ResponseStream
from tests.factories import make_service
from tests.fhir.servers import BASE, FHIR_JSON, TOKEN, Grant, respond
from tests.processes import wait_for

STATUS = f"{BASE}/bulk/1"
FILE = f"{BASE}/bulk/1.ndjson"
TIME = "2026-03-03T10:00:00Z"


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def fhir(ehr: EHRSimulator, db: None, pauses: list[float]) -> FHIRClient:
    """A backend service's client at the simulator, which does not sleep."""
    client = backend_client_for(make_service(ehr))
    client.sleep = pauses.append
    return client


# At the simulator


def test_time_of_the_data_is_waited_for(fhir, ehr, pauses):
    ehr.bulk.polls, ehr.bulk.retry_after = 3, "7"
    export = fhir.export("Patient", types=["Patient"])
    assert datetime.fromisoformat(export.transaction_time).tzinfo is not None
    assert pauses == [7, 7, 7]


@pytest.mark.compliance("BACK-11")
def test_export_is_waited_for_and_read(fhir, ehr, pauses):
    ehr.bulk.polls, ehr.bulk.retry_after = 3, "7"
    export = fhir.export("Patient", types=["Patient"])
    assert [dict(r.query) for r in ehr.requests_to("fhir")] == [
        {"_outputFormat": "application/fhir+ndjson", "_type": "Patient"}
    ]
    assert [found["id"] for found in export] == list(ehr.data["Patient"])
    assert pauses == [7, 7, 7]
    assert list(export.problems()) == []
    export.delete()
    export.delete()  # gone is what was wanted
    with pytest.raises(FHIRNotFoundError):
        fhir.resume_export(export.state).poll()


def test_export_goes_on_where_it_was(fhir, ehr):
    ehr.bulk.observations, ehr.bulk.lines_per_file = 25, 10
    export = fhir.export(types=["Observation"])
    reader = iter(export)
    seen = [next(reader)["id"] for _ in range(13)]
    state = json.loads(json.dumps(export.state))
    assert (state["file"], state["line"]) == (1, 2)
    # The thirteenth was not handled yet, for all that the export knows.
    rest = [found["id"] for found in fhir.resume_export(state)]
    assert seen[:12] + rest == [f"made-up-{number}" for number in range(25)]
    done = fhir.resume_export({**state, "file": 3, "line": 0})
    assert list(done) == []


def test_files_that_want_no_token_get_none(fhir, ehr):
    ehr.bulk.requires_access_token = False
    assert list(fhir.export(types=["Patient"]))
    assert "Authorization" not in ehr.requests_to("fhir")[-1].headers


def test_export_beyond_the_scopes_is_refused(fhir):
    with pytest.raises(FHIRForbiddenError):
        fhir.export(types=["Condition"])
    with pytest.raises(FHIRNotFoundError):
        fhir.export("Group/g-1")


def test_deletions_since_then_are_an_iterator_of_their_own(fhir, ehr):
    kept, gone = list(ehr.data["Observation"])[:2]
    before = datetime.now(UTC) - timedelta(seconds=1)
    ehr.versions.put("Observation", gone, None, method="DELETE")
    resource = ehr.versions.get_current("Observation", kept)
    ehr.versions.put("Observation", kept, resource, method="PUT")
    export = fhir.export(since=before)
    assert list(export.deleted()) == [f"Observation/{gone}"]
    assert [found["id"] for found in export] == [kept]
    assert list(fhir.export().deleted()) == []


def test_problems_are_beside_the_files(fhir, ehr):
    ehr.bulk.problems.append("one record is locked")
    ehr.bulk.observations, ehr.bulk.lines_per_file = 15, 10
    export = fhir.export(types=["Observation"])
    (outcome,) = export.problems()
    assert outcome["issue"][0]["diagnostics"] == "one record is locked"
    assert len(list(export)) == 15


# Against odd answers


class Odd(Grant):
    """A server whose files are what a test says: pieces, or an error in their midst."""

    def __init__(self, *files: list[bytes | Exception], **manifest: Any) -> None:
        self.files = list(files)
        self.opened = 0
        super().__init__(open_stream=lambda request: _Opened(self, request))
        answer = {
            "transactionTime": TIME,
            "requiresAccessToken": True,
            "output": [{"type": "Patient", "url": FILE}],
            **manifest,
        }
        self.server.on(STATUS, respond(answer, media_type="application/json"))
        self.export = BulkExport(self.client, {"status_url": STATUS})


class _Opened:
    def __init__(self, odd: Odd, request: Any) -> None:
        self.odd = odd

    def __enter__(self) -> ResponseStream:
        parts = self.odd.files[min(self.odd.opened, len(self.odd.files) - 1)]
        self.odd.opened += 1

        def read():
            for part in parts:
                if isinstance(part, Exception):
                    raise part
                yield part

        return ResponseStream(head=respond(b""), chunks=read())

    def __exit__(self, *args: object) -> None:
        return None


def line(number: int) -> bytes:
    return b'{"resourceType": "Patient", "id": "%d"}\n' % number


def ids(export: BulkExport) -> list[str]:
    return [found["id"] for found in export]


def test_lines_may_be_cut_anywhere():
    whole = line(1) + b"\r\n\n" + line(2) + line(3).rstrip()
    for size in (1, 7, 1000):
        pieces: list[Any] = [
            whole[start : start + size] for start in range(0, len(whole), size)
        ]
        assert ids(Odd(pieces).export) == ["1", "2", "3"]
    assert ids(Odd([]).export) == []


@pytest.mark.parametrize(
    "name", ["Patient: 200 in 0.1 s\n2026-03-03 read Patient", "x" * 1000, "", 7, None]
)
def test_server_writes_no_text_into_the_audit_trail(name):
    odd = Odd([line(1), b"none\n"], output=[{"type": name, "url": FILE}])
    with pytest.raises(MalformedFHIRResponseError) as caught:
        ids(odd.export)
    assert "of the export is not" in str(caught.value)
    exported = [each for each in odd.exchanges if each.interaction == "export"]
    # The path of the file shows no type, either.
    assert [each.resource_type for each in exported] == [""]


def test_file_whose_connection_breaks_is_read_on_from_there():
    broken = ServerUnreachableError("reset")
    odd = Odd(
        [line(1), line(2), broken], [line(1), line(2), line(3), broken],
        [broken], [line(1) + line(2) + line(3) + line(4)],
    )  # fmt: skip
    assert ids(odd.export) == ["1", "2", "3", "4"]
    assert odd.opened == 4
    assert len(odd.pauses) == 3


def test_file_that_breaks_again_and_again_is_an_error():
    odd = Odd([line(1), ServerUnreachableError("reset")])
    reader = iter(odd.export)
    assert next(reader)["id"] == "1"
    with pytest.raises(ServerUnreachableError):
        next(reader)
    assert odd.opened == 3
    assert (odd.export.state["file"], odd.export.state["line"]) == (0, 1)


def test_pauses_grow_where_the_server_names_none():
    odd = Odd([line(1)])
    busy = [respond(b"", 202)] * 3 + [respond(b"", 503)] * 2 + [respond(b"", 202)] * 6
    odd.server.on(STATUS, *busy, *odd.server.answers[STATUS])
    assert ids(odd.export) == ["1"]
    assert odd.pauses[:3] == [1, 2, 4]
    assert max(odd.pauses) == 60


def test_pause_may_be_a_date_and_is_never_nothing():
    odd = Odd([line(1)])
    # The server's own clock counts, wrong as it may be.
    now = datetime.now(UTC) - timedelta(days=3)
    soon = format_datetime(now + timedelta(seconds=30))
    past = format_datetime(now - timedelta(seconds=30))
    waits = [
        respond(b"", 202, retry_after=text, date=format_datetime(now))
        for text in (soon, past, "0", "x")
    ]
    odd.server.on(STATUS, *waits, *odd.server.answers[STATUS])
    assert ids(odd.export) == ["1"]
    assert odd.pauses == [30, 0.1, 0.1, 1]


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("120", 120),
        ("Wed, 21 Oct 2099 07:28:00", 3600),
        ("Wed, 21 Oct 2099 07:28:00 -0000", 3600),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", 1),
        ("Wed, 21 Oct 2099 07:28:00 +9999999999999999999", 1),
        ("1795762800000", 3600),
        ("9" * 400, 3600),
    ],
)
def test_pause_that_is_no_date_of_http_does_no_harm(text, pause):
    odd = Odd([line(1)])
    now = "Wed, 21 Oct 2026 07:28:00 GMT"
    wait = respond(b"", 202, retry_after=text, date=now)
    odd.server.on(STATUS, wait, *odd.server.answers[STATUS])
    assert ids(odd.export) == ["1"]
    assert odd.pauses == [pause]


def test_export_that_is_not_ready_in_time_can_be_gone_on_with():
    odd = Odd([line(1)])
    odd.server.on(STATUS, respond(b"", 202, retry_after="50"))
    with pytest.raises(ServerTimeoutError):
        odd.export.wait(seconds=20)
    assert odd.export.state == {
        "status_url": STATUS,
        "file": 0,
        "line": 0,
        "is_limited": False,
    }


@pytest.mark.compliance("FHIR-02")
def test_token_does_not_go_to_files_elsewhere():
    elsewhere = "https://storage.example.org/1.ndjson"
    odd = Odd([line(1)], output=[{"type": "Patient", "url": elsewhere}])
    with pytest.raises(BearerBoundaryError):
        ids(odd.export)
    assert odd.opened == 0


KICK_OFF = "$export?_outputFormat=application%2Ffhir%2Bndjson"


@pytest.mark.compliance("FHIR-02")
def test_export_whose_status_is_outside_can_be_gone_on_with(grant):
    status = "https://ehr.example.org/bulkstatus/1"
    grant.server.on(KICK_OFF, respond(b"", 202, content_location="/bulkstatus/1"))
    grant.server.on(status, respond(b"", 202))
    export = grant.client.export()
    for use in (export.poll, export.delete, lambda: next(iter(export))):
        with pytest.raises(BearerBoundaryError, match="bearer_boundary"):
            use()
    assert len(grant.server.requests) == 1
    # Once the column says that the whole origin is the server's.
    grant.client.boundary = "origin"
    resumed = grant.client.resume_export(export.state)
    assert resumed.poll() == 1
    resumed.delete()
    assert grant.server.requests[-1].method == "DELETE"
    assert grant.server.bearers[-2:] == [f"Bearer {TOKEN}"] * 2
    grant.server.on(status, respond({}, 401))
    with pytest.raises(FHIRStatusError):
        resumed.delete()


def test_patients_are_named_in_a_body_and_in_no_url(grant):
    grant.server.on("Patient/$export", respond(b"", 202, content_location=STATUS))
    grant.client.export(
        "Patient",
        since=datetime(2026, 1, 1, tzinfo=UTC),
        patient=["Patient/1", "Patient/2"],
        _typeFilter="Observation?code=4548-4",
    )
    (request,) = grant.server.requests
    assert request.headers["Content-Type"] == FHIR_JSON
    assert request.headers["Prefer"] == "respond-async, handling=strict"
    body = json.loads(request.body)
    assert body["resourceType"] == "Parameters"
    assert body["parameter"] == [
        {"name": "_outputFormat", "valueString": "application/fhir+ndjson"},
        {"name": "_since", "valueInstant": "2026-01-01T00:00:00+00:00"},
        {"name": "patient", "valueReference": {"reference": "Patient/1"}},
        {"name": "patient", "valueReference": {"reference": "Patient/2"}},
        {"name": "_typeFilter", "valueString": "Observation?code=4548-4"},
    ]


def manifest(*files: str, next_url: str | None = None, **members: Any) -> Any:
    link = [{"relation": "next", "url": next_url}] if next_url else []
    return {
        "transactionTime": TIME,
        "output": [{"type": "Patient", "url": f"{BASE}/{file}"} for file in files],
        **({"link": link} if next_url else {}),
        **members,
    }


def test_manifest_that_may_grow_is_not_read(grant):
    # While it is in progress, as smart-on-fhir/bulk-data-server answers.
    grant.server.on(
        STATUS,
        respond({"resourceType": "OperationOutcome"}, 202),
        respond(manifest("a"), 202, retry_after="2"),
        respond(manifest("a", "b")),
    )
    for number, name in enumerate("ab"):
        grant.server.on(name, respond(line(number)))
    export = BulkExport(grant.client, {"status_url": STATUS})
    assert [found["id"] for found in export] == ["0", "1"]
    assert grant.pauses == [1, 2]
    assert export.poll() is None


def test_export_in_parts_is_not_taken_for_all_of_it(grant):
    grant.server.on(STATUS, respond(manifest("a", next_url="?page=2")))
    grant.server.on("a", respond(line(1)))
    with pytest.raises(MalformedFHIRResponseError, match="partial"):
        ids(BulkExport(grant.client, {"status_url": STATUS}))


def test_lists_of_files_may_be_null(grant):
    members = dict.fromkeys(("output", "deleted", "error", "outcome", "link"))
    grant.server.on(STATUS, respond(manifest(**members)))
    export = BulkExport(grant.client, {"status_url": STATUS})
    assert (ids(export), list(export.deleted()), export.problems()) == ([], [], [])


def test_problems_are_found_under_both_names(grant):
    names = ("error", "outcome")
    files: Any = {name: [{"url": f"{BASE}/{name}"}] for name in names}
    grant.server.on(STATUS, respond(manifest(**files)))
    outcomes = [
        {"resourceType": "OperationOutcome", "issue": [{"code": name}]}
        for name in names
    ]
    for name, outcome in zip(names, outcomes, strict=True):
        grant.server.on(name, respond(outcome))
    export = BulkExport(grant.client, {"status_url": STATUS})
    assert export.problems() == outcomes


@pytest.mark.parametrize("name", ["error", "outcome"])
@pytest.mark.parametrize(
    ("issue", "is_refused"),
    [
        ({"code": "not-supported", "diagnostics": "Parameter patient"}, True),
        ({"code": "informational", "details": {"text": "Ignored: 'patient'"}}, True),
        ({"code": "processing", "diagnostics": "patient is not supported"}, True),
        ({"code": "not-supported", "diagnostics": "_typeFilter"}, False),
        ({"code": "processing", "diagnostics": "One patient is locked"}, False),
        ({"code": "processing", "details": "patient"}, False),
    ],
)
def test_export_of_more_patients_than_named_is_not_read(grant, name, issue, is_refused):
    grant.server.on("Patient/$export", respond(b"", 202, content_location=STATUS))
    told: Any = {name: [{"url": f"{BASE}/told"}]}
    grant.server.on(STATUS, respond(manifest("a", **told)))
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    grant.server.on("told", respond(outcome))
    grant.server.on("a", respond(line(1)))
    export = grant.client.export("Patient", patient="Patient/1")
    for running in (export, grant.client.resume_export(export.state)):
        if is_refused:
            with pytest.raises(MalformedFHIRResponseError, match="ignored") as caught:
                ids(running)
            assert caught.value.issues == [issue]
        else:
            assert ids(running) == ["1"]
    # Without patients, nothing was ignored.
    everybody = BulkExport(grant.client, {"status_url": STATUS})
    assert ids(everybody) == ["1"]


def test_failed_file_says_why(grant):
    issue = {"severity": "error", "code": "processing", "diagnostics": "expired"}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    grant.server.on(STATUS, respond(manifest("a")))
    grant.server.on("a", respond(outcome, 410, media_type="application/fhir+ndjson"))
    with pytest.raises(FHIRNotFoundError, match="processing") as caught:
        ids(BulkExport(grant.client, {"status_url": STATUS}))
    assert caught.value.issues == [issue]


@pytest.mark.parametrize(
    ("entry", "reference"),
    [
        ({"request": {"method": "DELETE", "url": "Patient/1"}}, "Patient/1"),
        ({"request": {"method": "DELETE", "url": f"{BASE}/Patient/1"}}, "Patient/1"),
        ({"request": {"method": "DELETE", "url": "Patient?a=b"}}, None),
        ({"request": {"method": "PUT", "url": "Patient/1"}}, None),
        ({"request": {"method": "DELETE"}}, None),
        ({"resource": {}}, None),
        (None, None),
    ],
)
def test_deletion_that_says_nothing_is_an_error(grant, entry, reference):
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    deleted = [{"type": "Bundle", "url": f"{BASE}/d"}]
    grant.server.on(STATUS, respond(manifest(deleted=deleted)))
    grant.server.on("d", respond(bundle))
    export = BulkExport(grant.client, {"status_url": STATUS})
    if reference is not None:
        assert list(export.deleted()) == [reference]
        return
    with pytest.raises(MalformedFHIRResponseError):
        list(export.deleted())


@pytest.mark.parametrize("scope", ["Observation", "Group", "Group/a b", "../x", "/"])
def test_export_of_something_else_is_refused_before_a_request(grant, scope):
    with pytest.raises(FHIRRequestError):
        grant.client.export(scope)
    with pytest.raises(FHIRRequestError):
        grant.client.export(since=datetime(2026, 1, 1))
    assert grant.server.requests == []


@pytest.mark.parametrize("state", [{}, {"status_url": STATUS, "line": "x"}])
def test_state_of_something_else_is_refused(grant, state):
    with pytest.raises(FHIRRequestError):
        grant.client.resume_export(state)


@pytest.mark.parametrize(
    "answer",
    [
        respond(b"", 200),
        respond(b"{", 200),
        respond([], 200),
        respond({"output": []}, 200),
        respond({"transactionTime": TIME, "output": {}}, 200),
        respond({"transactionTime": TIME, "output": [{}]}, 200),
        respond({"transactionTime": TIME, "error": ["x"]}, 200),
        respond(b"", 302, location=BASE),
    ],
)
def test_list_of_files_that_is_none_is_refused(grant, answer):
    grant.server.on(STATUS, answer)
    grant.server.on(BASE, answer)
    with pytest.raises(MalformedFHIRResponseError):
        BulkExport(grant.client, {"status_url": STATUS}).poll()


@pytest.mark.parametrize("status", [400, 404, 500])
def test_export_that_failed_is_an_error(grant, status):
    grant.server.on(STATUS, respond({}, status))
    export = BulkExport(grant.client, {"status_url": STATUS})
    with pytest.raises(FHIRStatusError):
        export.poll()


def test_acceptance_without_a_place_to_ask_is_refused(grant):
    unusable = ("http://[bad", "mailto:x", r"https://x\y", "https://a@b/c")
    for answer in (
        respond(b"", 202),
        respond({}, 200, content_location=STATUS),
        *(respond(b"", 202, content_location=location) for location in unusable),
    ):
        grant.server.on(KICK_OFF, answer)
        with pytest.raises(MalformedFHIRResponseError, match="must return status 202"):
            grant.client.export()


def test_types_of_an_export_are_a_list(grant):
    with pytest.raises(FHIRRequestError):
        grant.client.export(types="Patient")
    assert grant.server.requests == []


def test_line_that_is_no_resource_is_told_by_its_number():
    odd = Odd([line(1) + b'{"c4nary": 1}\n'])
    with pytest.raises(MalformedFHIRResponseError, match="line 2 of a file"):
        ids(odd.export)


def test_line_without_an_end_is_an_error_and_not_all_of_memory():
    odd = Odd([b"x" * 2**20] * 51)
    with pytest.raises(ResponseTooLargeError):
        ids(odd.export)
    assert odd.opened == 1


# Large ones


@pytest.mark.process
@pytest.mark.parametrize(
    "count", [20_000, pytest.param(1_000_000, marks=pytest.mark.long)]
)
@pytest.mark.timeout(900)
def test_large_export_is_killed_and_gone_on_with_in_bounded_memory(
    tmp_path, settings, db, count
):
    settings.SMART_INSECURE_HTTP_HOSTS = {"localhost", "127.0.0.1"}
    ehr = EHRSimulator("https://ehr.example.org/fhir")
    with ehr.serve():
        ehr.bulk.observations, ehr.bulk.lines_per_file = count, count // 3
        service = make_service(ehr, server__base_url=ehr.base_url)
        read = tmp_path / "ids"
        environment = {
            **os.environ,
            "ACCESS_TOKEN": backend_client_for(service)._tokens.get(),
        }
        command = [sys.executable, "-m", "tests.fhir.exporting", ehr.base_url]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen([*command, str(tmp_path)], env=environment)

        with start() as process:
            try:
                wait_for(
                    lambda: read.exists() and read.stat().st_size > count * 7,
                    seconds=600,
                    what="half of the export",
                )
            finally:
                process.send_signal(signal.SIGKILL)
        before = len(read.read_text().split())
        assert 0 < before < count
        with start() as process:
            assert process.wait(600) == 0
    # What was written when the process was killed may end within an id.
    lines = read.read_text().split("\n")
    found = {text for text in lines if text.count("made-up-") == 1}
    assert {f"made-up-{number}" for number in range(count)} <= found
    assert len(lines) < count + 1200
    # KiB, of which the whole would be some two hundred thousand.
    assert int(Path(tmp_path / "peak").read_text()) < 10 * 1024
