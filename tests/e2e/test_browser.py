"""The main job in a real browser: chart, click, patient page; deny; expiry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from django_smart.testing import EHRSimulator
from tests.known import CLIENT_ID, CLIENT_SECRET, PATIENT
from tests.processes import ExampleSite
from tests.services import chromium_path

pytestmark = [pytest.mark.browser, pytest.mark.process]

SCOPE = "openid fhirUser offline_access patient/Patient.rs patient/Observation.rs"
FLAGS = ["--no-sandbox", "--disable-background-networking"]
NAME = "Marisol Jean Quillfeather"
CLINICIAN = "Dr. Helena Brandvold"


@pytest.fixture
def chromium() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(), args=FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture
def real_ehr() -> Iterator[EHRSimulator]:
    """The EHR at ``localhost``, on a port of its own."""
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    with ehr.serve():
        yield ehr


@pytest.fixture
def site(tmp_path: Path, real_ehr: EHRSimulator) -> Iterator[ExampleSite]:
    """The example at ``127.0.0.1``, registered at the EHR and running."""
    with run_example(tmp_path, real_ehr) as site:
        yield site


@contextmanager
def run_example(folder: Path, ehr: EHRSimulator) -> Iterator[ExampleSite]:
    """The example in *folder*, registered at *ehr* and running."""
    site = ExampleSite(folder)
    site.manage("migrate", "--verbosity", "0")
    registered = site.register(
        *("--base-url", ehr.base_url, "--name", "Harbour EHR"),
        *("--slug", "harbour"),
        *("--client-id", CLIENT_ID, "--client-secret", CLIENT_SECRET),
        *("--ehr-scope", f"launch {SCOPE}"),
        *("--standalone-scope", f"launch/patient {SCOPE}"),
    )
    ehr.register_client(
        CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=[registered["redirect_uri"]],
        launch_url=registered["launch_url"],
        name="A1c Trend",
    )
    with site.web():
        yield site


def click_app(page: Page, ehr: EHRSimulator, *, name: str = NAME) -> Page:
    """Sign in to the EHR, open a chart and click the app; returns the app's tab."""
    page.goto(ehr.origin)
    page.get_by_role("button", name=CLINICIAN).click()
    page.get_by_role("link", name=name).click()
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Open in new tab").click()
    return opened.value


def open_chart(page: Page, ehr: EHRSimulator) -> Page:
    """As :func:`click_app`, and approve."""
    app = click_app(page, ehr)
    app.get_by_role("button", name="Approve").click()
    app.wait_for_url("**/~*/patient/")
    return app


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
    expect(app.get_by_role("heading", name="Access was not given")).to_be_visible()
    expect(app.get_by_text("access_denied")).to_be_visible()
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

    expect(app.get_by_role("link", name="Connect your records").first).to_be_visible()
    status = app.request.get(f"{site.url}/status.json").json()
    assert (status["launched"], status["user"]) == (False, None)


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
    page.get_by_role("link", name="Connect your records").first.click()
    page.get_by_role("link", name="Harbour EHR").click()
    page.get_by_role("button", name="Marisol Quillfeather").click()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/~*/patient/")

    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375
