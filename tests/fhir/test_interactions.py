"""Reading and changing resources: what is sent, and what is made of the answer."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRConflictError,
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    FHIRRequestError,
    FHIRStatusError,
    InsufficientScopeError,
    MalformedFHIRResponseError,
)
from django_smart.fhir.guard import RecordRules
from django_smart.protocol.scopes import ScopeSet
from tests.fhir.servers import BASE, FHIR_JSON, Grant, bundle, respond

NEW = {"resourceType": "Observation", "status": "final"}
KEPT = {**NEW, "id": "o-1", "meta": {"versionId": "1"}}
PERSON = {"resourceType": "Patient", "id": "p-1"}
OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"code": "informational"}]}
FAILURE = {"resourceType": "OperationOutcome", "issue": [{"severity": "error"}]}


def sent(grant: Grant) -> tuple[str, str, dict[str, str], Any]:
    """Method, path, headers and JSON of the last request."""
    request = grant.server.requests[-1]
    headers = dict(request.headers)
    for name in ("Accept", "Authorization"):
        headers.pop(name)
    body = json.loads(request.body) if request.body else None
    return request.method, request.url.removeprefix(f"{BASE}/"), headers, body


# Reading


def resource(resource_type: str, resource_id: str, **members: Any) -> dict[str, Any]:
    return {"resourceType": resource_type, "id": resource_id, **members}


def test_version_comes_from_the_etag_where_the_resource_tells_none(grant):
    grant.server.on("Patient/1", respond(resource("Patient", "1"), etag='W/"7"'))
    assert grant.client.read("Patient", "1")["meta"] == {"versionId": "7"}
    told = resource("Patient", "1", meta={"versionId": "6"})
    grant.server.on("Patient/1", respond(told, etag='W/"7"'))
    assert grant.client.read("Patient", "1")["meta"] == {"versionId": "6"}
    grant.server.on("Patient/1", respond(resource("Patient", "1"), etag="7 or so"))
    assert "meta" not in grant.client.read("Patient", "1")


def test_version_is_read(grant):
    grant.server.on("Observation/o-1/_history/1", respond(KEPT))
    assert grant.client.vread("Observation", "o-1", "1") == KEPT
    assert grant.exchanges[-1].interaction == "vread"


def test_other_version_than_was_asked_for_is_refused(grant):
    grant.server.on("Observation/o-1/_history/2", respond(KEPT))
    with pytest.raises(MalformedFHIRResponseError):
        grant.client.vread("Observation", "o-1", "2")


@pytest.mark.parametrize("version", ["", "..", "a/b", "1?x", 1, None])
def test_wrong_version_is_refused_before_a_request(grant, version):
    with pytest.raises(FHIRRequestError):
        grant.client.vread("Observation", "o-1", version or "")
    assert grant.server.requests == []


# Creating


def test_resource_is_created(grant):
    grant.server.on("Observation", respond(KEPT, 201, location=f"{BASE}/elsewhere"))
    assert grant.client.create(NEW) == KEPT
    assert sent(grant) == ("POST", "Observation", {"Content-Type": FHIR_JSON}, NEW)
    assert grant.exchanges[-1].interaction == "create"


def test_created_resource_that_is_not_sent_is_known_by_its_location(grant):
    location = f"{BASE}/Observation/o-1/_history/1"
    known = {"resourceType": "Observation", "id": "o-1", "meta": {"versionId": "1"}}
    for answer in (
        respond(b"", 201, location=location),
        respond(OUTCOME, 201, location=location),
    ):
        grant.server.on("Observation", answer)
        assert grant.client.create(NEW, prefer="minimal") == known
    assert sent(grant)[2]["Prefer"] == "return=minimal"
    grant.server.on("Observation", respond(b"", 201, location="Observation/o-1"))
    assert grant.client.create(NEW) == {"resourceType": "Observation", "id": "o-1"}


@pytest.mark.parametrize("answer", [respond(b"", 204), respond(b"")])
def test_conditional_change_is_known_by_the_url_it_was_sent_to(answer):
    grant = Grant(
        patient_id="p-1",
        get_scopes=lambda: ScopeSet.parse("patient/*.cruds"),
        record_rules=RecordRules(),
    )
    kept = {**KEPT, "subject": {"reference": "Patient/p-1"}}
    found = "Observation?identifier=x&patient=p-1"
    grant.server.on(found, respond(bundle(kept)))
    known = {"resourceType": "Observation", "id": "o-1"}
    where = {"identifier": "x"}
    patch = [{"op": "remove", "path": "/status"}]
    for change in (
        lambda fhir: fhir.update(kept, where=where),
        lambda fhir: fhir.patch("Observation", None, patch, where=where),
    ):
        grant.server.on("Observation/o-1", respond(kept), answer)
        assert change(grant.client) == known


@pytest.mark.parametrize("base_url", [BASE, "https://ehr.example.org/FHIR"])
def test_write_that_does_not_say_what_it_stored_is_told_as_such(base_url):
    grant = Grant(base_url=base_url)
    for change in (
        lambda fhir: fhir.create(NEW),
        lambda fhir: fhir.update(NEW, where={"identifier": "x"}),
    ):
        for path in ("Observation", "Observation?identifier=x"):
            grant.server.on(f"{base_url}/{path}", respond(b"", 204))
        with pytest.raises(MalformedFHIRResponseError, match="which resource"):
            change(grant.client)


@pytest.mark.parametrize("body", [b"", b"Accepted.", OUTCOME, KEPT])
def test_write_that_was_only_accepted_is_not_reported_as_stored(grant, body):
    patch = [{"op": "remove", "path": "/status"}]
    for change in (
        lambda fhir: fhir.create(NEW),
        lambda fhir: fhir.update(KEPT),
        lambda fhir: fhir.patch("Observation", "o-1", patch),
    ):
        for path in ("Observation", "Observation/o-1"):
            accepted = respond(body, 202, location=f"{BASE}/Observation/o-1")
            grant.server.on(path, accepted)
        with pytest.raises(MalformedFHIRResponseError) as caught:
            change(grant.client)
        assert caught.value.status_code == 202


def test_outcome_is_returned_where_it_was_asked_for(grant):
    grant.server.on("Observation", respond(OUTCOME, 201))
    assert grant.client.create(NEW, prefer="OperationOutcome") == OUTCOME


@pytest.mark.parametrize(
    "location",
    [
        "https://other.example.org/fhir/Observation/o-1",
        "//other.example.org/Observation/o-1",
        "https://ehr.example.org/other/Observation/o-1",
        "http://[x/Observation/o-1",
        f"{BASE}/../Observation/o-1",
    ],
)
@pytest.mark.compliance("FHIR-02")
def test_location_outside_of_the_server_is_refused(grant, location):
    grant.server.on("Observation", respond(b"", 201, location=location))
    with pytest.raises(BearerBoundaryError) as caught:
        grant.client.create(NEW)
    assert "o-1" not in str(caught.value)
    assert len(grant.server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "headers"),
    [
        (b"", {}),
        (b"", {"location": f"{BASE}/Observation"}),
        (b"", {"location": f"{BASE}/Patient/o-1"}),
        (NEW, {}),
        ({**KEPT, "id": "a/b"}, {}),
        ({**KEPT, "resourceType": "Patient"}, {}),
    ],
)
def test_answer_that_does_not_tell_what_was_made_is_refused(grant, answer, headers):
    grant.server.on("Observation", respond(answer, 201, **headers))
    with pytest.raises(MalformedFHIRResponseError):
        grant.client.create(NEW)


def test_resource_is_created_unless_one_matches(grant):
    grant.server.on("Observation", respond(KEPT, 200), respond(OUTCOME, 412))
    condition = {"identifier": "urn:x|5"}
    assert grant.client.create(NEW, if_none_exist=condition) == KEPT
    assert sent(grant)[2]["If-None-Exist"] == "identifier=urn%3Ax%7C5"
    with pytest.raises(FHIRPreconditionFailedError):
        grant.client.create(NEW, if_none_exist=condition)
    with pytest.raises(FHIRRequestError):
        grant.client.create(NEW, if_none_exist={})


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"resourceType": "../x"},
        {"resourceType": "observation"},
        {**NEW, "issued": date(2026, 1, 2)},
        {**NEW, "valueDecimal": float("nan")},
        {**NEW, "note": "\ud800"},
    ],
)
def test_what_is_no_resource_is_not_sent(grant, value):
    with pytest.raises(FHIRRequestError):
        grant.client.create(value)
    assert grant.server.requests == []


def test_unknown_preference_is_refused(grant):
    with pytest.raises(FHIRRequestError):
        grant.client.create(NEW, prefer="everything")


# Updating


@pytest.mark.parametrize("version", ["1", 'W/"1"', KEPT])
def test_update_names_the_version_it_was_made_from(grant, version):
    newer = {**KEPT, "meta": {"versionId": "2"}}
    grant.server.on("Observation/o-1", respond(newer))
    assert grant.client.update(KEPT, if_match=version) == newer
    assert sent(grant) == (
        "PUT",
        "Observation/o-1",
        {"Content-Type": FHIR_JSON, "If-Match": 'W/"1"'},
        KEPT,
    )


@pytest.mark.parametrize(
    ("status", "error"), [(409, FHIRConflictError), (412, FHIRPreconditionFailedError)]
)
def test_somebody_elses_change_is_a_conflict(grant, status, error):
    grant.server.on("Observation/o-1", respond(OUTCOME, status))
    with pytest.raises(error):
        grant.client.update(KEPT, if_match=KEPT)


@pytest.mark.parametrize("version", ["", 'W/"1', "a b", NEW, 1])
def test_version_that_is_none_is_refused_before_a_request(grant, version):
    with pytest.raises(FHIRRequestError):
        grant.client.update(KEPT, if_match=version)
    assert grant.server.requests == []


def test_update_without_an_id_is_refused_before_a_request(grant):
    with pytest.raises(FHIRRequestError):
        grant.client.update(NEW)
    assert grant.server.requests == []


def test_update_without_an_answer_is_known_by_its_request(grant):
    grant.server.on("Observation/o-1", respond(b"", 200, etag='W/"2"'))
    assert grant.client.update(KEPT) == {
        "resourceType": "Observation",
        "id": "o-1",
        "meta": {"versionId": "2"},
    }


def test_update_that_brings_another_resource_is_refused(grant):
    grant.server.on("Observation/o-1", respond({**KEPT, "id": "o-2"}))
    with pytest.raises(MalformedFHIRResponseError):
        grant.client.update(KEPT)


def test_update_finds_its_resource_by_a_search(grant):
    grant.server.on("Observation?identifier=x", respond(KEPT))
    assert grant.client.update(NEW, where={"identifier": "x"}) == KEPT
    with pytest.raises(FHIRRequestError):
        grant.client.update(NEW, where=[])


# Patching


def test_json_patch_is_sent(grant):
    grant.server.on("Observation/o-1", respond(KEPT))
    patch = [{"op": "replace", "path": "/status", "value": "amended"}]
    assert grant.client.patch("Observation", "o-1", patch, if_match="1") == KEPT
    headers = {"Content-Type": "application/json-patch+json", "If-Match": 'W/"1"'}
    assert sent(grant) == ("PATCH", "Observation/o-1", headers, patch)


def test_fhirpath_patch_is_sent(grant):
    grant.server.on("Observation?identifier=x", respond(KEPT))
    patch = {"resourceType": "Parameters", "parameter": [{"name": "operation"}]}
    kept = grant.client.patch("Observation", None, patch, where={"identifier": "x"})
    assert kept == KEPT
    headers = {"Content-Type": FHIR_JSON}
    assert sent(grant) == ("PATCH", "Observation?identifier=x", headers, patch)


@pytest.mark.parametrize(
    "patch",
    [
        [],
        {},
        "x",
        [{"op": "replace"}],
        [{"op": "change", "path": "/x"}],
        [{"op": "add", "path": "x"}],
        ["x"],
        {"resourceType": "Patient"},
        {"resourceType": "Parameters"},
    ],
)
def test_what_is_no_patch_is_not_sent(grant, patch):
    with pytest.raises(FHIRRequestError):
        grant.client.patch("Observation", "o-1", patch)
    assert grant.server.requests == []


@pytest.mark.parametrize(
    ("severity", "status", "is_done"),
    [
        *[("fatal", 200, False), ("error", 200, False), ("warning", 200, True)],
        # It was stored, and the error is only advice.
        ("error", 201, True),
    ],
)
def test_write_with_an_error_is_not_reported_as_done(grant, severity, status, is_done):
    issue = {"severity": severity, "code": "processing"}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    patch = [{"op": "remove", "path": "/status"}]
    answer = respond(outcome, status, location=f"{BASE}/Observation/o-1")
    for path in ("Observation", "Observation/o-1"):
        grant.server.on(path, answer)
    for change in (
        lambda fhir: fhir.create(NEW),
        lambda fhir: fhir.create(NEW, prefer="OperationOutcome"),
        lambda fhir: fhir.update(KEPT),
        lambda fhir: fhir.patch("Observation", "o-1", patch),
    ):
        if is_done:
            assert change(grant.client)
            continue
        with pytest.raises(MalformedFHIRResponseError, match="an error") as caught:
            change(grant.client)
        assert caught.value.status_code == status
    # An operation such as $validate succeeds when it returns errors.
    grant.server.on("Observation/$validate", respond(outcome))
    assert grant.client.operation("validate", "Observation", body=KEPT) == outcome


# Deleting


@pytest.mark.parametrize(
    "answer",
    [
        *(respond(b"", 204), respond(OUTCOME), respond(b"", 202)),
        *(respond(OUTCOME, 202), respond(b"Deleted.", media_type="text/plain")),
        *(respond(b"{"), respond({"deleted": 1}, 202, media_type="application/json")),
    ],
)
def test_resource_is_deleted(grant, answer):
    grant.server.on("Observation/o-1", answer)
    grant.client.delete("Observation", "o-1", if_match=KEPT)
    assert sent(grant) == ("DELETE", "Observation/o-1", {"If-Match": 'W/"1"'}, None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (respond(OUTCOME, 404), FHIRNotFoundError),
        (respond(b"", 410), FHIRNotFoundError),
        (respond(OUTCOME, 412), FHIRPreconditionFailedError),
        (respond(b"", 304), MalformedFHIRResponseError),
        (respond(FAILURE), MalformedFHIRResponseError),
        (respond(FAILURE, 202), MalformedFHIRResponseError),
    ],
)
def test_refused_deletion_is_an_error(grant, answer, error):
    grant.server.on("Observation/o-1", answer)
    with pytest.raises(error):
        grant.client.delete("Observation", "o-1")


def test_what_a_search_finds_is_deleted(grant):
    grant.server.on("Observation?identifier=x", respond(b"", 204))
    grant.client.delete("Observation", where={"identifier": "x"})
    assert sent(grant)[:2] == ("DELETE", "Observation?identifier=x")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"where": {}}, {"where": []}, {"id": "o-1", "where": {"a": "b"}}, {"id": ""}],
)
def test_deletion_of_who_knows_what_is_not_sent(grant, arguments):
    with pytest.raises(FHIRRequestError):
        grant.client.delete("Observation", **arguments)
    assert grant.server.requests == []


# History


def history(*entries: dict[str, Any], next_url: str | None = None) -> dict[str, Any]:
    return bundle(next_url=next_url, type="history", entry=list(entries))


@pytest.mark.parametrize(
    ("arguments", "path", "name"),
    [
        (("Observation", "o-1"), "Observation/o-1/_history", "history-instance"),
        (("Observation",), "Observation/_history", "history-type"),
        ((), "_history", "history-system"),
    ],
)
def test_history_is_followed_page_by_page(grant, arguments, path, name):
    deletion = {"request": {"method": "DELETE", "url": "Observation/o-1"}}
    version = {"resource": KEPT, "request": {"method": "POST", "url": "Observation"}}
    grant.server.on(path, respond(history(deletion, next_url=f"{BASE}?page=2")))
    grant.server.on(f"{BASE}?page=2", respond(history(version)))
    found = grant.client.history(*arguments)
    assert found == [deletion, version]
    assert (found.total, found.is_complete) == (2, True)
    assert found.versions() == [KEPT]
    assert [one.interaction for one in grant.exchanges] == [name] * 2
    one = grant.client.history(*arguments, limit=1)
    assert (one, one.is_complete) == ([deletion], False)


def test_history_keeps_versions_that_the_server_does_not_number(grant):
    entry = {"resource": {**NEW, "id": "o-1"}}
    entries = [entry, {"resource": {**NEW, "id": "o-1", "status": "amended"}}]
    path = "Observation/o-1/_history"
    grant.server.on(path, respond(history(entries[0], next_url=f"{BASE}?page=2")))
    grant.server.on(f"{BASE}?page=2", respond(history(entries[1])))
    assert grant.client.history("Observation", "o-1") == entries


def test_history_can_be_cut_down(grant):
    since = datetime(2026, 1, 2, tzinfo=UTC)
    query = "_since=2026-01-02T00%3A00%3A00%2B00%3A00"
    grant.server.on(f"Observation/_history?{query}", respond(history()))
    assert list(grant.client.history("Observation", since=since)) == []
    with pytest.raises(FHIRRequestError):
        grant.client.history("Observation", since=datetime(2026, 1, 2))
    with pytest.raises(FHIRRequestError):
        grant.client.history(None, "o-1")


def test_history_of_which_nothing_came_is_not_empty(grant):
    answer = {**bundle(total=3), "type": "history"}
    grant.server.on("Observation/_history", respond(answer))
    with pytest.raises(MalformedFHIRResponseError, match="match"):
        grant.client.history("Observation")


def test_searchset_is_no_history(grant):
    grant.server.on("_history", respond(bundle()))
    with pytest.raises(MalformedFHIRResponseError):
        list(grant.client.history())


# Searching by POST


def test_long_search_is_posted_and_its_pages_are_got(grant):
    codes = ",".join(f"code-{number}" for number in range(300))
    grant.server.on(
        "Observation/_search",
        respond({}, 503, retry_after="0"),
        respond(bundle(KEPT, next_url=f"{BASE}?page=2")),
    )
    other = {**KEPT, "id": "o-2"}
    grant.server.on(f"{BASE}?page=2", respond(bundle(other)))
    found = grant.client.search("Observation", code=codes, prefer="strict")
    assert list(found) == [KEPT, other]
    # A search changes nothing, so a busy server is asked again.
    first, again, page = grant.server.requests
    assert (first.method, again.method, page.method) == ("POST", "POST", "GET")
    assert first.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert first.headers["Prefer"] == "handling=strict"
    assert first.body is not None
    assert first.body.startswith(b"code=code-0%2Ccode-1%2C")


# Operations


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("everything", "Patient", "1"), "Patient/1/$everything"),
        (("$lastn", "Observation"), "Observation/$lastn"),
        (("meta",), "$meta"),
    ],
)
def test_operation_is_called_on_each_level(grant, arguments, path):
    grant.server.on(f"{path}?max=3", respond(bundle()))
    assert grant.client.operation(*arguments, max=3)["resourceType"] == "Bundle"
    assert grant.exchanges[-1].interaction == "operation"


def test_operation_that_goes_on_later_keeps_its_job(grant):
    job = f"{BASE}/jobs/1"
    for answer in (
        respond(OUTCOME, 202, content_location=job),
        respond(b"", 202, content_location=job),
        respond(b"Accepted.", 202, media_type="text/plain", content_location=job),
    ):
        grant.server.on("$reindex", answer)
        [parameter] = grant.client.operation("reindex")["parameter"]
        assert parameter == {"name": "Content-Location", "valueUrl": job}


def test_operation_takes_a_resource_by_post(grant):
    body = {"resourceType": "Parameters"}
    grant.server.on("Observation/o-1/$validate", respond(b"", 204))
    assert grant.client.operation("validate", "Observation", "o-1", body=body) == body
    assert sent(grant)[0] == "POST"
    assert sent(grant)[3] == body


@pytest.mark.parametrize("name", ["", "$", "../x", "a b", "$$x", "x?y", "x/y"])
def test_wrong_name_of_an_operation_is_refused(grant, name):
    with pytest.raises(FHIRRequestError):
        grant.client.operation(name)
    assert grant.server.requests == []


def test_operation_with_an_id_needs_a_type(grant):
    with pytest.raises(FHIRRequestError):
        grant.client.operation("everything", id="1")


# Capabilities


def test_metadata_of_another_kind_is_refused(grant):
    grant.server.on("metadata", respond(KEPT))
    with pytest.raises(MalformedFHIRResponseError):
        grant.client.capabilities()


# Scopes


@pytest.mark.parametrize(
    ("scope", "missing"),
    [
        ("patient/Observation.rs", ""),
        ("user/*.read", ""),
        ("system/observation.r?code=x", ""),
        ("patient/Observation.s patient/Patient.r", "patient/Observation.r"),
        ("launch openid", "patient/Observation.r"),
        ("user/Patient.*", "user/Observation.r"),
    ],
)
def test_missing_scope_is_named_before_the_request(scope, missing):
    told: list[str] = []
    grant = Grant(
        get_scopes=lambda: ScopeSet.parse(scope), on_missing_scope=told.append
    )
    grant.server.on("Observation/o-1", respond(KEPT))
    grant.client.read("Observation", "o-1")
    assert told == ([missing] if missing else [])


@pytest.mark.parametrize(
    ("scope", "missing"),
    [("openid fhirUser", []), ("openid", ["patient/Practitioner.r"])],
)
def test_the_person_may_be_read_without_a_scope_for_the_type(scope, missing):
    told: list[str] = []
    grant = Grant(
        get_scopes=lambda: ScopeSet.parse(scope), on_missing_scope=told.append
    )
    grant.server.on("Practitioner/1", respond(resource("Practitioner", "1")))
    grant.client.read("Practitioner", "1")
    assert told == missing


def refuse(missing: str) -> None:
    raise InsufficientScopeError("", missing=missing)


@pytest.mark.parametrize(
    ("use", "missing"),
    [
        (lambda fhir: fhir.vread("Patient", "1", "1"), "patient/Patient.r"),
        (lambda fhir: fhir.create({"resourceType": "Patient"}), "patient/Patient.c"),
        (lambda fhir: fhir.update(KEPT), "patient/Observation.u"),
        (
            lambda fhir: fhir.patch("Patient", "1", [{"op": "remove", "path": "/x"}]),
            "patient/Patient.u",
        ),
        (lambda fhir: fhir.delete("Patient", "1"), "patient/Patient.d"),
        (lambda fhir: fhir.history("Patient", "1"), "patient/Patient.r"),
        (lambda fhir: fhir.history("Patient"), "patient/Patient.s"),
        (lambda fhir: fhir.history(), "patient/*.s"),
        (lambda fhir: fhir.search("Patient"), "patient/Patient.s"),
        (lambda fhir: fhir.resolve("Patient/1"), "patient/Patient.r"),
    ],
)
def test_each_interaction_needs_its_scope(use, missing):
    grant = Grant(
        get_scopes=lambda: ScopeSet.parse("patient/Encounter.cr"),
        on_missing_scope=refuse,
    )
    with pytest.raises(InsufficientScopeError) as caught:
        list(use(grant.client))
    assert caught.value.missing == missing
    assert grant.server.requests == []


def test_what_no_scope_speaks_of_is_left_to_the_server():
    grant = Grant(get_scopes=ScopeSet, on_missing_scope=refuse)
    grant.server.on("$meta", respond(KEPT))
    grant.server.on("metadata", respond({"resourceType": "Conformance"}))
    grant.client.operation("meta")
    grant.client.capabilities()


# Request ids


def test_each_request_has_an_id_that_errors_and_the_audit_name(grant):
    grant.server.on("Patient/1", respond({}, 401), respond(OUTCOME, 404))
    with pytest.raises(FHIRStatusError) as caught:
        grant.client.read("Patient", "1")
    first, second = grant.server.request_ids
    assert first == second == caught.value.request_id == grant.exchanges[0].request_id
    grant.client.request("GET", "Patient/1")
    assert grant.server.request_ids[-1] not in {"", first}


def test_own_request_id_is_kept(grant):
    grant.server.on("Patient/1", respond({}))
    for name in ("X-Request-Id", "x-request-id"):
        grant.client.request("GET", "Patient/1", headers={name: "mine"})
        assert grant.exchanges[-1].request_id == "mine"
        assert grant.server.request_ids[-1] == "mine"


def test_odd_request_id_of_a_server_is_not_told(grant):
    grant.server.on("Patient/1", respond({}, 500, x_request_id="a b"))
    with pytest.raises(FHIRStatusError) as caught:
        grant.client.read("Patient", "1")
    assert caught.value.request_id == grant.server.request_ids[-1]


# Changing


def add_phone(patient):
    patient.setdefault("telecom", []).append({"value": "555-0100"})


@pytest.mark.parametrize("status", [409, 412])
def test_modify_starts_again_where_somebody_was_faster(grant, status):
    first = {**PERSON, "meta": {"versionId": "1"}}
    second = {**PERSON, "active": True, "meta": {"versionId": "2"}}
    grant.server.on(
        "Patient/p-1",
        *(respond(first), respond({}, status), respond(second), respond(second)),
    )
    assert grant.client.modify("Patient", "p-1", add_phone) == second
    sent = [each for each in grant.server.requests if each.method == "PUT"]
    assert [each.headers["If-Match"] for each in sent] == ['W/"1"', 'W/"2"']
    written = json.loads(sent[1].body or b"")
    assert (written["active"], written["telecom"]) == (True, [{"value": "555-0100"}])


def test_modify_gives_up_and_writes_nothing_needlessly(grant):
    versioned = {**PERSON, "meta": {"versionId": "1"}}
    grant.server.on("Patient/p-1", *[respond(versioned), respond({}, 412)] * 2)
    with pytest.raises(FHIRPreconditionFailedError):
        grant.client.modify("Patient", "p-1", add_phone, tries=2)
    assert len(grant.server.requests) == 4
    grant.server.on("Patient/p-1", respond(versioned))
    assert grant.client.modify("Patient", "p-1", lambda patient: patient) == versioned
    assert len(grant.server.requests) == 5
    grant.server.on("Patient/p-1", respond(PERSON))
    with pytest.raises(FHIRRequestError, match="version"):
        grant.client.modify("Patient", "p-1", lambda patient: {**patient, "x": 1})
    assert len(grant.server.requests) == 6


@pytest.mark.parametrize(
    ("came", "value", "written"),
    [("7.1", Decimal("7.10"), "7.10"), ("1", True, "true"), ("7.10", 7.1, "7.1")],
)
def test_modify_writes_what_differs_in_its_digits_alone(grant, came, value, written):
    body = b'{"resourceType":"Patient","id":"p-1","meta":{"versionId":"1"},"x":%s}'
    grant.server.on("Patient/p-1", respond(body % came.encode()))
    grant.client.modify("Patient", "p-1", lambda patient: {**patient, "x": value})
    assert grant.server.requests[-1].body == body % written.encode()


def test_part_of_a_resource_is_not_written_back(grant):
    part = {**PERSON, "meta": {"tag": [{"code": "SUBSETTED"}]}}
    with pytest.raises(FHIRRequestError, match="SUBSETTED"):
        grant.client.update(part)
    with pytest.raises(FHIRRequestError, match="SUBSETTED"):
        grant.client.transaction().update(part)
    with pytest.raises(FHIRRequestError, match="SUBSETTED"):
        grant.client.as_fhirpy().resource("Patient", id="p-1", meta=part["meta"]).save()
    assert grant.server.requests == []
    whole = {**PERSON, "meta": {"tag": [{"code": "other"}, "odd"]}}
    grant.server.on("Patient/p-1", respond(whole))
    assert grant.client.update(whole) == whole


def test_search_is_posted_when_asked(grant):
    grant.server.on("Patient/_search", respond(bundle(PERSON)))
    assert grant.client.search("Patient", name="x", by_post=True) == [PERSON]
    [request] = grant.server.requests
    assert (request.method, request.body) == ("POST", b"name=x")
    assert "name" not in request.url


# Pages of any Bundle


@pytest.mark.parametrize("has_self_link", [True, False])
def test_pages_of_any_bundle_are_followed(grant, has_self_link):
    next_url = "?page=2" if has_self_link else f"{BASE}/x?page=2"
    first = bundle(KEPT, next_url=next_url, type="collection")
    first["link"][0]["url"] = f"{BASE}/x"
    if not has_self_link:
        del first["link"][0]
    grant.server.on("Observation/$lastn", respond(first))
    grant.server.on("x?page=2", respond(bundle(PERSON, type="collection")))
    answer = grant.client.operation("lastn", "Observation")
    pages = list(grant.client.iterate_pages(answer))
    found = [each["resource"] for page in pages for each in page["entry"]]
    assert found == [KEPT, PERSON]
    assert len(grant.server.requests) == 2


def test_only_a_bundle_has_pages_and_they_stay_at_the_server(grant):
    with pytest.raises(FHIRRequestError):
        list(grant.client.iterate_pages(PERSON))
    assert len(list(grant.client.iterate_pages(bundle(type="collection")))) == 1
    away = bundle(next_url="https://other.example.org/")
    with pytest.raises(BearerBoundaryError):
        list(grant.client.iterate_pages(away))
    assert grant.server.requests == []
