"""The EHR's look on a page of the site, in a real browser and under a strict policy."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import path
from playwright.sync_api import Browser, Page, expect

from django_smart.contrib import style
from django_smart.testing import EHRSimulator
from tests.factories import make_registration, register_at
from tests.known import CLIENT_ID, PATIENT
from tests.urls import urlpatterns as package

# The site first: its rows are made before the browser's event loop runs.
pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls(__name__),
]

_PAGE = """{% load smart %}<!doctype html><html lang="en"><title>Chart</title>
{% smart_style nonce=nonce %}
<style nonce="{{ nonce }}">
  main { color: var(--smart-color-text, rgb(1, 2, 3));
         background: var(--smart-color-background, rgb(4, 5, 6));
         font: var(--smart-dim-font-size, 17px) var(--smart-font-family-body, serif);
         border-radius: var(--smart-dim-border-radius, 1px); }
</style><main>Chart</main></html>"""


def show(request: HttpRequest) -> HttpResponse:
    """A page in the EHR's look; ``?nonce=no`` keeps the nonce to itself."""
    nonce = secrets.token_urlsafe(16)
    shown = "" if request.GET.get("nonce") == "no" else nonce
    response = HttpResponse(
        engines["django"].from_string(_PAGE).render({"nonce": shown}, request)
    )
    response["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'nonce-{nonce}'"
    )
    return response


urlpatterns = [*package, path("", show)]


@pytest.fixture
def site(
    live_server: Any,
    settings: Any,
    real_ehr: EHRSimulator,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The site, registered at the EHR; its origin."""
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost"]
    settings.SMART_SITE_URL = live_server.url
    # A page without the look, of a machine that was busy, would stay without it.
    monkeypatch.setattr(style, "_SECONDS", 30.0)
    registration = make_registration(
        server__base_url=real_ehr.base_url,
        redirect_uri=f"{live_server.url}/smart/callback/",
    )
    register_at(
        real_ehr,
        registration.redirect_uri,
        launch_url=f"{live_server.url}/smart/launch/",
    )
    return str(live_server.url)


def open_page(chromium: Browser, ehr: EHRSimulator, site: str, **values: Any) -> Page:
    """Launch, and wait for the page."""
    page = chromium.new_page()
    launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT, **values)
    page.goto(ehr.launch_url(CLIENT_ID, launch_id))
    page.get_by_role("button", name="Helena").click()
    page.get_by_role("button", name="Approve").click()
    page.wait_for_url(f"{site}/~*/")
    return page


def test_site_and_test_share_no_connection(live_server: Any) -> None:
    # One that several threads use at once brings the process down.
    assert not live_server.thread.connections_override


@pytest.mark.compliance("RESP-15", "RESP-16")
def test_page_has_the_look_of_the_ehr(
    site: str, real_ehr: EHRSimulator, chromium: Browser
) -> None:
    page = open_page(chromium, real_ehr, site)
    main = page.locator("main")
    expect(main).to_have_css("color", "rgb(42, 37, 32)")
    expect(main).to_have_css("background-color", "rgb(251, 250, 247)")
    expect(main).to_have_css("font-size", "16px")
    expect(main).to_have_css("font-family", "system-ui, sans-serif")
    expect(main).to_have_css("border-radius", "6px")
    page.reload()
    expect(main).to_have_css("color", "rgb(42, 37, 32)")
    (request,) = real_ehr.requests_to("smart-style")
    assert "Authorization" not in request.headers

    # The policy is in force: without its nonce nothing of it is applied.
    page.goto(f"{page.url}?nonce=no")
    expect(main).to_have_css("color", "rgb(0, 0, 0)")


@pytest.mark.compliance("RESP-15")
def test_page_keeps_its_own_look_where_the_ehr_has_none(
    site: str, real_ehr: EHRSimulator, chromium: Browser
) -> None:
    gone = f"{real_ehr.origin}/no-such-style.json"
    page = open_page(chromium, real_ehr, site, smart_style_url=gone)
    main = page.locator("main")
    expect(main).to_have_css("color", "rgb(1, 2, 3)")
    expect(main).to_have_css("background-color", "rgb(4, 5, 6)")
    expect(main).to_have_css("font-size", "17px")
