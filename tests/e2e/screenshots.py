"""
Take the pictures of the documentation: ``make screenshots``.

Each page in light, in dark and on a phone.  Everything in them is the simulator's own
synthetic data.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, ViewportSize
from werkzeug.wrappers import Response

from django_smart.testing import EHRSimulator
from tests.bundles import bundle, endpoint, organization
from tests.chromium import open_chromium
from tests.e2e.clicks import (
    NAME,
    SCOPE,
    click_app,
    open_chart,
    run_example,
)
from tests.processes import ExampleSite

_IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
_WIDE = ViewportSize(width=1280, height=800)
_DESK = ViewportSize(width=1440, height=800)
_PHONE = ViewportSize(width=375, height=740)
_LANDING = ViewportSize(width=375, height=820)
_PASSWORD = "a password of no value"
_OTHER_CLINICIAN = "Dr. Tomás Achterberg"
_OTHERS = ("Saltmarsh Valley Clinics", "Birch County Medical Group")
# A username is shown without a name, and an EHR sends names only if they are requested.
_WITH_NAMES = """
from django.contrib.auth.models import User
from django_smart.models import ClientRegistration
User.objects.filter(username="maria").update(first_name="Maria", last_name="Lopez")
for each in ClientRegistration.objects.exclude(ehr_scope=""):
    each.ehr_scope += " profile"
    each.save()
"""
_WITH_ALL_SCOPES = """
from django_smart.models import ClientRegistration
for each in ClientRegistration.objects.filter(server__slug="harbour"):
    each.standalone_scope += " patient/*.rs"
    each.save()
