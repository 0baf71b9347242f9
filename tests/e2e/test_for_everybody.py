"""Without a mouse, by what a screen reader is told, and in words that are longer."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Route, expect

from django_smart.models import TokenGrant
from django_smart.testing import EHRSimulator
from tests.e2e.clicks import click_app, open_as_another, open_chart
from tests.e2e.page_urls import PAGES
from tests.processes import ExampleSite

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.e2e.page_urls"),
]

_HEARD = """
- main:
  - heading "Connected records" [level=1]
  - paragraph: /This site can access these records/
  - list:
    - listitem:
      - heading "Harbour Hospital" [level=2]
      - paragraph: /Connected since/
      - paragraph: "This site can:"
      - list:
        - listitem: /See. name, date of birth and other details. test results/
        - listitem: Keep this access when you are not signed in
      - button "Disconnect"
    - listitem:
      - heading "Saltmarsh Valley Regional Medical Center and Clinics" [level=2]
      - paragraph: /ended this connection on/
      - paragraph:
        - link "Connect Saltmarsh Valley Regional Medical Center and Clinics again"
  - paragraph:
    - link "Connect another organization"
"""


def test_connections_are_heard_and_ended_by_keyboard(context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/smart/connections/")
    expect(page.get_by_role("main")).to_match_aria_snapshot(_HEARD)
    button = page.get_by_role("button", name="Disconnect").first
    for _ in range(10):
        page.keyboard.press("Tab")
        # Whoever tabs sees where they are.
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        if button.evaluate("each => each === document.activeElement"):
            break
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    said = page.get_by_role("status").filter(has_text="Harbour Hospital")
    said.wait_for()
    assert page.get_by_role("button", name="Disconnect").count() == 1
    assert not TokenGrant.objects.filter(status=TokenGrant.Status.ACTIVE).exists()


def test_person_says_who_goes_on_by_keyboard_and_without_script(
    chromium: Browser, real_ehr: EHRSimulator, site: ExampleSite
) -> None:
    context = chromium.new_context(
        viewport={"width": 375, "height": 740}, java_script_enabled=False
    )
    page = context.new_page()
    open_chart(page, real_ehr)
    app = open_as_another(page, real_ehr)
    app.wait_for_url("**/smart/decide/*/")
    app.get_by_role("heading", name="Is this you?").wait_for()
    # The one who is signed in here has an account there already.
    assert app.get_by_role("button", name="Yes, both are mine").count() == 0
    app.get_by_role("button", name="Yes, I'm").press("Enter")
    app.get_by_text("decision_declined").wait_for()
    # The first one is signed in still.
    app.goto(f"{site.url}/smart/login/?server=harbour")
    app.get_by_role("heading", name="Connect Harbour EHR").wait_for()

    app = click_app(page, real_ehr, clinician="")
    app.get_by_role("button", name="Approve").click()
    app.get_by_role("button", name="No, I'm someone else").press("Enter")
    app.wait_for_url("**/~*/patient/")
    context.close()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/pages/choice/now/", ".smart-answers p"),
        ("/pages/decide/link/named/", ".smart-answers p"),
    ],
)
def test_words_beside_a_choice_have_room_on_a_phone(
    context: BrowserContext, settings: Any, path: str, words: str
) -> None:
    settings.SMART_STAFF_SIGN_IN_SERVERS = ["harbour"]
    page = context.new_page()
    page.set_viewport_size({"width": 375, "height": 740})
    page.goto(path)
    label = page.locator(words).first.bounding_box()
    assert label is not None
    assert label["width"] > 200


@pytest.mark.parametrize(
    "path", ["/pages/decide/switch/named/", "/smart/login/?server=harbour"]
)
def test_form_is_sent_once_until_ten_seconds_later_or_the_page_is_shown_again(
    context: BrowserContext, path: str
) -> None:
    page = context.new_page()
    page.clock.install(time=0)
    page.goto(path)
    # A busy machine takes seconds for the steps below.
    page.clock.pause_at(60_000)
    sent: list[str] = []

    def keep(route: Route) -> None:
        sent.append(route.request.method)
        route.fulfill(status=204)

    page.route("**/*", keep)
    button = page.get_by_role("button", name=re.compile("Continue|No, "))

    def click_twice() -> None:
        with page.expect_request("**/*"):
            button.click()
        button.click()
        page.wait_for_timeout(100)

    click_twice()
    assert sent == ["POST"]
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow'))")
    click_twice()
    assert sent == ["POST"] * 2
    page.clock.fast_forward(9_000)
    button.click()
    page.wait_for_timeout(100)
    assert sent == ["POST"] * 2
    page.clock.fast_forward(2_000)
    click_twice()
    assert sent == ["POST"] * 3


def test_longer_words_fit_a_phone(
    context: BrowserContext, rows: dict[str, Any], settings: Any
) -> None:
    page = context.new_page()
    # The form that sends itself stays, so that it can be looked at.
    page.route("**/authorize-post.js", lambda route: route.fulfill(body=""))
    registration = rows["clientregistration"]
    admin = "/admin/django_smart"
    wide = []
    for language in ("de", "es", "fr"):
        settings.LANGUAGE_CODE = language
        for path in (
            *PAGES,
            f"{admin}/clientregistration/{registration.pk}/change/",
            f"{admin}/fhirserver/{registration.server_id}/change/",
            f"{admin}/tokengrant/{rows['tokengrant'].pk}/change/",
        ):
            page.goto(path)
            root = "document.documentElement"
            assert page.evaluate(f"{root}.lang") == language
            width = page.evaluate(f"{root}.scrollWidth")
            if width > 375:
                wide.append(f"{language} {path}: {width} px")
    assert wide == []
