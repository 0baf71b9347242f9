"""The form of a registration: which fields are there, with scripts and without."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

_URL = "/admin/django_smart/clientregistration/add/"
_BY_METHOD = {
    "none": [],
    "client_secret_basic": ["secret_source", "client_secret"],
    "client_secret_post": ["secret_source", "client_secret"],
    "private_key_jwt": ["signing_algorithm"],
}
_BY_SOURCE = ("client_secret", "client_secret_env", "client_secret_file")
_ALL = ("secret_source", *_BY_SOURCE, "signing_algorithm")


def find_shown(page: Page) -> list[str]:
    return [name for name in _ALL if page.locator(f"[name={name}]").is_visible()]


@pytest.fixture
def page(
    chromium: Browser, live_server: Any, rows: dict[str, Any], request: Any
) -> Any:
    client = Client()
    client.force_login(rows["user"])
    context = chromium.new_context(
        base_url=live_server.url, java_script_enabled=request.param
    )
    session = client.cookies["sessionid"].value
    cookie: Any = {"name": "sessionid", "value": session, "url": live_server.url}
    context.add_cookies([cookie])
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("page", [True], indirect=True)
def test_method_and_place_of_the_secret_choose_the_fields(page: Page) -> None:
    page.goto(_URL)
    for method, shown in _BY_METHOD.items():
        page.get_by_label("Authentication method:").select_option(method)
        assert find_shown(page) == shown
    page.get_by_label("Authentication method:").select_option("client_secret_post")
    for source in _BY_SOURCE:
        page.get_by_label("Where the secret is:").select_option(source)
        assert find_shown(page) == ["secret_source", source]


@pytest.mark.parametrize("page", [False], indirect=True)
def test_every_field_is_there_without_scripts(page: Page) -> None:
    page.goto(_URL)
    assert find_shown(page) == [*_ALL]
