"""``request.smart.fhir``: the launch's token, for the launch's server alone."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest

from django_smart.clients import build_fhir_client
from django_smart.exceptions import (
    FHIRUnauthorizedError,
    ForeignPatientError,
)
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.signals import fhir_request_finished
from django_smart.testing import EHRSimulator
from django_smart.testing.site import add_resource
from tests.answers import answer
from tests.ehr import EHR_SCOPE, PATIENT
from tests.site.browsers import SITE_MARKS, open_chart

pytestmark = SITE_MARKS

OTHER_PATIENT = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"


@pytest.mark.compliance("FHIR-01")
def test_fhir_client_sends_the_launch_s_token(ehr):
    chart = open_chart(ehr)
    ehr.clear_requests()
    assert chart.get("/fhir/").json() == {"id": PATIENT}
    (request,) = ehr.requests
    token = TokenGrant.objects.get().access_token
    assert request.headers["Authorization"] == f"Bearer {token}"
    assert token not in request.url
    assert request.patient == PATIENT


def test_fhir_clients_of_two_charts_use_their_own_tokens(ehr):
    one = open_chart(ehr)
    two = open_chart(ehr, one.browser, patient=OTHER_PATIENT)
    for chart, patient in ((one, PATIENT), (two, OTHER_PATIENT), (one, PATIENT)):
        assert chart.get("/fhir/").json() == {"id": patient}
        assert ehr.requests[-1].patient == patient


def test_exchanges_are_told_with_grant_and_launch(ehr):
    chart = open_chart(ehr)
    told: list[dict[str, Any]] = []

    def listen(**kwargs: Any) -> None:
        told.append(kwargs)

    fhir_request_finished.connect(listen)
    try:
        chart.get("/fhir/")
    finally:
        fhir_request_finished.disconnect(listen)
    (one,) = told
    assert (one["launch"], one["grant"]) == (chart.launch, chart.launch.grant)
    assert (one["exchange"].interaction, one["exchange"].status_code) == ("read", 200)


def test_token_that_is_refused_after_its_refresh_is_not_refreshed_for_each_request(
    ehr: EHRSimulator,
) -> None:
    ClientRegistration.objects.update(ehr_scope=f"{EHR_SCOPE} offline_access")
    open_chart(ehr)
    answer(ehr, f"/Patient/{PATIENT}", status=401)
    fhir = build_fhir_client(TokenGrant.objects.get())
    for _ in range(3):
        with pytest.raises(FHIRUnauthorizedError):
            fhir.read("Patient", PATIENT)
    assert len(ehr.requests_to("refresh")) == 1
    with pytest.raises(FHIRUnauthorizedError):
        fhir.download(f"{ehr.base_url}/Patient/{PATIENT}", BytesIO())
    assert len(ehr.requests_to("refresh")) == 1
    # A token that has worked may still be withdrawn.
    ehr.interceptors.clear()
    fhir = build_fhir_client(TokenGrant.objects.get())
    for number in range(2, 4):
        assert fhir.read("Patient", PATIENT)["id"] == PATIENT
        ehr.expire_access_tokens()
        fhir.read("Patient", PATIENT)
        assert len(ehr.requests_to("refresh")) == number


@pytest.mark.compliance("SCOPE-12")
@pytest.mark.parametrize(
    "scope",
    [
        "",
        "openid,fhirUser,patient/Patient.rs,patient/Observation.rs",
        "patient.Observation.read",
        "openid fhirUser launch",
    ],
)
def test_client_keeps_to_the_patient_however_the_scopes_are_named(ehr, scope):
    ehr.checks = frozenset()
    other = {"reference": f"Patient/{OTHER_PATIENT}"}
    add_resource(ehr, {"resourceType": "Observation", "id": "theirs", "subject": other})
    answer(ehr, "/auth/token", scope=scope)
    open_chart(ehr)
    grant = TokenGrant.objects.get()
    fhir = build_fhir_client(grant)
    found = fhir.search("Observation", limit=1000)
    assert {each["subject"]["reference"] for each in found} == {f"Patient/{PATIENT}"}
    with pytest.raises(ForeignPatientError):
        fhir.read("Observation", "theirs")
