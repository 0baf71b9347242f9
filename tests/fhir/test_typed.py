"""Models that are chosen by the server's version, and those of another one."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from django_smart.exceptions import (
    FHIRRequestError,
    MalformedFHIRResponseError,
)
from django_smart.fhir import AsyncFHIRClient
from tests.fhir.servers import Grant, bundle, respond

_numbers = itertools.count()
# Which differs: R5 has another type of element for the reason and the medication.
R4_REQUEST = {
    "resourceType": "MedicationRequest",
    "id": "m-1",
    "status": "active",
    "intent": "order",
    "medicationCodeableConcept": {"text": "c4nary"},
    "subject": {"reference": "Patient/1"},
}
R5_REQUEST = {
    **{name: R4_REQUEST[name] for name in R4_REQUEST if "Codeable" not in name},
    "medication": {"concept": {"text": "Metformin"}},
}


def connect(version: str | None, resource: dict[str, Any]) -> Grant:
    """A server of its own, as the statement is shared by all clients for one."""
    base_url = f"https://typed{next(_numbers)}.example.org/fhir"
    grant = Grant(base_url=base_url)
    if version is not None:
        statement = {"resourceType": "CapabilityStatement", "fhirVersion": version}
        grant.server.on(f"{base_url}/metadata", respond(statement))
    grant.server.on(f"{base_url}/MedicationRequest", respond(bundle(resource)))
    grant.server.on(f"{base_url}/MedicationRequest/m-1", respond(resource))
    return grant


@pytest.mark.parametrize(
    ("version", "package", "resource"),
    [
        ("4.0.1", "fhir.resources.R4B", R4_REQUEST),
        ("4.3.0", "fhir.resources.R4B", R4_REQUEST),
        ("5.0.0", "fhir.resources", R5_REQUEST),
        ("5.0.0-ballot", "fhir.resources", R5_REQUEST),
    ],
)
def test_model_is_that_of_the_servers_version(version, package, resource):
    grant = connect(version, resource)
    model = grant.client.get_model("MedicationRequest")
    assert model.__module__ == f"{package}.medicationrequest"
    assert isinstance(grant.client.read("MedicationRequest", "m-1", model=model), model)
    found = grant.client.search("MedicationRequest", model=model)
    assert [type(each) for each in found] == [model]
    grant.client.get_model("Patient")
    urls = [url.rpartition("/")[2] for url in grant.server.urls]
    assert urls == ["metadata", "m-1", "MedicationRequest"]


def test_async_client_awaits_it():
    afhir = AsyncFHIRClient(connect("4.0.1", R4_REQUEST).client)

    async def find() -> type[Any]:
        return await afhir.get_model("Patient")

    model = asyncio.run(find())
    assert model.__module__ == "fhir.resources.R4B.patient"


@pytest.mark.parametrize("version", ["1.0.2", "6.0.0", "", "odd"])
def test_version_without_models_is_named(version):
    grant = connect(version, R4_REQUEST)
    with pytest.raises(FHIRRequestError, match=version or "unknown"):
        grant.client.get_model("Patient")


def test_type_that_the_version_has_not_is_refused():
    with pytest.raises(FHIRRequestError, match="Media"):
        connect("5.0.0", R5_REQUEST).client.get_model("Media")


@pytest.mark.parametrize(
    ("server", "model", "resource"),
    [("4.0.1", "5.0.0", R4_REQUEST), ("5.0.0", "4.3.0", R5_REQUEST)],
)
def test_model_of_another_version_is_an_error_that_says_so(server, model, resource):
    wrong = connect(model, resource).client.get_model("MedicationRequest")
    grant = connect(server, resource)
    for read in (
        lambda: grant.client.read("MedicationRequest", "m-1", model=wrong),
        lambda: grant.client.search("MedicationRequest", model=wrong),
    ):
        with pytest.raises(FHIRRequestError) as caught:
            read()
        assert server in str(caught.value)
        assert model in str(caught.value)
        assert caught.value.code == "fhir_request_invalid"
        assert caught.value.__context__ is None
        assert "c4nary" not in str(caught.value)


def test_match_without_a_type_is_refused_by_the_model():
    grant = Grant()
    grant.server.on("Patient", respond(bundle({"id": "p1"})))
    with pytest.raises(MalformedFHIRResponseError, match="resource does not match int"):
        grant.client.search("Patient", model=int)


@pytest.mark.parametrize("version", ["4.0.1", None])
def test_resource_that_is_wrong_in_itself_is_no_matter_of_versions(version):
    odd = {**R4_REQUEST, "status": 7}
    model = connect("4.0.1", odd).client.get_model("MedicationRequest")
    with pytest.raises(MalformedFHIRResponseError) as caught:
        connect(version, odd).client.read("MedicationRequest", "m-1", model=model)
    assert caught.value.code == "fhir_response_malformed"
    assert caught.value.__context__ is None
