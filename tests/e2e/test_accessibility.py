"""
Every page of ours in Chromium: axe-core finds nothing, and a phone is wide enough.

In both colour schemes.  Django's own admin has faults of its own, which are named here
and left to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import BrowserContext, Page

import django_smart

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.e2e.page_urls"),
]

_TEMPLATES = Path(django_smart.__file__).parent / "templates"
_Scheme = Literal["light", "dark"]
# Parts of every admin page that Django (5.2 to 6.1) writes with faults of its own.
_OF_DJANGO = (
    ".breadcrumbs",  # links told from text by colour alone
    "#changelist-search",  # a label that is a title alone
    "#changelist-filter",  # links of 20 px
    ".select2-container",  # no name
    ".inline-group thead",  # headings without text
)

# Each page is looked at whole in light; in dark its colours alone are others.
_RULES: dict[_Scheme, str] = {
    "light": '{"rules": {"target-size": {"enabled": true}}}',
    "dark": '{"runOnly": ["color-contrast", "link-in-text-block"]}',
}
_RUN = """async ([exclude, rules]) => {
    // Colours that are on their way from one scheme to the other have no contrast yet.
    document.getAnimations().forEach(animation => animation.finish());
    const result = await axe.run(
        { exclude: exclude }, { resultTypes: ["violations"], ...JSON.parse(rules) },
    );
    return result.violations.flatMap(violation => violation.nodes.map(
        node => `${violation.id}: ${node.target} ${node.failureSummary}`));
}"""


def look_at(page: Page, path: str, *, exclude: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the page at *path*."""
    page.emulate_media(color_scheme="light")
    page.goto(path)
    return look(page, path, exclude=exclude)


def look(page: Page, name: str, *, exclude: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the page that is open."""
    faults = []
    for scheme, rules in _RULES.items():
        page.emulate_media(color_scheme=scheme)
        found = page.evaluate(_RUN, [[[each] for each in exclude], rules])
        faults += [f"{name} ({scheme}): {each}" for each in found]
    width = page.evaluate("document.documentElement.scrollWidth")
    if width > 375:
        faults.append(f"{name}: {width} px wide")
    return faults


def test_pages_for_people(context: BrowserContext, rendered: set[str]) -> None:
    page = context.new_page()
    # The form that sends itself stays, so that it can be looked at.
    page.route("**/authorize-post.js", lambda route: route.fulfill(body=""))
    faults = []
    for path in (
        "/smart/login/",
        "/smart/login/?q=clinic",
        "/smart/login/?q=nowhere",
        "/smart/login/?server=harbour",
        "/smart/connections/",
        "/smart/launch/",
        "/smart/callback/?state=unknown&code=x",
        "/pages/banner/",
        "/pages/denied/",
        "/pages/scopes/",
        "/pages/charts/",
        "/pages/new-window/",
        "/pages/authorize-post/",
    ):
        faults += look_at(page, path)
    page.goto("/smart/connections/")
    page.locator(".smart-connections button").click()
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
        faults += look_at(page, base, exclude=_OF_DJANGO)
        faults += look_at(page, f"{base}{row.pk}/change/", exclude=_OF_DJANGO)
    for name in ("fhirserver", "clientregistration", "signingkey"):
        faults += look_at(page, f"/admin/django_smart/{name}/add/", exclude=_OF_DJANGO)
    url = f"/admin/django_smart/clientregistration/{rows['clientregistration'].pk}/"
    page.goto(f"{url}change/")
    page.get_by_label("Scope for EHR launch").fill("patient/Patinet")
    page.locator(".smart-live").first.wait_for()
    faults += look(page, "a scope mistyped", exclude=_OF_DJANGO)
    page.goto(f"{url}change/")
    page.get_by_role("button", name="Test connection").click()
    page.locator(".smart-findings").first.wait_for()
    faults += look(page, "report", exclude=_OF_DJANGO)
    assert faults == []
    ours = {path.name for path in (_TEMPLATES / "django_smart/admin").glob("*.html")}
    assert {f"django_smart/admin/{name}" for name in ours} - rendered == set()
