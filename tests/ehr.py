"""A simulated EHR, mounted without sockets, and what tests do with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.dispatch import Signal
from django.http import HttpResponseBase
from django.test import Client

from django_smart import transport
from django_smart.models import ClientRegistration, Launch
from django_smart.testing import EHRSimulator
from tests.factories import make_registration, register_at
from tests.known import (
    BASE_URL,
    CLIENT_ID,
    CLIENT_SECRET,
    EHR_SCOPE,
    PATIENT,
    REDIRECT_URI,
    SITE,
    STANDALONE_SCOPE,
)

__all__ = [
    "BASE_URL",
    "CLIENT_ID",
    "CLIENT_SECRET",
    "EHR_SCOPE",
    "PATIENT",
    "REDIRECT_URI",
    "SITE",
    "STANDALONE_SCOPE",
    "make_registration",
]


@pytest.fixture
def ehr() -> Iterator[EHRSimulator]:
    """The EHR at ``BASE_URL``, with this site's client registered there."""
    simulator = EHRSimulator(base_url=BASE_URL)
    register_at(simulator, launch_url=f"{SITE}/smart/launch/", name="Growth chart")
    with transport.mounted("https://ehr.example.org", simulator.adapter()):
        yield simulator


@pytest.fixture
def registration(db: None, ehr: EHRSimulator) -> ClientRegistration:
    """This site's registration at the EHR, for both kinds of launch."""
    return make_registration()


class _Browser(Client):
    """Django's test client, which says by its own argument alone that it is secure."""

    def request(self, **request: Any) -> Any:
        return super().request(**{**request, "wsgi.url_scheme": "https"})


def make_browser(host: str = "app.example.org") -> Client:
    """A browser with cookies of its own, which reaches the site by https."""
    # Its user follows links on the site, unless a test says otherwise.
    return _Browser(HTTP_HOST=host, HTTP_SEC_FETCH_SITE="same-origin")


def get_launch_cookies(browser: Client) -> dict[str, str]:
    """The cookies of launches that *browser* has, one for each."""
    return {
        name: each.value
        for name, each in browser.cookies.items()
        if each.value and re.fullmatch(r"__Host-smart_browser_[0-9a-f]{16}", name)
    }


def copy_browser(browser: Client) -> Client:
    """Another one, with the cookies that *browser* has now."""
    other = make_browser()
    for name, each in browser.cookies.items():
        if each.value:
            other.cookies[name] = each.value
    return other


def start_ehr_launch(
    browser: Client, ehr: EHRSimulator, *, patient: str | None = PATIENT, **values: Any
) -> str:
    """Click the app in a chart; returns the authorization request's URL."""
    launch_id = ehr.create_launch(CLIENT_ID, **{"patient": patient, **values})
    response = browser.get("/smart/launch/", {"iss": ehr.base_url, "launch": launch_id})
    assert response.status_code == 302, response.content
    return str(response["Location"])


def get_callback(browser: Client, callback_url: str) -> Any:
    """Let *browser* follow the EHR's redirect to the callback."""
    parts = urlsplit(callback_url)
    return browser.get(parts.path, parse_qsl(parts.query, keep_blank_values=True))


def launch(browser: Client, ehr: EHRSimulator, **values: Any) -> Launch:
    """A whole EHR launch."""
    response = get_callback(
        browser, ehr.authorize(start_ehr_launch(browser, ehr, **values))
    )
    return get_launch(response)


def get_launch(response: HttpResponseBase) -> Launch:
    """The launch whose page *response*, of a callback, leads to."""
    assert response.status_code == 302, getattr(response, "content", b"")
    key = response["Location"].split("/")[1].removeprefix("~")
    return Launch.objects.with_related().get(key=key)


def post_login(browser: Client, **values: str) -> Any:
    """Press the button of the page that names the signed-in user, if there is one."""
    if settings.SESSION_COOKIE_NAME in browser.cookies:
        values["user"] = browser.session.get(SESSION_KEY, "")
    return browser.post("/smart/login/", {"server": "harbour", **values})


def start_login(browser: Client, **values: str) -> str:
    """Connect records, or log in with them; returns the authorization request's URL."""
    response = post_login(browser, **values)
    assert response.status_code == 302, response.content
    return str(response["Location"])


def connect(browser: Client, ehr: EHRSimulator, **choices: Any) -> Launch:
    """A whole standalone launch; *choices* are the person's at the EHR."""
    return get_launch(
        get_callback(browser, ehr.authorize(start_login(browser), **choices))
    )


@contextmanager
def listening(signal: Signal) -> Iterator[list[dict[str, Any]]]:
    """What *signal* is sent with inside the ``with`` block."""
    received: list[dict[str, Any]] = []

    def receive(**values: Any) -> None:
        received.append(values)

    signal.connect(receive, weak=False)
    try:
        yield received
    finally:
        signal.disconnect(receive)
