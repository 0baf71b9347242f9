"""Every wrong answer of a FHIR API: an error, and the token goes nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from django_smart.clients import fhir_client_for
from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRConflictError,
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    FHIRStatusError,
    FHIRUnauthorizedError,
    FHIRUnavailableError,
    ForeignPatientError,
    MalformedFHIRResponseError,
    ReplacedPatientError,
    ResponseTooLargeError,
    SMARTError,
)
from django_smart.fhir.client import FHIRClient
from django_smart.models import TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import CLIENT_SECRET, PATIENT, connect, make_browser
from tests.factories import reload_grant
from tests.faults import named
from tests.transport.servers import Server

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("elsewhere", "quick_keys"),
]

SCOPE = "openid fhirUser launch/patient patient/*.crs offline_access"
_PLACES = ("other_origin", "other_port", "other_scheme", "user_info", "outside_base")


def _read(fhir: FHIRClient) -> None:
    assert fhir.read("Patient", PATIENT)["id"] == PATIENT


def _search(fhir: FHIRClient) -> None:
    found = list(fhir.search("Observation", patient=PATIENT, code="4548-4", _count=4))
    assert len(found) > 8


def _resolve(fhir: FHIRClient) -> None:
    """Follow the reference in a resource, as an app may."""
    found = fhir.search("Observation", patient=PATIENT, code="4548-4", limit=1).first()
    assert found is not None
    subject = found["subject"]["reference"]
    assert fhir.resolve(subject)["id"] == PATIENT


_NEW = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"text": "made up"},
    "subject": {"reference": f"Patient/{PATIENT}"},
}


def _create(fhir: FHIRClient) -> None:
    assert fhir.create(_NEW, prefer="minimal")["meta"] == {"versionId": "1"}


def _batch(fhir: FHIRClient) -> None:
    batch = fhir.batch()
    batch.read("Patient", PATIENT)
    [answer] = batch.send()
    assert answer.status_code == 200


_Use = Callable[[FHIRClient], None]
_ERRORS: dict[tuple[type[SMARTError], _Use], str] = {
    (BearerBoundaryError, _read): "fhir_redirect_302 fhir_redirect_307 "
    + " ".join(f"fhir_redirect_{place}" for place in _PLACES),
    # http of the same server is tolerated: https is requested.
    (BearerBoundaryError, _search): " ".join(
        f"fhir_next_{place}" for place in _PLACES if place != "other_scheme"
    ),
    # Another place names another patient, before anybody follows it.
    (ForeignPatientError, _resolve): " ".join(
        f"fhir_reference_{place}" for place in _PLACES
    ),
    (BearerBoundaryError, _create): " ".join(f"fhir_created_{p}" for p in _PLACES),
    (MalformedFHIRResponseError, _create): "fhir_created_nowhere",
    (MalformedFHIRResponseError, _batch): "fhir_answer_missing",
    (MalformedFHIRResponseError, _search): """
        fhir_bundle_type fhir_entry_object fhir_next_circle fhir_next_loop
    """,
    (MalformedFHIRResponseError, _read): """
        fhir_204 fhir_array fhir_deep_nesting fhir_empty fhir_html_200 fhir_missing_id
        fhir_missing_type fhir_nan fhir_not_json fhir_not_utf8 fhir_redirect_loop
        fhir_wrong_media_type fhir_wrong_type
    """,
    (ReplacedPatientError, _read): "fhir_wrong_id",
    (ResponseTooLargeError, _read): "fhir_bomb fhir_too_large",
    (FHIRUnauthorizedError, _read): "fhir_401_twice",
    (FHIRForbiddenError, _read): "fhir_403",
    (FHIRNotFoundError, _read): "fhir_404 fhir_410",
    (FHIRConflictError, _read): "fhir_409",
    (FHIRStatusError, _create): "fhir_422",
    (FHIRPreconditionFailedError, _read): "fhir_412",
    (FHIRUnavailableError, _read): "fhir_429 fhir_429_for_ever fhir_500 fhir_503",
}
REFUSED = {name: what for what, names in _ERRORS.items() for name in names.split()}


@pytest.fixture
def grant(ehr: EHRSimulator, registration: Any) -> TokenGrant:
    """A grant for all that a patient has."""
    registration.standalone_scope = SCOPE
    registration.save()
    return reload_grant(connect(make_browser(), ehr, patient=PATIENT).grant_id)


def test_every_fault_is_in_the_table():
    assert sorted(REFUSED) == named("refuse", "fhir")


@pytest.mark.compliance("FHIR-02", "FHIR-03", "FHIR-07")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_fault_is_an_error_and_the_token_goes_nowhere(
    name: str,
    ehr: EHRSimulator,
    elsewhere: Server,
    grant: TokenGrant,
    caplog: pytest.LogCaptureFixture,
) -> None:
    error, use = REFUSED[name]
    fhir = fhir_client_for(grant=grant)
    ehr.faults.add(name)
    ehr.clear_requests()
    with caplog.at_level(logging.DEBUG), pytest.raises(SMARTError) as caught:
        use(fhir)
    assert type(caught.value) is error
    assert elsewhere.requests == []
    assert {one.exchange for one in ehr.requests} <= {"fhir", "token"}
    assert all(one.url.startswith(f"{ehr.base_url}") for one in ehr.requests_to("fhir"))
    assert len(ehr.requests) < 10
    for secret in (
        CLIENT_SECRET,
        PATIENT,
        *ehr.store.access_tokens,
        *ehr.store.refresh_tokens,
    ):
        assert secret not in caplog.text
        assert secret not in str(caught.value)
    # Nothing that is stored is harmed.
    stored = reload_grant(grant.pk)
    assert stored.status == TokenGrant.Status.ACTIVE
    assert stored.refresh_token
    ehr.faults.clear()
    for correct in (_read, _search, _resolve, _create, _batch):
        correct(fhir)


@pytest.mark.compliance("FHIR-02", "FHIR-08")
@pytest.mark.parametrize("name", named("tolerate", "fhir"))
def test_fault_of_the_api_is_tolerated(
    name: str, ehr: EHRSimulator, elsewhere: Server, grant: TokenGrant
) -> None:
    fhir = fhir_client_for(grant=grant)
    for use in (_read, _search):
        ehr.faults = {name}
        ehr.clear_requests()
        use(fhir)
        assert {one.exchange for one in ehr.requests} == {"fhir"}
    # A Location beside a resource leads nobody there.
    assert elsewhere.requests == []


@pytest.mark.compliance("FHIR-02")
def test_page_outside_of_the_base_is_for_the_servers_that_have_it(
    ehr: EHRSimulator, grant: TokenGrant
) -> None:
    grant.registration.server.quirks = {"bearer_boundary": "origin"}
    fhir = fhir_client_for(grant=grant)
    ehr.faults = {"fhir_next_outside_base"}
    ehr.clear_requests()
    with pytest.raises(FHIRNotFoundError):
        _search(fhir)
    assert ehr.requests[-1].headers["Authorization"].startswith("Bearer ")
    for place in ("other_origin", "other_port", "user_info"):
        ehr.faults = {f"fhir_next_{place}"}
        with pytest.raises(BearerBoundaryError):
            _search(fhir)
