"""Other people's clients read and search with the same grant, across a refresh."""

from __future__ import annotations

from typing import Any

import pytest
from fhirclient.models.observation import Observation as ClientObservation
from fhirclient.models.patient import Patient as ClientPatient
from fhirpy.base.exceptions import (
    AuthorizationError,
    ForbiddenError,
    OperationOutcome,
    ResourceNotFound,
)

from django_smart.clients import build_fhir_client
from django_smart.exceptions import BearerBoundaryError
from django_smart.fhir import FHIRClient
from tests.ehr import PATIENT, launch, make_browser
from tests.fhir.servers import BASE, Grant, bundle, respond

CODE = "4548-4"


@pytest.fixture
def fhir(ehr, registration) -> FHIRClient:
    """A client with the grant of a launch, at the simulator."""
    registration.ehr_scope += " offline_access"
    registration.save()
    row = launch(make_browser(), ehr)
    assert row.grant is not None
    return build_fhir_client(row.grant)


def count_refreshes(ehr: Any) -> int:
    return sum(
        ("grant_type", "refresh_token") in request.form
        for request in ehr.requests_to("token")
    )


def expected_ids(fhir: FHIRClient) -> list[str]:
    return [
        resource["id"]
        for resource in fhir.search("Observation", patient=PATIENT, code=CODE)
    ]


def test_fhirpy_reads_and_searches_across_a_refresh(fhir, ehr):
    client = fhir.as_fhirpy()
    patient = client.resources("Patient").search(_id=PATIENT).get()
    assert patient.id == PATIENT
    ehr.expire_access_tokens()
    assert client.get("Patient", PATIENT)["name"] == patient.name
    found = client.resources("Observation").search(patient=PATIENT, code=CODE).limit(5)
    assert [resource.id for resource in found] == expected_ids(fhir)
    assert count_refreshes(ehr) == 1
    assert ehr.requests_to("elsewhere") == []


def test_fhirclient_reads_and_searches_across_a_refresh(fhir, ehr):
    client = fhir.as_fhirclient()
    assert client.ready
    assert client.patient.id == PATIENT
    ehr.expire_access_tokens()
    patient = ClientPatient.read(PATIENT, client.server)
    assert client.human_name(patient.name[0])
    search = ClientObservation.where({"patient": PATIENT, "code": CODE, "_count": "5"})
    found = list(search.perform_resources_iter(client.server))
    assert [resource.id for resource in found] == expected_ids(fhir)
    assert count_refreshes(ehr) == 1
    assert ehr.requests_to("elsewhere") == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, AuthorizationError),
        (403, ForbiddenError),
        (404, ResourceNotFound),
        (410, ResourceNotFound),
        (422, OperationOutcome),
        (500, OperationOutcome),
    ],
)
def test_fhirpy_raises_its_own_errors(status, error):
    grant = Grant()
    for body in ({"resourceType": "OperationOutcome", "issue": []}, b"<html>", {}):
        grant.server.on("Patient/1", respond(body, status))
        with pytest.raises(error):
            grant.client.as_fhirpy().get("Patient", "1")


def test_fhirpy_writes():
    grant = Grant()
    client = grant.client.as_fhirpy()
    grant.server.on("Patient", respond({"resourceType": "Patient", "id": "1"}, 201))
    patient = client.resource("Patient", active=True)
    patient.save()
    assert patient.id == "1"
    assert grant.server.requests[0].method == "POST"
    grant.server.on("Patient/1", respond(b"", 204))
    patient.delete()


@pytest.mark.compliance("FHIR-02")
def test_fhirpy_follows_pages_within_the_boundary_alone():
    grant = Grant(boundary="origin")
    patient = {"resourceType": "Patient", "id": "1"}
    client = grant.client.as_fhirpy()
    inside = "https://ehr.example.org/pages?p=2"
    grant.server.on("Patient", respond(bundle(patient, next_url=inside)))
    grant.server.on(inside, respond(bundle({**patient, "id": "2"})))
    assert [each.id for each in client.resources("Patient")] == ["1", "2"]
    outside = "https://other.example.org/pages?p=2"
    grant.server.on("Patient", respond(bundle(patient, next_url=outside)))
    with pytest.raises(ValueError, match="base url"):
        list(client.resources("Patient"))


@pytest.mark.compliance("FHIR-02")
def test_fhirclient_sends_the_token_nowhere_else():
    grant = Grant()
    outside = "https://other.example.org/pages?p=2"
    grant.server.on(outside, respond(bundle()))
    client = grant.client.as_fhirclient()
    client.server.request_json(outside)
    assert grant.server.bearers == [None]
    redirect = respond(b"", 302, location=outside)
    grant.server.on("Patient/1", redirect)
    with pytest.raises(BearerBoundaryError):
        client.server.request_json(f"{BASE}/Patient/1")
