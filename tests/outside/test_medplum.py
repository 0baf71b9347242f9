"""The client's interactions at a FHIR server that nobody here wrote."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from datetime import date

import pytest

from django_smart import transport
from django_smart.exceptions import (
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    FHIRUnauthorizedError,
)
from django_smart.fhir import AnyOf, FHIRClient, Token
from tests.fhir.exporting import send
from tests.fhir.servers import Carrier
from tests.fhir.servers import Tokens as FixedTokens
from tests.outside.node import running

pytestmark = [pytest.mark.node, pytest.mark.process]

MRN = "https://example.org/mrn"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, str]]:
    """Medplum's FHIR router and memory: the base URL, and the token that it wants."""
    token = secrets.token_urlsafe(16)
    with running("medplum.mjs", token) as origin:
        yield f"{origin}/fhir", token
    transport.close()


class Tokens:
    """Of a grant whose first token has ended."""

    scopes = None

    def __init__(self, good: str) -> None:
        self.good = good
        self.token = "ended"  # good for nothing
        self.renewals = 0

    def get(self) -> str:
        return self.token

    def renew(self, token: str) -> str:
        self.renewals += 1
        self.token = self.good
        return self.token


@pytest.fixture
def tokens(server) -> Tokens:
    return Tokens(server[1])


@pytest.fixture
def fhir(server, tokens) -> FHIRClient:
    return FHIRClient(
        base_url=server[0],
        tokens=tokens,
        transport=Carrier(send),
    )


@pytest.fixture
def mrn() -> str:
    """One that no other test has."""
    return uuid.uuid4().hex


def make_patient(mrn: str, **members: object) -> dict[str, object]:
    return {
        "resourceType": "Patient",
        "identifier": [{"system": MRN, "value": mrn}],
        "name": [{"family": "Quillfeather", "given": ["Marisol"]}],
        "birthDate": "1980-05-04",
        **members,
    }


def make_observation(patient_id: str, number: int) -> dict[str, object]:
    return {
        "resourceType": "Observation",
        "status": "final" if number % 2 else "amended",
        "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4"}]},
        "subject": {"reference": f"Patient/{patient_id}"},
        "effectiveDateTime": f"202{number}-03-03T10:00:00Z",
        "valueQuantity": {"value": 7.1, "unit": "%"},
    }


def test_create_read_vread_and_a_renewal(fhir, tokens, mrn):
    created = fhir.create(make_patient(mrn))
    assert tokens.renewals == 1
    assert created["identifier"] == [{"system": MRN, "value": mrn}]
    assert fhir.read("Patient", created["id"]) == created
    version_id = created["meta"]["versionId"]
    assert fhir.vread("Patient", created["id"], version_id) == created


def test_token_that_cannot_be_renewed_is_refused(server):
    client = FHIRClient(
        base_url=server[0],
        tokens=FixedTokens(lambda: "ended"),
        transport=Carrier(send),
    )
    with pytest.raises(FHIRUnauthorizedError):
        client.read("Patient", "1")


def test_update_with_the_version_that_was_read(fhir, mrn):
    first = fhir.create(make_patient(mrn))
    second = fhir.update({**first, "active": True}, if_match=first)
    assert second["active"] is True
    assert second["meta"]["versionId"] != first["meta"]["versionId"]
    with pytest.raises(FHIRPreconditionFailedError):
        fhir.update({**first, "active": False}, if_match=first)
    assert fhir.read("Patient", first["id"])["active"] is True


def test_json_patch(fhir, mrn):
    created = fhir.create(make_patient(mrn))
    patch = [{"op": "replace", "path": "/birthDate", "value": "1981-01-01"}]
    assert fhir.patch("Patient", created["id"], patch)["birthDate"] == "1981-01-01"
    assert fhir.read("Patient", created["id"])["birthDate"] == "1981-01-01"


def test_delete(fhir, mrn):
    created = fhir.create(make_patient(mrn))
    fhir.delete("Patient", created["id"])
    # Not 410: Medplum's memory forgets what was deleted.
    with pytest.raises(FHIRNotFoundError):
        fhir.read("Patient", created["id"])


def test_history_of_an_instance(fhir, mrn):
    first = fhir.create(make_patient(mrn))
    second = fhir.update({**first, "active": True})
    versions = [entry["resource"] for entry in fhir.history("Patient", first["id"])]
    assert versions == [second, first]


def test_search(fhir, mrn):
    patient = fhir.create(make_patient(mrn))
    made = [fhir.create(make_observation(patient["id"], number)) for number in range(5)]
    [found] = fhir.search("Patient", identifier=Token(mrn, MRN))
    assert found == patient
    assert not fhir.search("Patient", identifier=Token(mrn, "urn:other"))

    def ids(**params: object) -> list[str]:
        result = fhir.search(
            "Observation", subject=f"Patient/{patient['id']}", **params
        )
        return [resource["id"] for resource in result]

    all_ids = [resource["id"] for resource in made]
    assert sorted(ids()) == sorted(all_ids)
    assert ids(date__ge=date(2023, 1, 1), _sort="date") == all_ids[3:]
    assert ids(date__ge=date(2021, 1, 1), date__lt=date(2023, 1, 1), _sort="-date") == [
        all_ids[2],
        all_ids[1],
    ]
    assert len(ids(status="final")) == 2
    assert len(ids(status=AnyOf("final", "amended"))) == 5
    assert ids(code=Token("other", "http://loinc.org")) == []
    result = fhir.search("Observation", subject=f"Patient/{patient['id']}", _count=2)
    assert result.total == 5
    assert result.first() is not None


def test_long_search_goes_by_post(fhir, mrn):
    patient = fhir.create(make_patient(mrn))
    others = AnyOf(*(Token(f"{number:040}", MRN) for number in range(60)), Token(mrn))
    [found] = fhir.search("Patient", identifier=others)
    assert found["id"] == patient["id"]


def test_batch(fhir, mrn):
    patient = fhir.create(make_patient(mrn))
    batch = fhir.batch()
    batch.read("Patient", patient["id"])
    batch.read("Patient", str(uuid.uuid4()))
    batch.create(make_observation(patient["id"], 1))
    first, second, third = batch.send()
    assert first.get() == patient
    with pytest.raises(FHIRNotFoundError):
        second.get()
    assert third.status_code == 201


def test_transaction(fhir, mrn):
    transaction = fhir.transaction()
    reference = transaction.create(make_patient(mrn))
    observation = make_observation("later", 1)
    transaction.create({**observation, "subject": {"reference": reference}})
    assert [answer.status_code for answer in transaction.send()] == [201, 201]
    [patient] = fhir.search("Patient", identifier=Token(mrn, MRN))
    [found] = fhir.search("Observation", subject=f"Patient/{patient['id']}")
    assert found["subject"]["reference"] == f"Patient/{patient['id']}"
