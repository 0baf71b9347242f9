"""Spans: what they show of launches, refreshes and FHIR, and what never."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from django_smart.backends import SMARTAuthenticationBackend
from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.exceptions import FHIRNotFoundError, SMARTError
from django_smart.grants.refresh import get_access_token
from django_smart.models import ClientRegistration, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import (
    PATIENT,
    get_callback,
    launch,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.factories import expire, make_grants, make_service
from tests.grants.working import refresh_due
from tests.spans import recording_spans

pytestmark = pytest.mark.django_db

SERVER = {"django_smart.server": "harbour"}


def read(spans: list[ReadableSpan]) -> list[tuple[str, dict[str, Any]]]:
    """Names and attributes; whatever else a span may have is checked to be empty."""
    for span in spans:
        is_error = span.status.status_code == trace.StatusCode.ERROR
        assert is_error == ("error.type" in (span.attributes or {}))
        assert span.status.description is None
        assert not span.events
        assert not span.links
    return [(span.name, dict(span.attributes or {})) for span in spans]


def test_launch_callback_and_token_request(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    ehr.faults.add("token_scope_absent")
    with recording_spans() as spans:
        launch(make_browser(), ehr)
    assert read(spans) == [
        ("smart launch", SERVER),
        ("smart token request", SERVER | {"http.response.status_code": 200}),
        ("smart callback", SERVER | {"django_smart.deviations": ("scope_absent",)}),
    ]
    _, token_request, callback = spans
    assert token_request.parent == callback.context


def test_failure_has_its_code(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = make_browser()
    ehr.faults.add("token_500")
    callback_url = ehr.authorize(start_login(browser))
    with recording_spans() as spans:
        get_callback(browser, callback_url)
        browser.get("/smart/launch/", {"iss": "https://other.example", "launch": "1"})
    assert read(spans) == [
        ("smart token request", SERVER | {"http.response.status_code": 500}),
        ("smart callback", SERVER | {"error.type": "token_server_error"}),
        ("smart launch", {"error.type": "unknown_server"}),
    ]


def test_question_before_a_launch_goes_on(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = make_browser()
    launch(browser, ehr)
    other = [name for name in ehr.users if name.startswith("Practitioner/")][1]
    callback_url = ehr.authorize(start_ehr_launch(browser, ehr, user=other))
    page = get_callback(browser, callback_url)["Location"]
    with recording_spans() as spans:
        browser.get(page)
        browser.post(page, {"choice": "no"})
    assert read(spans) == [("smart decision", SERVER)] * 2


def test_refresh_on_demand_and_by_a_worker(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    first, _second = TokenGrant.objects.filter(pk__in=make_grants(ehr, registration, 2))
    with recording_spans() as spans:
        refresh_due()
        get_access_token(expire(first, ehr))
        ehr.faults.add("refresh_invalid_grant")
        with pytest.raises(SMARTError):
            get_access_token(expire(first, ehr))
    lost = SERVER | {"error.type": "grant_lost"}
    assert read(spans) == [("smart refresh", SERVER)] * 3 + [("smart refresh", lost)]


def test_token_of_a_backend_service(ehr: EHRSimulator) -> None:
    fhir = backend_client_for(make_service(ehr))
    with recording_spans() as spans:
        fhir.read("Patient", PATIENT)
    assert [name for name, _ in read(spans)] == ["smart refresh", "fhir read"]


def test_interactions(ehr: EHRSimulator, registration: ClientRegistration) -> None:
    opened = launch(make_browser(), ehr)
    assert opened.grant is not None
    fhir = fhir_client_for(grant=opened.grant)
    with recording_spans() as spans:
        fhir.read("Patient", PATIENT)
        fhir.search("Observation", code="4548-4", patient=PATIENT)
        fhir.session.get(f"{ehr.base_url}/Patient/{PATIENT}?_id={PATIENT}")
        ehr.faults.add("fhir_404")
        with pytest.raises(FHIRNotFoundError):
            fhir.read("Patient", PATIENT)
        ehr.faults.clear()
        ehr.faults.add("fhir_bomb")
        with pytest.raises(SMARTError):
            fhir.read("Patient", PATIENT)
    status = "http.response.status_code"
    shown: list[tuple[str, str, dict[str, Any]]] = [
        ("read", "Patient", {status: 200}),
        ("search", "Observation", {status: 200}),
        ("get", "Patient", {status: 200}),
        ("read", "Patient", {status: 404, "error.type": "404"}),
        ("read", "Patient", {"error.type": "response_too_large"}),
    ]
    assert read(spans) == [
        (
            f"fhir {interaction}",
            SERVER
            | {"fhir.interaction": interaction, "fhir.resource_type": resource_type}
            | others,
        )
        for interaction, resource_type, others in shown
    ]
    for span in spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0 < span.end_time - span.start_time < 10e9


class FailingBackend(SMARTAuthenticationBackend):
    def create_user(self, claims: Any) -> Any:
        raise ValueError(f"The site cannot create {claims}.")


def test_message_of_an_error_of_the_site_is_not_recorded(
    ehr: EHRSimulator, registration: ClientRegistration, settings: Any
) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.FailingBackend"]
    browser = make_browser()
    callback_url = ehr.authorize(start_ehr_launch(browser, ehr))
    with recording_spans() as spans, pytest.raises(ValueError, match="cannot create"):
        get_callback(browser, callback_url)
    name, attributes = read(spans)[-1]
    assert name == "smart callback"
    assert attributes["error.type"] == "internal_error"


def test_pages_that_are_no_launch_are_not_traced(
    registration: ClientRegistration,
) -> None:
    with recording_spans() as spans:
        make_browser().get("/smart/connections/")
    assert spans == []


WITHOUT = """
import sys

if sys.argv[1] == "without":
    sys.modules["opentelemetry"] = None
from django_smart.tracing import span

with span("smart launch", server="harbour") as traced:
    traced["error"] = "unknown_server"
print(*[name for name in sys.modules if name.startswith("opentelemetry.")])
"""


def test_nothing_is_imported_without_the_package() -> None:
    def run(how: str) -> str:
        command = [sys.executable, "-c", WITHOUT, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout

    assert run("without").split() == []
    # Only the API, whichever exporters are installed.
    modules = run("with").split()
    assert "opentelemetry.trace" in modules
    assert not [name for name in modules if name.startswith("opentelemetry.sdk")]
