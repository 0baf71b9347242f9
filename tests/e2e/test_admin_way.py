"""From an empty database to the first launch in the admin, with a keyboard alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from django_smart.testing import EHRSimulator
from tests.e2e.axe import AXE, OF_DJANGO, look
from tests.e2e.clicks import NAME, open_chart
from tests.factories import register_at
from tests.known import CLIENT_ID, CLIENT_SECRET
from tests.processes import ExampleSite

pytestmark = [pytest.mark.browser, pytest.mark.process]

_PASSWORD = "a password of no value"
_SCOPE = "launch openid fhirUser patient/Patient.rs patient/Observation.rs"


def _tab_to(target: Locator) -> None:
    """Press Tab until the keys go to *target*."""
    for _ in range(80):
        if target.evaluate("each => each === document.activeElement"):
            return
        target.page.keyboard.press("Tab")
    pytest.fail(f"no Tab leads to {target}")


def _type(page: Page, label: str, text: str) -> str:
    _tab_to(page.get_by_label(label, exact=True))
    page.keyboard.type(text)
    return label


def _press(target: Locator) -> None:
    _tab_to(target)
    target.page.keyboard.press("Enter")


def _look_on_a_phone(page: Page, name: str) -> list[str]:
    """Nothing is wrong at 375 pixels either, and nothing lies beside the page."""
    wide = page.viewport_size
    assert wide is not None
    page.set_viewport_size({"width": 375, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    faults = look(page, f"{name} on a phone", exclude=OF_DJANGO)
    page.set_viewport_size(wide)
    return faults


@pytest.fixture
def empty_site(tmp_path: Path) -> ExampleSite:
    site = ExampleSite(tmp_path)
    site.environment["DJANGO_SUPERUSER_PASSWORD"] = _PASSWORD
    site.manage("migrate", "--verbosity", "0")
    account = ("--username", "maria", "--email", "maria@example.org")
    site.manage("createsuperuser", "--no-input", *account)
    return site


@pytest.mark.timeout(600)
def test_pasted_base_url_leads_to_the_first_launch(
    chromium: Browser, real_ehr: EHRSimulator, empty_site: ExampleSite
) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script(path=str(AXE))
    page = context.new_page()
    faults = []
    with empty_site.web():
        page.goto(f"{empty_site.url}/admin/login/")
        _type(page, "Username:", "maria")
        _type(page, "Password:", _PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url("**/admin/")

        page.goto(f"{empty_site.url}/admin/django_smart/fhirserver/add/")
        faults += look(page, "new server", exclude=OF_DJANGO)
        touched = [_type(page, "FHIR base URL:", real_ehr.base_url)]
        page.keyboard.press("Enter")
        page.get_by_text("launch-ehr").wait_for()
        page.set_viewport_size({"width": 1100, "height": 800})
        heading = page.locator("#content h2").first.bounding_box()
        buttons = page.locator(".object-tools").bounding_box()
        assert heading is not None
        assert buttons is not None
        assert heading["y"] + heading["height"] <= buttons["y"]
        page.set_viewport_size({"width": 1280, "height": 800})
        faults += look(page, "server", exclude=OF_DJANGO)

        _press(page.get_by_role("link", name="Register a client"))
        page.wait_for_url("**/add/?server=*")
        faults += look(page, "new registration", exclude=OF_DJANGO)
        faults += _look_on_a_phone(page, "new registration")
        urls = page.locator(".smart-copy-value").all_inner_texts()
        redirect_uri, launch_url, *_ = urls
        register_at(real_ehr, redirect_uri, launch_url=launch_url, name="A1c Trend")
        touched += [
            _type(page, "Client ID:", CLIENT_ID),
            _type(page, "Client secret:", CLIENT_SECRET),
            _type(page, "Scope for EHR launch:", _SCOPE),
        ]
        _press(page.get_by_role("button", name="Save", exact=True))
        assert len(touched) == 4
        page.get_by_role("heading", name="Next steps").wait_for()
        faults += look(page, "next steps", exclude=OF_DJANGO)
        faults += _look_on_a_phone(page, "next steps")
        assert page.locator(".smart-steps li.smart-done").count() == 0

        _press(page.get_by_role("button", name="Test connection").last)
        page.get_by_role("heading", name="Connection test").wait_for()
        faults += look(page, "report", exclude=OF_DJANGO)
        assert page.locator(".smart-finding.smart-error").all_inner_texts() == []

        app = open_chart(chromium.new_page(), real_ehr)
        expect(app.get_by_role("heading", name=NAME)).to_be_visible()
        _press(page.get_by_role("link", name="Back"))
        expect(page.locator(".smart-steps li.smart-done")).to_have_count(3)
        faults += look(page, "steps that are done", exclude=OF_DJANGO)

        page.goto(f"{empty_site.url}/admin/django_smart/launch/")
        _press(page.locator("#result_list tbody th a").first)
        _press(page.get_by_role("button", name="End this launch"))
        page.get_by_text("1 launch was ended").wait_for()
        faults += look(page, "launch", exclude=OF_DJANGO)
    assert faults == []
