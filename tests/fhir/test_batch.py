"""Batches and transactions: one request, and an answer for each entry."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from django_smart.exceptions import (
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    InsufficientScopeError,
    MalformedFHIRResponseError,
)
from django_smart.fhir import Batch
from django_smart.protocol.scopes import ScopeSet
from tests.fhir.servers import BASE, Grant, respond

PATIENT = {"resourceType": "Patient", "gender": "other"}
KEPT = {**PATIENT, "id": "p-1", "meta": {"versionId": "1"}}
OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"code": "conflict"}]}


def answers(kind: str, *entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Bundle",
        "type": f"{kind}-response",
        "entry": list(entries),
    }


def sent(grant: Grant) -> dict[str, Any]:
    [request] = grant.server.requests
    assert request.method == "POST"
    bundle: dict[str, Any] = json.loads(request.body or b"")
    return bundle


def test_every_interaction_has_its_entry(grant):
    patch = [{"op": "remove", "path": "/gender"}]
    batch = grant.client.batch()
    batch.read("Patient", "p-1")
    batch.vread("Patient", "p-1", "2")
    batch.search("Observation", patient="p-1", code="a,b")
    reference = batch.create(PATIENT, if_none_exist={"identifier": "x"})
    batch.update(KEPT, if_match=KEPT)
    batch.update(PATIENT, where={"identifier": "x"})
    batch.patch("Patient", "p-1", patch)
    batch.delete("Patient", "p-1", if_match="1")
    assert len(batch) == 8
    assert repr(batch) == "<Batch: batch of 8>"
    assert grant.server.requests == []
    answer = answers("batch", *[{"response": {"status": "200"}}] * 8)
    grant.server.on(BASE, respond(answer))
    assert [one.status_code for one in batch.send()] == [200] * 8
    bundle = sent(grant)
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "batch")
    patched = bundle["entry"][6].pop("resource")
    assert (patched["resourceType"], patched["contentType"]) == (
        "Binary",
        "application/json-patch+json",
    )
    assert json.loads(base64.b64decode(patched["data"])) == patch
    assert reference.startswith("urn:uuid:")
    assert bundle["entry"] == [
        {"request": {"method": "GET", "url": "Patient/p-1"}},
        {"request": {"method": "GET", "url": "Patient/p-1/_history/2"}},
        {"request": {"method": "GET", "url": "Observation?patient=p-1&code=a%2Cb"}},
        {
            "fullUrl": reference,
            "request": {
                "method": "POST",
                "url": "Patient",
                "ifNoneExist": "identifier=x",
            },
            "resource": PATIENT,
        },
        {
            "request": {"method": "PUT", "url": "Patient/p-1", "ifMatch": 'W/"1"'},
            "resource": KEPT,
        },
        {
            "request": {"method": "PUT", "url": "Patient?identifier=x"},
            "resource": PATIENT,
        },
        {"request": {"method": "PATCH", "url": "Patient/p-1"}},
        {"request": {"method": "DELETE", "url": "Patient/p-1", "ifMatch": 'W/"1"'}},
    ]
    assert [one.interaction for one in grant.exchanges] == ["batch"]


def test_entries_of_a_batch_fail_each_for_itself(grant):
    batch = grant.client.batch()
    batch.read("Patient", "p-1")
    batch.read("Patient", "p-2")
    batch.update(KEPT, if_match="1")
    grant.server.on(
        BASE,
        respond(
            answers(
                "batch",
                {"resource": KEPT, "response": {"status": "200 OK"}},
                {"response": {"status": "404 Not Found", "outcome": OUTCOME}},
                {"resource": OUTCOME, "response": {"status": "412"}},
            )
        ),
    )
    first, second, third = batch.send()
    assert first.get() == KEPT
    assert (first.reference, first.version_id) == ("Patient/p-1", "1")
    for answer, error in (
        (second, FHIRNotFoundError),
        (third, FHIRPreconditionFailedError),
    ):
        with pytest.raises(error) as caught:
            answer.get()
        assert caught.value is answer.error
        assert caught.value.issues == OUTCOME["issue"]
    assert "p-1" not in repr(first)


@pytest.mark.parametrize(
    ("location", "reference", "version"),
    [
        ("Patient/p-1/_history/1", "Patient/p-1", "1"),
        (f"{BASE}/Patient/p-1", "Patient/p-1", ""),
        ("https://other.example.org/fhir/Patient/p-1", "", ""),
        ("nowhere", "", ""),
        (None, "", ""),
    ],
)
def test_transaction_tells_where_what_it_made_is(grant, location, reference, version):
    transaction = grant.client.transaction()
    transaction.create(PATIENT)
    response = {"status": "201 Created", "location": location}
    grant.server.on(BASE, respond(answers("transaction", {"response": response})))
    [answer] = transaction.send()
    assert (answer.reference, answer.version_id) == (reference, version)
    assert answer.get() is None


def test_answers_out_of_order_do_not_pass_for_each_other(grant):
    batch = grant.client.batch()
    for patient_id in ("p-1", "p-2"):
        batch.read("Patient", patient_id)
    batch.read("Patient", "p-3")
    entries = [
        {"resource": {**KEPT, "id": patient_id}, "response": {"status": "200"}}
        for patient_id in ("p-2", "p-1", "p-3")
    ]
    grant.server.on(BASE, respond(answers("batch", *entries)))
    first, second, third = batch.send()
    for answer in (first, second):
        assert (answer.status_code, answer.resource) == (200, None)
        assert (answer.reference, answer.version_id) == ("", "")
        with pytest.raises(MalformedFHIRResponseError):
            answer.get()
    assert third.get() == {**KEPT, "id": "p-3"}


def add_read(batch: Batch) -> None:
    batch.read("Patient", "p-1")


def add_vread(batch: Batch) -> None:
    batch.vread("Patient", "p-1", "1")


def add_search(batch: Batch) -> None:
    batch.search("Patient", name="x")


def add_create(batch: Batch) -> None:
    batch.create(PATIENT)


def add_update(batch: Batch) -> None:
    batch.update(KEPT)


def add_conditional_update(batch: Batch) -> None:
    batch.update(PATIENT, where={"identifier": "x"})


def add_patch(batch: Batch) -> None:
    batch.patch("Patient", "p-1", [{"op": "remove", "path": "/gender"}])


GROUP = {"resourceType": "Group", "id": "p-1"}
OTHER = {**KEPT, "id": "p-2"}
NEWER = {**KEPT, "meta": {"versionId": "2"}}
FOUND = {"resourceType": "Bundle", "type": "searchset", "entry": []}
OF_ANOTHER_TYPE = {**FOUND, "type": "history"}
MALFORMED = {**FOUND, "entry": ["x"]}


@pytest.mark.parametrize(
    ("add", "right", "wrong"),
    [
        (add_read, [KEPT, NEWER], [None, OTHER, GROUP, PATIENT, OUTCOME, {}]),
        (
            add_vread,
            [KEPT, {**PATIENT, "id": "p-1"}],
            [None, NEWER, OTHER, GROUP, OUTCOME],
        ),
        (add_search, [FOUND], [None, KEPT, OUTCOME, {}, OF_ANOTHER_TYPE, MALFORMED]),
        (add_create, [KEPT, OTHER, OUTCOME, None], [GROUP, PATIENT, {}]),
        (add_update, [KEPT, NEWER, OUTCOME, None], [OTHER, GROUP, PATIENT]),
        (add_conditional_update, [KEPT, OTHER, OUTCOME, None], [GROUP]),
        (add_patch, [KEPT, NEWER, OUTCOME, None], [OTHER, GROUP, PATIENT]),
    ],
)
def test_entry_brings_what_was_meant(grant, add, right, wrong):
    for resource in (*right, *wrong):
        batch = grant.client.batch()
        add(batch)
        entry = {"resource": resource, "response": {"status": "200"}}
        grant.server.on(BASE, respond(answers("batch", entry)))
        [answer] = batch.send()
        if resource in right:
            assert answer.get() == resource
        else:
            assert isinstance(answer.error, MalformedFHIRResponseError)


def test_search_and_delete_bring_what_they_bring(grant):
    batch = grant.client.batch()
    batch.search("Patient", name="x")
    batch.delete("Patient", "p-1")
    entries = [
        {"resource": FOUND, "response": {"status": "200"}},
        {"resource": OUTCOME, "response": {"status": "200", "etag": 'W/"3"'}},
    ]
    grant.server.on(BASE, respond(answers("batch", *entries)))
    search, delete = batch.send()
    assert (search.get(), search.reference, search.version_id) == (FOUND, "", "")
    assert (delete.get(), delete.reference, delete.version_id) == (OUTCOME, "", "3")


@pytest.mark.parametrize(
    ("add", "resource", "response", "reference", "version"),
    [
        # Nothing but the request itself says where it is.
        (add_update, None, {}, "Patient/p-1", ""),
        (add_update, None, {"etag": 'W/"4"'}, "Patient/p-1", "4"),
        # What is nearer to the resource goes before the ETag.
        (add_update, KEPT, {"etag": 'W/"4"'}, "Patient/p-1", "1"),
        (add_create, KEPT, {"location": "Group/g-1/_history/7"}, "Patient/p-1", "1"),
        (add_update, {**PATIENT, "id": "p-1", "meta": {}}, {}, "Patient/p-1", ""),
        (
            add_update,
            None,
            {"location": "https://other.example.org/Patient/p-1"},
            "Patient/p-1",
            "",
        ),
    ],
)
def test_place_and_version_come_from_whatever_tells_them(
    grant, add, resource, response, reference, version
):
    batch = grant.client.batch()
    add(batch)
    entry = {"resource": resource, "response": {"status": "200", **response}}
    grant.server.on(BASE, respond(answers("batch", entry)))
    [answer] = batch.send()
    assert answer.get() == resource
    assert (answer.reference, answer.version_id) == (reference, version)


def test_empty_batch_is_not_sent(grant):
    assert grant.client.batch().send() == []
    assert grant.server.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        answers("transaction", {"response": {"status": "200"}}),
        answers("batch"),
        answers("batch", *[{"response": {"status": "200"}}] * 2),
        answers("batch", {}),
        answers("batch", {"response": {"status": "fine"}}),
        answers("batch", {"response": "200"}),
        OUTCOME,
    ],
)
def test_answer_that_does_not_fit_is_refused(grant, answer):
    batch = grant.client.batch()
    batch.read("Patient", "p-1")
    grant.server.on(BASE, respond(answer))
    with pytest.raises(MalformedFHIRResponseError):
        batch.send()


def test_scope_of_each_entry_is_looked_at():
    def refuse(missing: str) -> None:
        raise InsufficientScopeError("", missing=missing)

    grant = Grant(
        get_scopes=lambda: ScopeSet.parse("patient/Patient.r"), on_missing_scope=refuse
    )
    batch = grant.client.batch()
    batch.read("Patient", "p-1")
    batch.create(PATIENT)
    with pytest.raises(InsufficientScopeError) as caught:
        batch.send()
    assert caught.value.missing == "patient/Patient.c"
    assert grant.server.requests == []
