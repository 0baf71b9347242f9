"""
Every page of ours in Chromium: axe-core finds nothing, and a phone is wide enough.

In both colour schemes.  Django's own admin has faults of its own, which are named here
and left to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext

import django_smart
from tests.e2e.axe import OF_DJANGO, look, look_at
from tests.e2e.page_urls import PAGES

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.e2e.page_urls"),
]

_TEMPLATES = Path(django_smart.__file__).parent / "templates"


def test_pages_for_people(
    context: BrowserContext, rendered: set[str], settings: Any
) -> None:
    settings.SMART_STAFF_SIGN_IN_SERVERS = ["harbour"]
    page = context.new_page()
    # The form that sends itself stays, so that it can be looked at.
    page.route("**/authorize-post.js", lambda route: route.fulfill(body=""))
    faults = []
    for path in PAGES:
        faults += look_at(page, path)
    page.goto("/smart/connections/")
    page.get_by_role("button", name="Disconnect").first.click()
    page.get_by_role("status").wait_for()
    faults += look(page, "disconnected")
    context.clear_cookies()
    faults += look_at(page, "/smart/connections/")
    assert faults == []
    ours = {path.name for path in (_TEMPLATES / "django_smart").glob("*.html")}
    assert {f"django_smart/{name}" for name in ours} - rendered == set()


def test_pages_of_the_admin(
    context: BrowserContext, rows: dict[str, Any], rendered: set[str]
) -> None:
    page = context.new_page()
    faults = []
    for name, row in rows.items():
        if name == "user":
            continue
        base = f"/admin/django_smart/{name}/"
        faults += look_at(page, base, exclude=OF_DJANGO)
        faults += look_at(page, f"{base}{row.pk}/change/", exclude=OF_DJANGO)
    for name in ("fhirserver", "clientregistration", "signingkey"):
        faults += look_at(page, f"/admin/django_smart/{name}/add/", exclude=OF_DJANGO)
    url = f"/admin/django_smart/clientregistration/{rows['clientregistration'].pk}/"
    page.goto(f"{url}change/")
    page.get_by_label("Scope for EHR launch").fill("patient/Patinet.rs")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator(".errorlist").first.wait_for()
    faults += look(page, "a scope mistyped", exclude=OF_DJANGO)
    page.goto(f"{url}change/")
    page.get_by_role("button", name="Test connection").last.click()
    page.locator(".smart-findings").first.wait_for()
    faults += look(page, "report", exclude=OF_DJANGO)
    assert faults == []
    ours = {path.name for path in (_TEMPLATES / "django_smart/admin").glob("*.html")}
    assert {f"django_smart/admin/{name}" for name in ours} - rendered == set()


_CUT = """() => {
    const area = document.querySelector("#changelist .results");
    const row = document.querySelector("#result_list tbody tr");
    const names = [...row.querySelectorAll("th")].filter(cell => {
        const box = cell.getBoundingClientRect();
        return box.right <= window.innerWidth;
    });
    return [area.scrollWidth - area.clientWidth, names.length];
}"""


def test_no_column_of_a_list_is_cut_on_a_desk_and_rows_are_told_apart_on_a_phone(
    context: BrowserContext, rows: dict[str, Any]
) -> None:
    page = context.new_page()
    cut = {}
    for name in rows:
        if name == "user":
            continue
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(f"/admin/django_smart/{name}/")
        missing, _ = page.evaluate(_CUT)
        page.set_viewport_size({"width": 375, "height": 740})
        _, names = page.evaluate(_CUT)
        if missing > 0 or not names:
            cut[name] = (missing, names)
    assert cut == {}
