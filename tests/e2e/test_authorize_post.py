"""The authorization request by POST in a real browser, with and without script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from django_smart.testing import EHRSimulator
from tests.e2e.clicks import NAME, click_app, run_example
from tests.known import BY_POST, CLIENT_ID
from tests.processes import ExampleSite

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture
def post_site(tmp_path: Path, real_ehr: EHRSimulator) -> Iterator[ExampleSite]:
    """The example, which sends its authorization requests by POST."""
    with run_example(tmp_path, real_ehr) as site:
        site.register(
            *("--base-url", real_ehr.base_url, "--client-id", CLIENT_ID),
            *("--set", f"authorization_parameters={json.dumps(BY_POST)}"),
        )
        yield site


def log_of(page: Page) -> list[str]:
    """What the browser complains of, in every tab of this page's context."""
    lines: list[str] = []
    page.context.on("console", lambda message: lines.append(message.text))
    page.context.on("weberror", lambda error: lines.append(str(error.error)))
    return lines


@pytest.mark.compliance("AUTH-08", "AUTH-09")
def test_form_sends_itself(
    chromium: Browser, real_ehr: EHRSimulator, post_site: ExampleSite
) -> None:
    page = chromium.new_page()
    complaints = log_of(page)
    app = click_app(page, real_ehr)
    app.get_by_role("button", name="Approve").click()
    app.wait_for_url("**/~*/patient/")

    expect(app.get_by_role("heading", name=NAME)).to_be_visible()
    (request,) = real_ehr.requests_to("authorize")
    assert request.method == "POST"
    assert request.query == []
    assert dict(request.form)["code_challenge_method"] == "S256"
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert complaints == []


@pytest.mark.compliance("AUTH-08")
def test_browser_that_said_no_goes_back_to_this_site(
    chromium: Browser, real_ehr: EHRSimulator, post_site: ExampleSite
) -> None:
    # The whole way from the form to the callback is one chain of redirects, which
    # Chromium holds to the form's policy.
    app = chromium.new_page()
    complaints = log_of(app)
    launch_id = real_ehr.create_launch(CLIENT_ID, patient=None)
    url = real_ehr.launch_url(CLIENT_ID, launch_id)
    real_ehr.store.launches.clear()
    app.goto(url)
    app.wait_for_url("**/smart/callback/**")
    expect(app.get_by_text("authorization_refused")).to_be_visible()
    assert [line for line in complaints if "Content Security Policy" in line] == []


@pytest.mark.compliance("AUTH-08")
def test_button_sends_the_form_where_scripts_are_off(
    chromium: Browser, real_ehr: EHRSimulator, post_site: ExampleSite
) -> None:
    context = chromium.new_context(
        java_script_enabled=False, viewport={"width": 375, "height": 740}
    )
    page = context.new_page()
    page.goto(f"{post_site.url}/smart/login/?server=harbour")
    expect(page.locator("h1")).to_be_visible()
    box = page.locator("main").bounding_box()
    assert box is not None
    assert box["width"] <= 375
    page.locator("#smart-authorize button").click()
    page.get_by_role("button", name="Marisol Quillfeather").click()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/~*/patient/")

    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    (request,) = real_ehr.requests_to("authorize")
    assert request.method == "POST"
    context.close()
