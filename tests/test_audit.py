"""The audit trail, and what is done about scopes that are missing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from django_smart.clients import (
    backend_client_for,
    build_fhir_client,
    fhir_client_for,
)
from django_smart.exceptions import (
    FHIRForbiddenError,
    FHIRNotFoundError,
    InsufficientScopeError,
    TokenResponseError,
)
from django_smart.models import Launch
from django_smart.signals import fhir_request_finished
from django_smart.testing import EHRSimulator
from tests.ehr import PATIENT, launch, listening, make_browser
from tests.factories import SERVICE_ID, make_service

pytestmark = pytest.mark.django_db


@pytest.fixture
def opened(ehr: EHRSimulator, registration: Any) -> Launch:
    return launch(make_browser(), ehr)


@pytest.fixture
def trail(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "django_smart.audit")
    return caplog


def lines(trail: pytest.LogCaptureFixture) -> list[Any]:
    return [one for one in trail.records if one.name == "django_smart.audit"]


@pytest.mark.compliance("SEC-11")
def test_request_has_a_line_that_tells_who_and_what(opened, trail):
    assert opened.grant is not None
    fhir = build_fhir_client(opened.grant, launch=opened)
    fhir.read("Patient", PATIENT)
    list(fhir.search("Observation", patient=PATIENT, code="4548-4"))
    first, second = lines(trail)
    assert (first.interaction, first.resource_type, first.status_code) == (
        "read",
        "Patient",
        200,
    )
    assert (second.interaction, second.resource_type) == ("search", "Observation")
    assert first.user_id == opened.grant.user_id is not None
    assert (first.launch_id, first.grant_id) == (opened.pk, opened.grant.pk)
    assert (first.patient_id, first.server) == (PATIENT, "harbour")
    assert first.fhir_user == opened.fhir_user != ""
    assert 0 < first.duration < 60
    assert len(first.request_id) == 36
    assert first.getMessage().startswith("read Patient: 200 in ")
    for text in (f"user {first.user_id}", f"launch {opened.pk}", first.request_id):
        assert text in first.getMessage()


def test_line_holds_no_query_body_or_id_of_a_resource(opened, trail):
    assert opened.grant is not None
    fhir = build_fhir_client(opened.grant, launch=opened)
    with pytest.raises(FHIRNotFoundError):
        fhir.read("Observation", "secret-id")
    list(fhir.search("Observation", patient=PATIENT, code="4548-4"))
    for one in lines(trail):
        # The id may by chance be of any digits.
        text = f"{vars(one)}".replace(one.request_id, "")
        assert "secret-id" not in text
        assert "4548-4" not in text
        # Whose record it is stands apart from the message, for those who want it.
        assert PATIENT not in one.getMessage()
        assert opened.grant.access_token not in text


def test_refusal_has_a_line_too(opened, ehr, trail):
    assert opened.grant is not None
    ehr.faults = {"fhir_403"}
    with pytest.raises(FHIRForbiddenError):
        fhir_client_for(grant=opened.grant).read("Patient", PATIENT)
    [line] = lines(trail)
    assert (line.status_code, line.launch_id) == (403, None)


def test_request_of_nobody_and_without_an_answer_has_a_line(ehr, trail):
    fhir = backend_client_for(make_service(ehr))
    ehr.register_client(SERVICE_ID, auth_method="private_key_jwt", jwks={"keys": []})
    with pytest.raises(TokenResponseError):
        list(fhir.search("Patient", family="Byron"))
    [line] = lines(trail)
    assert line.getMessage().startswith("search Patient: no response in ")
    assert "(user None, grant None, launch None, " in line.getMessage()
    assert (line.patient_id, line.server) == ("", "")


def test_trail_that_is_off_costs_nothing(opened, caplog):
    assert opened.grant is not None
    caplog.set_level(logging.WARNING, "django_smart.audit")
    with listening(fhir_request_finished) as told:
        fhir_client_for(grant=opened.grant).read("Patient", PATIENT)
    assert lines(caplog) == []
    # The signal does not depend on it.
    [signal] = told
    assert signal["exchange"].interaction == "read"
    assert signal["exchange"].request_id


# Scopes


@pytest.mark.parametrize("mode", ["raise", "warn", "off"])
def test_missing_scope_is_told_before_the_request(mode, opened, ehr, settings, caplog):
    assert opened.grant is not None
    settings.SMART_SCOPE_CHECK = mode
    ehr.clear_requests()
    fhir = fhir_client_for(grant=opened.grant)
    if mode == "raise":
        with pytest.raises(InsufficientScopeError) as caught:
            fhir.search("Condition").first()
        assert caught.value.missing == "patient/Condition.s"
        assert "patient/Condition.s" in str(caught.value)
        assert ehr.requests == []
        return
    with pytest.raises(FHIRForbiddenError):
        fhir.search("Condition").first()
    named = [
        one.getMessage() for one in caplog.records if one.name == "django_smart.clients"
    ]
    assert ["patient/Condition.s" in one for one in named] == [True] * (mode == "warn")


def test_granted_scope_needs_no_word(opened, settings):
    assert opened.grant is not None
    settings.SMART_SCOPE_CHECK = "raise"
    fhir = fhir_client_for(grant=opened.grant)
    assert fhir.read("Patient", PATIENT)["id"] == PATIENT
    assert fhir.search("Observation", patient=PATIENT).first()
