"""The page on cards of CDS Hooks: what a card links to is where the app opens."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.test import RequestFactory
from django.urls import include, path
from django.views.generic import View

from tests.docs.blocks import execute, read_blocks
from tests.ehr import get_callback, make_browser, start_ehr_launch
from tests.known import SITE

pytestmark = pytest.mark.django_db

_PAGE = "how-to/cookbook.rst"
_SECTION = "A card of CDS Hooks that opens your app"


@pytest.fixture
def page(settings: Any, registration: Any, put_urls: Any) -> dict[str, Any]:
    """Both blocks of the page, as views of this site."""
    values = execute(
        *read_blocks("how-to/cookbook.rst", "A card of CDS Hooks that opens your app")
    )
    put_urls(
        [
            path("", View.as_view(), name="home"),
            path("a1c/", View.as_view(), name="a1c"),
            path("landing/", values["landing"]),
            path("smart/", include("django_smart.urls")),
        ]
    )
    settings.SMART_LAUNCH_REDIRECT_URL = "/landing/"
    settings.SMART_SITE_URL = SITE
    return values


def _open(ehr: Any, app_context: str | None) -> str:
    browser = make_browser()
    sent = start_ehr_launch(browser, ehr, app_context=app_context)
    landing = get_callback(browser, ehr.authorize(sent))["Location"]
    response = browser.get(landing)
    assert response.status_code == 302
    return str(response["Location"]).split("/", 2)[2]


def test_card_opens_the_page_that_it_names(page: dict[str, Any], ehr: Any) -> None:
    answer = page["a1c_card"](RequestFactory().post("/cds-services/a1c"))
    (link,) = json.loads(answer.content)["cards"][0]["links"]
    assert link["type"] == "smart"
    assert link["url"] == f"{SITE}/smart/launch/"
    assert _open(ehr, link["appContext"]) == "a1c/"


@pytest.mark.parametrize("text", [None, "", "a1c", "eyJwYWdlIjoiYTFjIn0:1abc:forged"])
def test_any_other_text_opens_the_usual_page(
    page: dict[str, Any], ehr: Any, text: str | None
) -> None:
    assert _open(ehr, text) == ""
