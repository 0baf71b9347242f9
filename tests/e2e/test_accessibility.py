"""
Every page of ours in Chromium: axe-core finds nothing, and a phone is wide enough.

In both colour schemes.  Django's own admin has faults of its own, which are named here
and left to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.test.signals import template_rendered
from django.utils import timezone
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import django_smart
from django_smart import transport
from django_smart.contrib.brands.importing import import_brand_file
from django_smart.models import Launch, TokenGrant
from django_smart.servers.signing_keys import create_signing_key
from django_smart.testing import EHRSimulator
from tests.answers import Away
from tests.bundles import bundle, endpoint, organization
from tests.ehr import BASE_URL, SITE, make_registration
from tests.services import chromium_path

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.e2e.page_urls"),
]

_AXE = Path(__file__).parents[1] / "vendor" / "axe-core-4.14.1" / "axe.min.js"
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


@pytest.fixture
def chromium() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path(),
            args=["--no-sandbox", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def rendered() -> Iterator[set[str]]:
    """The names of the templates that pages were made of."""
    names: set[str] = set()

    def note(template: Any, **_: Any) -> None:
        names.add(str(template.name))

    template_rendered.connect(note)
    yield names
    template_rendered.disconnect(note)


@pytest.fixture
def rows(
    ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> dict[str, Any]:
    """Two organisations, one connected and one that has ended it, and a launch."""
    # Playwright runs a loop of its own in this thread; the queries here are no views.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    user = User.objects.create_superuser("maria", first_name="Maria")
    registration = make_registration()
    other = make_registration(
        server__slug="saltmarsh",
        server__name="Saltmarsh Valley Regional Medical Center and Clinics",
        server__base_url="https://saltmarsh.example.org/r4",
    )
    now = timezone.now()
    values = {
        "user": user,
        "scope_asked": "patient/Patient.rs patient/Observation.rs offline_access",
        "scope_granted": "patient/Patient.rs patient/Observation.rs offline_access",
        "scope": "patient/Patient.rs patient/Observation.rs offline_access",
        "is_offline": True,
        "received_at": now,
        "expires_at": now + timedelta(hours=1),
        "refresh_due_at": now + timedelta(minutes=40),
    }
    grant = TokenGrant.objects.create(registration=registration, **values)
    TokenGrant.objects.create(
        registration=other,
        **{**values, "refresh_due_at": None},
        status=TokenGrant.Status.NEEDS_REAUTHORIZATION,
        last_error="invalid_grant",
        ended_at=now,
    )
    launch = Launch.objects.create(
        registration=registration,
        kind=Launch.Kind.EHR,
        status=Launch.Status.FAILED,
        error_code="access_denied",
        state_digest="x",
        browser_digest="y",
        aud=BASE_URL,
        redirect_uri=registration.redirect_uri,
        scope_asked=registration.ehr_scope,
        expires_at=now,
        user=user,
    )
    path = tmp_path / "brands.json"
    path.write_bytes(
        bundle(
            *(
                organization(f"{number}", f"Clinic {number}", endpoints=["Endpoint/1"])
                for number in range(25)
            ),
            endpoint("1", BASE_URL),
        )
    )
    import_brand_file(path)
    key = create_signing_key("RS384")
    return {
        "user": user,
        "fhirserver": registration.server,
        "clientregistration": registration,
        "tokengrant": grant,
        "launch": launch,
        "signingkey": key,
    }


@pytest.fixture
def context(
    chromium: Browser, live_server: Any, rows: dict[str, Any]
) -> Iterator[BrowserContext]:
    """A phone whose owner is signed in, and may do everything."""
    client = Client()
    client.force_login(rows["user"])
    context = chromium.new_context(
        viewport={"width": 375, "height": 740}, base_url=live_server.url
    )
    session = client.cookies["sessionid"].value
    context.add_cookies(
        [{"name": "sessionid", "value": session, "url": live_server.url}]
    )
    # Into every page before its own scripts, whatever its policy.
    context.add_init_script(path=str(_AXE))
    with transport.mounted(SITE, Away()):
        yield context
    context.close()


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
    page.get_by_role("button", name="Disconnect Harbour Hospital").click()
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
    page.get_by_role("heading", name="Test of the connection").wait_for()
    faults += look(page, "report", exclude=_OF_DJANGO)
    assert faults == []
    ours = {path.name for path in (_TEMPLATES / "django_smart/admin").glob("*.html")}
    assert {f"django_smart/admin/{name}" for name in ours} - rendered == set()
