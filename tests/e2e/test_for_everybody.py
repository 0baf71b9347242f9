"""Without a mouse, by what a screen reader is told, and in words that are longer."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, expect

from django_smart.models import TokenGrant

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.e2e.page_urls"),
]

_HEARD = """
- main:
  - heading "Connected organisations" [level=1]
  - paragraph: /This site may use what these organisations keep about you/
  - list:
    - listitem:
      - heading "Harbour Hospital" [level=2]
      - paragraph: /Connected since/
      - paragraph: "This site may:"
      - list:
        - listitem: /See. name, date of birth and other details. test results/
        - listitem: Do so while you are not here as well
      - button "Disconnect Harbour Hospital"
    - listitem:
      - heading "Saltmarsh Valley Regional Medical Center and Clinics" [level=2]
      - paragraph: /has ended this connection on/
      - paragraph:
        - link "Connect Saltmarsh Valley Regional Medical Center and Clinics again"
  - paragraph:
    - link "Connect another organisation"
"""


def test_connections_are_heard_and_ended_by_keyboard(context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/smart/connections/")
    expect(page.get_by_role("main")).to_match_aria_snapshot(_HEARD)
    button = page.get_by_role("button", name="Disconnect Harbour Hospital")
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
    assert page.get_by_role("button", name="Disconnect").count() == 0
    assert not TokenGrant.objects.filter(status=TokenGrant.Status.ACTIVE).exists()


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
            "/smart/login/?q=clinic",
            "/smart/login/?server=harbour",
            "/smart/connections/",
            "/smart/launch/",
            "/pages/denied/",
            "/pages/scopes/",
            "/pages/charts/",
            "/pages/new-window/",
            "/pages/authorize-post/",
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
