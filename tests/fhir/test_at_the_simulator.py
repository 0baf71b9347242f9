"""Each interaction against the simulated EHR, which keeps versions and scopes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import requests

from django_smart import transport
from django_smart.exceptions import (
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    FHIRStatusError,
)
from django_smart.fhir import FHIRClient, Number
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from django_smart.testing import EHRSimulator
from tests.fhir.servers import Carrier, Tokens
from tests.testing.app import OTHER_PATIENT, PATIENT, App

BASE_URL = "https://ehr.example.org/v/r4/sim/abc/fhir"
SCOPE = "launch/patient patient/*.cruds"
NEW: dict[str, Any] = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "29463-7"}]},
    "subject": {"reference": f"Patient/{PATIENT}"},
    "valueQuantity": {"value": 71.5, "unit": "kg"},
}
TIMEOUTS = transport.Timeouts(connect=2, read=5, total=10)


@pytest.fixture
def ehr() -> Iterator[EHRSimulator]:
    simulator = EHRSimulator(BASE_URL)
    with transport.mounted("https://ehr.example.org", simulator.adapter()):
        yield simulator


@pytest.fixture
def connect(ehr: EHRSimulator) -> Iterator[Callable[..., FHIRClient]]:
    """Launch, and build a client with the token that came."""

    def send(request: HTTPRequest) -> HTTPResponse:
        return transport.send(
            request, timeouts=TIMEOUTS, max_body=10**7, insecure_hosts=frozenset()
        )

    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        app = App(ehr, session)

        def build(scope: str = SCOPE) -> FHIRClient:
            tokens = app.launch(scope)
            return FHIRClient(
                base_url=ehr.base_url,
                tokens=Tokens(
                    lambda: tokens["access_token"],
                    get_scopes=lambda: ScopeSet.parse(scope),
                ),
                transport=Carrier(
                    send,
                    lambda request: transport.open_stream(
                        request,
                        timeouts=TIMEOUTS,
                        max_body=10**7,
                        insecure_hosts=frozenset(),
                    ),
                ),
                patient_id=PATIENT,
            )

        yield build


@pytest.fixture
def fhir(connect: Callable[..., FHIRClient]) -> FHIRClient:
    return connect()


def test_resource_lives_from_creation_to_deletion(fhir: FHIRClient) -> None:
    created = fhir.create(NEW)
    assert created["meta"]["versionId"] == "1"
    assert fhir.read("Observation", created["id"]) == created
    amended = fhir.update({**created, "status": "amended"}, if_match=created)
    assert (amended["status"], amended["meta"]["versionId"]) == ("amended", "2")
    with pytest.raises(FHIRPreconditionFailedError) as caught:
        fhir.update({**created, "status": "cancelled"}, if_match=created)
    assert caught.value.issues[0]["code"] == "conflict"
    assert caught.value.request_id
    assert fhir.read("Observation", created["id"]) == amended
    fhir.delete("Observation", created["id"], if_match="2")
    with pytest.raises(FHIRNotFoundError):
        fhir.read("Observation", created["id"])
    fhir.delete("Observation", created["id"])
    history = list(fhir.history("Observation", created["id"]))
    methods = [entry["request"]["method"] for entry in history]
    assert methods == ["DELETE", "PUT", "POST"]
    assert "resource" not in history[0]
    assert fhir.vread("Observation", created["id"], "1") == created
    with pytest.raises(FHIRNotFoundError):
        fhir.vread("Observation", created["id"], "3")
    with pytest.raises(FHIRNotFoundError):
        fhir.vread("Observation", created["id"], "4")


def test_server_keeps_the_digits(fhir: FHIRClient) -> None:
    def get_digits(resource: Any) -> list[str]:
        low = resource["referenceRange"][0]["low"]
        return [str(each["value"]) for each in (resource["valueQuantity"], low)]

    new = {
        **NEW,
        "valueQuantity": {"value": Decimal("7.10")},
        "referenceRange": [{"low": {"value": Number("0.010")}}],
    }
    made = fhir.create(new)
    assert get_digits(made) == ["7.10", "0.010"]
    made["valueQuantity"]["value"] = Number("123456789012345678.123456789")
    assert get_digits(fhir.update(made))[0] == "123456789012345678.123456789"
    step = {"op": "replace", "path": "/valueQuantity/value", "value": Decimal("7.00")}
    assert get_digits(fhir.patch("Observation", made["id"], [step]))[0] == "7.00"
    transaction = fhir.transaction()
    transaction.create(fhir.read("Observation", made["id"]))
    (answer,) = transaction.send()
    assert get_digits(fhir.resolve(answer.reference)) == ["7.00", "0.010"]
    found = fhir.search("Observation", patient=PATIENT, code="29463-7")
    mine = [each for each in found if "referenceRange" in each]
    assert [get_digits(each) for each in mine] == [["7.00", "0.010"]] * 2


def test_resource_is_patched_both_ways(fhir: FHIRClient) -> None:
    created = fhir.create(NEW)
    place = ("Observation", created["id"])
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": "/status", "value": "final"},
        {"op": "replace", "path": "/status", "value": "amended"},
        {"op": "add", "path": "/code/coding/-", "value": {"code": "own"}},
    ]
    patched = fhir.patch(*place, patch, if_match=created)
    assert patched["status"] == "amended"
    assert patched["code"]["coding"][1] == {"code": "own"}
    with pytest.raises(FHIRStatusError):
        fhir.patch(*place, patch)
    parts = [
        {"name": "type", "valueCode": "replace"},
        {"name": "path", "valueString": "Observation.status"},
        {"name": "value", "valueCode": "corrected"},
    ]
    parameters = {
        "resourceType": "Parameters",
        "parameter": [{"name": "operation", "part": parts}],
    }
    patched = fhir.patch(*place, parameters)
    assert (patched["status"], patched["meta"]["versionId"]) == ("corrected", "3")


def test_server_answers_as_briefly_as_is_preferred(fhir: FHIRClient) -> None:
    made = fhir.create(NEW, prefer="minimal")
    assert made == {
        "resourceType": "Observation",
        "id": made["id"],
        "meta": {"versionId": "1"},
    }
    told = fhir.create(NEW, prefer="OperationOutcome")
    assert told["resourceType"] == "OperationOutcome"


def test_conditions_find_one_resource_or_none(fhir: FHIRClient) -> None:
    code = {"code": "29463-7", "status": "final"}
    heavy = {**NEW, "valueQuantity": {"value": 80, "unit": "kg"}}
    unknown = {"code": "no-such-code"}
    created = fhir.create(NEW, if_none_exist=unknown)
    mine = {"_id": created["id"]}
    assert fhir.create(heavy, if_none_exist=mine) == created
    assert fhir.update(heavy, where=mine)["valueQuantity"]["value"] == 80
    removed = fhir.patch(
        "Observation", None, [{"op": "remove", "path": "/valueQuantity"}], where=mine
    )
    assert "valueQuantity" not in removed
    fhir.create(NEW)
    for use in (
        lambda: fhir.create(NEW, if_none_exist=code),
        lambda: fhir.update(NEW, where=code),
        lambda: fhir.delete("Observation", where=code),
    ):
        with pytest.raises(FHIRPreconditionFailedError):
            use()
    fhir.delete("Observation", where=mine)
    fhir.delete("Observation", where=mine)
    with pytest.raises(FHIRNotFoundError):
        fhir.read("Observation", created["id"])
    with pytest.raises(FHIRNotFoundError):
        fhir.patch("Observation", None, [{"op": "remove", "path": "/x"}], where=unknown)


def test_part_of_a_resource_is_marked_as_one(fhir: FHIRClient) -> None:
    part = fhir.search("Patient", _id=PATIENT, _elements="gender")[0]
    assert set(part) == {"resourceType", "id", "meta", "gender"}
    assert part["meta"]["tag"][0]["code"] == "SUBSETTED"


def test_history_of_a_type_and_of_everything_is_paged(fhir: FHIRClient) -> None:
    created = fhir.create(NEW)
    fhir.update({**created, "status": "amended"})
    of_type = list(fhir.history("Observation"))
    assert [one["resource"]["meta"]["versionId"] for one in of_type[:2]] in (
        ["2", "1"],
        ["1", "2"],
    )
    assert {one["resource"]["resourceType"] for one in of_type} == {"Observation"}
    assert len(of_type) > 40
    kinds = {one["resourceType"] for one in fhir.history().versions()}
    assert {"Patient", "Observation", "Condition"} <= kinds
    recent = list(fhir.history(since=datetime(2026, 10, 1, tzinfo=UTC)))
    assert len(recent) == 2


def test_operations_of_each_level_answer(fhir: FHIRClient) -> None:
    everything = fhir.operation("everything", "Patient", PATIENT, _count=5)
    assert len(everything["entry"]) == 5
    last = fhir.operation("$lastn", "Observation", code="4548-4", max=2)
    assert len(last["entry"]) == 2
    outcome = fhir.operation("validate", "Observation", body=NEW)
    assert outcome["issue"][0]["severity"] == "information"
    assert fhir.operation("versions")["parameter"][0]["valueCode"] == "4.0"
    with pytest.raises(FHIRStatusError):
        fhir.operation("apply", "Patient")


def test_record_of_a_patient_is_read_as_a_whole(fhir: FHIRClient) -> None:
    record = fhir.patient()
    resources = list(record.everything(_count=20))
    assert resources[0] == record.read()
    assert {"Observation", "Condition", "Encounter"} <= {
        one["resourceType"] for one in resources
    }
    found = list(record.search("Observation", code="4548-4"))
    assert len(found) == 11
    with pytest.raises(FHIRForbiddenError):
        fhir.operation("everything", "Patient", OTHER_PATIENT)


def test_transaction_happens_as_a_whole(fhir: FHIRClient) -> None:
    transaction = fhir.transaction()
    condition = {
        "resourceType": "Condition",
        "subject": {"reference": f"Patient/{PATIENT}"},
        "code": {"text": "made up"},
    }
    reference = transaction.create(condition)
    transaction.create({**NEW, "focus": [{"reference": reference}]})
    transaction.read("Patient", PATIENT)
    made, observation, patient = transaction.send()
    assert [one.status_code for one in (made, observation, patient)] == [201, 201, 200]
    kept = observation.get()
    assert kept is not None
    assert fhir.resolve(kept["focus"][0])["code"] == {"text": "made up"}
    assert kept["focus"][0]["reference"] == made.reference
    assert (observation.reference, observation.version_id) == (
        f"Observation/{kept['id']}",
        "1",
    )


def test_failed_transaction_leaves_everything_as_it_was(fhir: FHIRClient) -> None:
    created = fhir.create(NEW)
    before = list(fhir.history("Observation"))
    transaction = fhir.transaction()
    transaction.create(NEW)
    transaction.delete("Observation", created["id"])
    transaction.update(created, if_match="7")
    with pytest.raises(FHIRStatusError):
        transaction.send()
    assert list(fhir.history("Observation")) == before
    assert fhir.read("Observation", created["id"]) == created


def test_batch_does_what_it_can(fhir: FHIRClient) -> None:
    created = fhir.create(NEW)
    batch = fhir.batch()
    batch.create(NEW)
    batch.read("Observation", "no-such-id")
    batch.update(created, if_match="7")
    batch.patch(
        "Observation",
        created["id"],
        [{"op": "replace", "path": "/status", "value": "amended"}],
    )
    batch.search("Observation", code="29463-7", _elements="status")
    batch.delete("Observation", created["id"])
    answers = batch.send()
    assert [one.status_code for one in answers] == [201, 404, 412, 200, 200, 204]
    assert type(answers[1].error) is FHIRNotFoundError
    assert type(answers[2].error) is FHIRPreconditionFailedError
    found = answers[4].get()
    assert found is not None
    assert found["type"] == "searchset"


def test_content_is_written_as_it_was_stored(fhir: FHIRClient) -> None:
    content = b"%PDF-1.7 made up" * 10_000
    binary = fhir.create(
        {
            "resourceType": "Binary",
            "contentType": "application/pdf",
            "securityContext": {"reference": f"Patient/{PATIENT}"},
            "data": base64.b64encode(content).decode(),
        }
    )
    file = io.BytesIO()
    attachment = {"contentType": "application/pdf", "url": f"Binary/{binary['id']}"}
    assert fhir.download(attachment, file) == "application/pdf"
    assert file.getvalue() == content
    assert fhir.read("Binary", binary["id"]) == binary
    with pytest.raises(FHIRNotFoundError):
        fhir.download("Binary/no-such-id", file)


@pytest.mark.compliance("SCOPE-03", "FHIR-04")
@pytest.mark.parametrize(
    "use",
    [
        lambda fhir, one: fhir.create(NEW),
        lambda fhir, one: fhir.update(one),
        lambda fhir, one: fhir.patch(
            "Observation", one["id"], [{"op": "remove", "path": "/status"}]
        ),
        lambda fhir, one: fhir.delete("Observation", one["id"]),
    ],
)
def test_change_needs_its_scope(connect: Callable[..., FHIRClient], use: Any) -> None:
    fhir = connect("launch/patient patient/*.rs")
    one = fhir.search("Observation", code="4548-4").first()
    assert one is not None
    with pytest.raises(FHIRForbiddenError):
        use(fhir, one)
    assert fhir.read("Observation", one["id"]) == one
