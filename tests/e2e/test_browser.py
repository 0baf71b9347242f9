"""The main job in a real browser: chart, click, patient page; deny; expiry."""

from __future__ import annotations

import time
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from django_smart.testing import EHRSimulator
from tests.e2e.clicks import NAME, click_app, open_as_another, open_chart
from tests.known import PATIENT
from tests.processes import ExampleSite

pytestmark = [pytest.mark.browser, pytest.mark.process]


def test_click_in_the_chart_leads_to_that_patients_page(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    app = open_chart(chromium.new_page(), real_ehr)

    expect(app.get_by_role("heading", name=NAME)).to_be_visible()
    expect(app.locator("[data-patient-id]")).to_have_attribute(
        "data-patient-id", PATIENT
    )
    expect(app.locator("canvas")).to_be_visible()
    assert app.get_by_role("row").count() > 10
    status = app.request.get(app.url.replace("/patient/", "/status.json")).json()
    assert status["launched"] is True
    assert status["patient"] == PATIENT
    assert status["fhir_user"].startswith("Practitioner/")
    assert status["fhir_server"] == real_ehr.base_url
    served = {request.patient for request in real_ehr.requests_to("fhir")}
    assert served == {PATIENT}


def test_denied_access_is_told_on_a_clear_page(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    app = click_app(chromium.new_page(), real_ehr)
    with app.expect_response(
        lambda response: "/smart/callback/" in response.url
    ) as got:
        app.get_by_role("button", name="Deny").click()

    assert got.value.status == 403
    expect(app.locator("h1")).to_be_visible()
    expect(app.locator("code", has_text="access_denied")).to_be_visible()
    app.wait_for_url("**/smart/callback/")  # neither code nor state in the address
    status = app.request.get(f"{site.url}/status.json").json()
    assert (status["launched"], status["user"]) == (False, None)


def test_form_of_an_error_page_can_be_sent(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    app = open_chart(chromium.new_page(), real_ehr)
    app.goto(f"{site.url}/smart/callback/?code=a&state=b")
    expect(app.get_by_text("state_unknown")).to_be_visible()
    app.get_by_role("button", name="Sign out").click()

    expect(app.locator('a[href="/smart/login/"]').first).to_be_visible()
    status = app.request.get(f"{site.url}/status.json").json()
    assert (status["launched"], status["user"]) == (False, None)


def test_double_click_on_the_answer_opens_the_chart(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    page = chromium.new_page()
    open_chart(page, real_ehr)
    app = open_as_another(page, real_ehr)
    button = app.get_by_role("button", name="No, I'm")
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    assert box is not None

    def delay(respond: Any, request: Any) -> Any:
        time.sleep(1)
        return respond(request)

    # The site asks the EHR for the new user's name before it answers.
    real_ehr.interceptors.append(delay)
    for _ in range(2):
        app.mouse.click(box["x"] + 5, box["y"] + 5)
        time.sleep(0.2)
    app.wait_for_url("**/~*/patient/")
    expect(app.get_by_role("heading", name=NAME)).to_be_visible()


def test_page_and_pass_through_outlive_the_access_token(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    app = open_chart(chromium.new_page(), real_ehr)
    fhir_url = app.url.replace("/patient/", f"/fhir/Patient/{PATIENT}")

    for visit in (app.reload, lambda: app.request.get(fhir_url)):
        real_ehr.expire_access_tokens()
        real_ehr.clear_requests()
        answer = visit()
        assert answer is not None
        assert answer.status == 200
        # All requests of the page share one refresh.
        (refresh,) = real_ehr.requests_to("token")
        assert ("grant_type", "refresh_token") in refresh.form
    expect(app.get_by_role("heading", name=NAME)).to_be_visible()
    assert app.request.get(fhir_url).json()["id"] == PATIENT
    assert real_ehr.reused_refresh_tokens == 0


def test_patient_connects_records_on_a_phone(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    page = chromium.new_page(viewport={"width": 375, "height": 740})
    page.goto(site.url)
    page.locator('a[href="/smart/login/"]').first.click()
    page.get_by_role("link", name="Harbour EHR").click()
    page.get_by_role("button", name="Marisol Quillfeather").click()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/~*/patient/")

    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375


def test_link_on_another_site_shows_a_button_first(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    page = chromium.new_page()
    page.goto(real_ehr.origin)
    login = f"{site.url}/smart/login/?server=harbour"
    page.evaluate("url => { location.href = url }", login)
    page.get_by_role("button", name="Continue to Harbour EHR").click()
    page.get_by_role("button", name="Marisol Quillfeather").click()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/~*/patient/")
    expect(page.get_by_text("You are now signed in")).to_be_visible()
