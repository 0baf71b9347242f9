"""A page's script reads FHIR with a client nobody here wrote, and without a token."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Response, expect

from django_smart.testing import EHRSimulator
from tests.docs.blocks import read_blocks
from tests.e2e.clicks import NAME, click_app
from tests.known import PATIENT
from tests.processes import ExampleSite

pytestmark = [pytest.mark.browser, pytest.mark.process]


class NetworkLog:
    """Everything the browser sent to the site and got from it, as it would log it."""

    def __init__(self, page: Page) -> None:
        session = page.context.new_cdp_session(page)
        self.events: list[dict[str, Any]] = []
        self.responses: list[Response] = []
        page.on("response", self._keep_response)
        for name in (
            *("requestWillBeSent", "requestWillBeSentExtraInfo"),
            *("responseReceived", "responseReceivedExtraInfo"),
        ):
            session.on(f"Network.{name}", self._keep)
        session.send("Network.enable")

    def _keep_response(self, response: Response) -> None:
        self.responses.append(response)

    def _keep(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def read_bodies(self) -> list[str]:
        """What was answered, apart from files of the site."""
        return [
            response.body().decode("utf-8", "replace")
            for response in self.responses
            if "/static/" not in response.url
        ]


def test_script_shows_the_patient_and_the_browser_never_has_a_token(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    app = click_app(chromium.new_page(), real_ehr)
    log = NetworkLog(app)
    app.get_by_role("button", name="Approve").click()
    app.wait_for_url("**/~*/patient/")
    card = app.locator("#vitals")
    expect(card.get_by_text(f"Latest of {NAME}")).to_be_visible()
    # Once more, across a refresh; the browser forgets the bodies of the page before.
    log.responses.clear()
    real_ehr.expire_access_tokens()
    app.reload()

    expect(card.get_by_text(f"Latest of {NAME}")).to_be_visible()
    expect(card.get_by_text("Blood pressure")).to_be_visible()
    # Forty measurements on pages of twenty-five: the links of a Bundle lead here again.
    fhir = [event["request"]["url"] for event in log.events if "request" in event]
    fhir = [url for url in fhir if "/fhir/" in url]
    assert any(url.endswith(f"/fhir/Patient/{PATIENT}") for url in fhir)
    assert any("/fhir/_page?url=" in url for url in fhir)
    key = app.url.split("/")[3]
    assert all(url.startswith(f"{site.url}/{key}/fhir/") for url in fhir)

    run_script_of_the_docs(app)

    bodies = log.read_bodies()
    assert len(bodies) >= 4
    seen = json.dumps(log.events) + "".join(bodies) + app.content()
    seen += json.dumps(app.context.storage_state())
    for store in ("localStorage", "sessionStorage"):
        seen += app.evaluate(f"JSON.stringify({store})")
    assert NAME.split()[-1] in seen
    tokens = get_tokens(real_ehr)
    assert len(tokens) >= 4
    assert [token for token in tokens if token in seen] == []
    assert "Bearer " not in seen


def run_script_of_the_docs(app: Page) -> None:
    """It reads the patient and all the vital signs, as the page's own script does."""
    _, _, script, _ = read_blocks("how-to/fhir-in-the-browser.rst")
    app.evaluate("document.getElementById('vitals').id = 'chart'")
    read = "return [resource.id, found.length, found[0].resourceType];"
    found = app.evaluate(f"async () => {{ {script.code} {read} }}")
    assert found == [PATIENT, 40, "Observation"]


def get_tokens(ehr: EHRSimulator) -> list[str]:
    """Every access token and refresh token that the EHR has given out."""
    bearers = {
        request.headers["Authorization"].removeprefix("Bearer ")
        for request in ehr.requests_to("fhir")
        if "Authorization" in request.headers
    }
    refreshed = {
        value
        for request in ehr.requests_to("token")
        for name, value in request.form
        if name == "refresh_token"
    }
    return [*bearers, *refreshed, *ehr.store.refresh_tokens]