"""
_READ = """
from django_smart.contrib.records import sync_record
from django_smart.contrib.records.due import build_sink
from django_smart.models import TokenGrant
grants = TokenGrant.objects.select_related("registration__server")
sync_record(grants.filter(kind="standalone").latest("pk"), build_sink())
"""
_PLACES = (
    ("Birch County Medical Group", "Dubuque", 1),
    ("Saltmarsh Valley Clinics", "Aurora", 0),
    ("Saltmarsh Children's Hospital", "Aurora", 0),
    ("Fennimore Family Practice", "Fargo", 1),
    ("Northern Lights Dialysis", "Erie", 1),
)


@dataclass
class _Scene:
    """The example and an EHR, and a browser to look at them with."""

    browser: Browser
    ehr: EHRSimulator
    site: ExampleSite

    def open(self, path: str = "") -> Page:
        """A page of somebody new."""
        page = self.browser.new_context(viewport=_WIDE).new_page()
        if path:
            page.goto(f"{self.site.url}{path}")
        return page


def main() -> None:
    """Run the example and an EHR, and visit their pages."""
    _IMAGES.mkdir(exist_ok=True)
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    with (
        tempfile.TemporaryDirectory() as folder,
        ehr.serve(),
        run_example(Path(folder), ehr) as site,
        open_chromium() as browser,
    ):
        scene = _Scene(browser, ehr, site)
        _register_others(site)
        _take_home(scene)
        _take_ehr_and_patient_page(scene)
        _take_error(scene)
        _take_chooser(scene)
        _take_picker_and_connections(scene)
        _take_decide(scene)
        _take_admin(scene)
        _take_reading(scene)


def _register_others(site: ExampleSite) -> None:
    """More organisations to choose from, and somebody who looks after them."""
    servers = [
        {
            "base_url": f"https://ehr-{number}.example.org/r4",
            "name": name,
            "client_id": "a1c-trend",
            "token_endpoint_auth_method": "none",
            "standalone_scope": f"launch/patient {SCOPE}",
        }
        for number, name in enumerate(_OTHERS)
    ]
    (site.folder / "servers.json").write_text(json.dumps(servers))
    site.register("--from", "servers.json")
    content = bundle(
        *(
            organization(
                f"{number}",
                name,
                endpoints=[f"Endpoint/{server}"],
                address=[{"city": city, "state": "IA"}],
            )
            for number, (name, city, server) in enumerate(_PLACES)
        ),
        *(
            endpoint(f"{number}", server["base_url"])
            for number, server in enumerate(servers)
        ),
    )
    (site.folder / "brands.json").write_bytes(content)
    site.manage("smart_import_brands", "brands.json", "--name", "national")
    site.environment["DJANGO_SUPERUSER_PASSWORD"] = _PASSWORD
    account = ("--username", "maria", "--email", "maria@example.org")
    site.manage("createsuperuser", "--no-input", *account)


def _take_home(scene: _Scene) -> None:
    _take(scene.open("/"), "home")


def _take_ehr_and_patient_page(scene: _Scene) -> None:
    page = scene.open()
    app = click_app(page, scene.ehr)
    _save(page, "ehr")
    _save(app, "ehr-approve")
    app.get_by_role("button", name="Approve").click()
    app.get_by_role("heading", name=NAME).wait_for()
    _take(app, "patient-page")
    # What is seen of it without scrolling, which one can read on the landing page.
    app.set_viewport_size(_LANDING)
    _save(app, "landing", full_page=False)


def _take_error(scene: _Scene) -> None:
    app = click_app(scene.open(), scene.ehr)
    app.get_by_role("button", name="Deny").click()
    app.get_by_text("access_denied").wait_for()
    _take(app, "error")


def _take_chooser(scene: _Scene) -> None:
    """Two charts, and an address that says neither."""
    page = scene.open()
    open_chart(page, scene.ehr)
    page.goto(scene.ehr.origin)
    names = page.get_by_role("link").filter(has_text="Born").all_inner_texts()
    other = next(name for name in names if NAME not in name)
    page.get_by_role("link", name=other).click()
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Open in new tab").click()
    opened.value.get_by_role("button", name="Approve").click()
    opened.value.wait_for_url("**/~*/patient/")
    page.goto(f"{scene.site.url}/patient/")
    page.get_by_role("heading", name="Open charts").wait_for()
    _take(page, "chooser")


def _take_picker_and_connections(scene: _Scene) -> None:
    page = scene.open("/smart/login/")
    _take(page, "picker")
    _connect(page)
    _take(page, "connections")


def _connect(page: Page) -> None:
    page.get_by_role("link", name="Harbour EHR").click()
    page.get_by_role("button", name="Marisol Quillfeather").click()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url("**/~*/patient/")
    page.get_by_role("link", name="Connections").click()
    page.get_by_role("heading", name="Connected records").wait_for()


def _take_reading(scene: _Scene) -> None:
    """The connections, while an EHR that does not share everything is busy."""
    scene.site.manage("shell", "-c", _WITH_ALL_SCOPES)
    page = scene.open("/smart/login/")
    _connect(page)

    def respond(handler: Any, request: Any) -> Any:
        for name, status in (("/Condition", 403), ("/Observation", 503)):
            if request.path.endswith(name):
                return Response("{}", status, {"Retry-After": "3600"})
        return handler(request)

    scene.ehr.interceptors.append(respond)
    scene.site.manage("shell", "-c", _READ)
    scene.ehr.interceptors.remove(respond)
    page.reload()
    page.get_by_text("so far").wait_for()
    _save(page, "connections-reading")


def _take_decide(scene: _Scene) -> None:
    """Somebody is signed in, and opens the app with an account that is not known."""
    scene.site.manage("shell", "-c", _WITH_NAMES)
    page = scene.open("/accounts/login/")
    page.get_by_label("Username").fill("maria")
    page.get_by_label("Password").fill(_PASSWORD)
    page.get_by_role("main").get_by_role("button").click()
    page.get_by_text("Signed in as").wait_for()
    app = click_app(page, scene.ehr, clinician=_OTHER_CLINICIAN)
    app.get_by_role("button", name="Approve").click()
    app.get_by_role("heading", name="Is this you?").wait_for()
    _take(app, "decide")


def _take_admin(scene: _Scene) -> None:
    page = scene.open("/admin/")
    page.set_viewport_size(_DESK)
    page.get_by_label("Username").fill("maria")
    page.get_by_label("Password").fill(_PASSWORD)
    page.get_by_role("button", name="Log in").click()
    base = f"{scene.site.url}/admin/django_smart"
    for model, link, name in (
        ("fhirserver", "Harbour EHR", "admin-server"),
        ("clientregistration", "Harbour EHR", "admin-registration"),
    ):
        page.goto(f"{base}/{model}/")
        page.locator("#result_list a").filter(has_text=link).first.click()
        _take(page, name)
    page.get_by_role("button", name="Test connection").last.click()
    page.get_by_role("heading", name="Connection test").wait_for()
    _take(page, "admin-test")
    page.goto(f"{base}/tokengrant/")
    _take(page, "admin-grants")
    page.goto(f"{base}/launch/")
    _take(page, "admin-launches")


def _take(page: Page, name: str) -> None:
    """Light, dark, and on a phone."""
    wide = page.viewport_size
    _save(page, name)
    page.emulate_media(color_scheme="dark")
    _save(page, f"{name}-dark")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(_PHONE)
    _save(page, f"{name}-375")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 375, f"{name} is {width} px wide"
    page.set_viewport_size(wide or _WIDE)


def _save(page: Page, name: str, *, full_page: bool = True) -> None:
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(600)  # the chart draws itself
    page.screenshot(path=_IMAGES / f"{name}.png", full_page=full_page)


if __name__ == "__main__":
    main()
