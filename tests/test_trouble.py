"""Pages of a site that the EHR fails: what the person sees, and what the log has."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone

from django_smart.error_pages.words import OUTCOME_UNKNOWN
from django_smart.exceptions import (
    FHIRRequestError,
    FHIRUnavailableError,
    ReauthorizationRequiredError,
)
from django_smart.models import ClientRegistration, FHIRServer, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import CLIENT_SECRET, connect, launch, make_browser
from tests.factories import expire
from tests.site.urls import urlpatterns as of_the_site

User: Any = get_user_model()

pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

_SECRET = "Quillfeather"


def write_and_read(request: HttpRequest) -> HttpResponse:
    """Writes a row, and then reads from the EHR."""
    User.objects.create(username=_SECRET)
    smart: Any = request.smart  # type: ignore[attr-defined]
    return HttpResponse(smart.fhir.read("Patient", smart.patient_id)["id"])


def misuse(request: HttpRequest) -> HttpResponse:
    """Asks for something that FHIR does not have."""
    smart: Any = request.smart  # type: ignore[attr-defined]
    smart.fhir.read("patient", "../1")
    raise AssertionError


def use_a_grant_of_somebody(request: HttpRequest) -> HttpResponse:
    """Fails as a page without a launch may, by a grant of its own choice."""
    if "ended" in request.GET:
        raise ReauthorizationRequiredError("ended")
    raise FHIRUnavailableError("the search returned status 503", status_code=503)


urlpatterns = [
    *of_the_site,
    path("write-and-read/", write_and_read),
    path("misuse/", misuse),
    path("somebody/", use_a_grant_of_somebody),
]


@pytest.fixture
def ask(ehr: EHRSimulator, registration: ClientRegistration) -> Callable[..., Any]:
    """Asks for a page of an EHR launch, with faults that began after it."""
    browser = make_browser()
    opened = launch(browser, ehr)
    browser.raise_request_exception = False

    def get(url: str, *faults: str, method: str = "get") -> Any:
        ehr.faults = faults
        return getattr(browser, method)(f"/~{opened.key}{url}")

    return get


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        ("fhir_503", "fhir_unavailable", 502),
        ("fhir_html_200", "fhir_response_malformed", 502),
        ("fhir_redirect_other_origin", "bearer_boundary", 502),
        ("fhir_404", "fhir_not_found", 502),
        ("fhir_wrong_id", "patient_replaced", 502),
    ],
)
def test_page_says_what_happened(
    ask: Callable[..., Any], fault: str, code: str, status: int
) -> None:
    page = ask("/fhir/", fault)
    assert page.status_code == status
    assert f"<code>{code}</code>".encode() in page.content
    assert b"Harbour Hospital" in page.content
    assert page["Cache-Control"] == "private, no-store"
    assert ask("/fhir/").status_code == 200


def test_what_may_pass_can_be_tried_again(ask: Callable[..., Any]) -> None:
    page = ask("/fhir/?a=1", "fhir_503")
    assert b"Try again" in page.content
    assert b"/fhir/?a=1" in page.content
    # What a form sent is not sent again by a link.
    assert b"Try again" not in ask("/fhir/", "fhir_503", method="post").content


@pytest.mark.parametrize("fault", ["fhir_503", "fhir_html_200"])
def test_what_may_have_been_saved_is_not_said_to_be_worth_another_try(
    ask: Callable[..., Any], fault: str
) -> None:
    assert ask("/fhir/", fault).context["advice"] != OUTCOME_UNKNOWN
    assert ask("/fhir/", fault, method="post").context["advice"] == OUTCOME_UNKNOWN
    # What the EHR refused was not saved.
    refused = ask("/fhir/", "fhir_404", method="post")
    assert refused.context["advice"] != OUTCOME_UNKNOWN


def test_lost_grant_leads_to_connecting_again(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = make_browser()
    opened = connect(browser, ehr)
    assert opened.grant is not None
    ehr.revoke_grant(opened.grant.access_token)
    browser.raise_request_exception = False
    page = browser.get(f"/~{opened.key}/fhir/")
    assert page.status_code == 403
    assert b"<code>grant_lost</code>" in page.content
    assert b"/smart/login/?server=harbour" in page.content


def test_merged_patient_leads_to_connecting_again(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = make_browser()
    opened = connect(browser, ehr)
    # As after a redirect to the record that remained.
    ehr.faults = {"fhir_wrong_id"}
    browser.raise_request_exception = False
    page = browser.get(f"/~{opened.key}/fhir/")
    assert b"<code>patient_replaced</code>" in page.content
    assert b"/smart/login/?server=harbour" in page.content


def test_server_that_was_turned_off_is_named_and_offers_no_button(
    ehr: EHRSimulator, registration: ClientRegistration
) -> None:
    browser = make_browser()
    opened = connect(browser, ehr)
    TokenGrant.objects.update(expires_at=timezone.now(), refresh_due_at=None)
    FHIRServer.objects.update(is_active=False)
    sent = len(ehr.requests)
    browser.raise_request_exception = False
    page = browser.get(f"/~{opened.key}/fhir/")
    assert page.status_code == 403
    assert b"<code>registration_inactive</code>" in page.content
    assert b"turned off for Harbour Hospital" in page.content
    assert b"smart-button" not in page.content
    assert len(ehr.requests) == sent


def test_secret_that_is_missing_is_the_site_s_to_fix(
    ehr: EHRSimulator,
    registration: ClientRegistration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EHR_SECRET", CLIENT_SECRET)
    registration.client_secret, registration.client_secret_env = "", "EHR_SECRET"
    registration.save()
    browser = make_browser()
    opened = connect(browser, ehr)
    assert opened.grant is not None
    expire(opened.grant, ehr)
    monkeypatch.delenv("EHR_SECRET")
    page = browser.get(f"/~{opened.key}/fhir/")
    assert page.status_code == 503
    assert b"<code>credentials_unusable</code>" in page.content


def test_log_has_the_place_and_no_data(
    ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="django_smart"):
        ask("/write-and-read/", "fhir_503")
    (record,) = [each for each in caplog.records if "a page failed" in each.message]
    assert record.message.endswith("a page failed: fhir_unavailable")
    assert "write_and_read" in caplog.text
    assert _SECRET not in caplog.text


def test_transaction_of_the_view_is_rolled_back(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    assert ask("/write-and-read/", "fhir_503").status_code == 502
    assert not User.objects.filter(username=_SECRET).exists()
    assert ask("/write-and-read/").status_code == 200
    assert User.objects.filter(username=_SECRET).exists()


def test_faults_of_the_page_are_left_to_the_site(ask: Callable[..., Any]) -> None:
    page = ask("/misuse/")
    assert page.status_code == 500
    assert isinstance(page.exc_info[1], FHIRRequestError)


def test_page_without_a_launch_says_what_happened(
    registration: ClientRegistration,
) -> None:
    browser = make_browser()
    browser.raise_request_exception = False
    page = browser.get("/somebody/")
    assert page.status_code == 502
    assert b"<code>fhir_unavailable</code>" in page.content
    assert b"Try again" in page.content
    # Which connection ended is for the page to know.
    page = browser.get("/somebody/?ended")
    assert b"<code>grant_lost</code>" in page.content
    assert b"Try again" not in page.content
