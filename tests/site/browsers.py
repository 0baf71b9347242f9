"""Browsers with a chart open, of every stack a site can run in."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.handlers.wsgi import get_script_name
from django.test import AsyncClient, Client, RequestFactory
from django.test.client import ClientHandler
from django.urls import clear_script_prefix, set_script_prefix

from django_smart.launches.context import SMARTContext
from django_smart.models import Launch
from django_smart.testing import EHRSimulator
from tests.ehr import get_callback, make_browser, start_ehr_launch

# For modules whose tests are all of the site, with a client registered.
SITE_MARKS = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.site.urls"),
    pytest.mark.usefixtures("registration"),
]


class Chart:
    """
    One launch in one browser.

    ``get`` and ``post`` take paths without the launch prefix, and add it.
    """

    def __init__(self, browser: Client, launch: Launch, landing: str) -> None:
        self.browser = browser
        self.launch = launch
        self.landing = landing

    def url(self, path: str) -> str:
        """*path* under this launch."""
        return self.landing.rstrip("/") + path

    def get(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """GET as WSGI does it."""
        return self.browser.get(self.url(path), *args, **kwargs)

    def post(self, path: str, *args: Any, **kwargs: Any) -> Any:
        """POST as WSGI does it."""
        return self.browser.post(self.url(path), *args, **kwargs)

    def aget(self, path: str, **kwargs: Any) -> Any:
        """GET as ASGI does it."""
        return async_to_sync(make_async_browser(self.browser).get)(
            self.url(path), secure=True, **kwargs
        )


def open_chart(
    ehr: EHRSimulator, browser: Client | None = None, **values: Any
) -> Chart:
    """Launch from a chart of the EHR; *values* as for ``create_launch``."""
    browser = browser or make_browser()
    url = ehr.authorize(start_ehr_launch(browser, ehr, **values))
    response = get_callback(browser, url)
    assert response.status_code == 302, response.content
    launch = Launch.objects.with_related().latest("completed_at")
    return Chart(browser, launch, response["Location"])


def make_context(chart: Chart, *, user: Any, key: str | None = None) -> SMARTContext:
    """A context as the middleware makes it, without a middleware."""
    request = RequestFactory().get("/", secure=True)
    request.COOKIES = {
        name: morsel.value for name, morsel in chart.browser.cookies.items()
    }
    request.user = user
    return SMARTContext(request, key=key)


def make_async_browser(browser: Client) -> AsyncClient:
    """The same browser, with the same cookies, at an ASGI server."""
    # Under the header's own name: unlike the other client, it does not translate names.
    headers: dict[str, Any] = {"sec-fetch-site": "same-origin"}
    other = AsyncClient(**headers)
    other.cookies = browser.cookies
    return other


class _MountedHandler(ClientHandler):
    """What a WSGI server and Django's ``WSGIHandler`` do for a mounted site."""

    def __call__(self, environ: dict[str, Any]) -> Any:
        environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix("/app")
        environ["SCRIPT_NAME"] = "/app"
        set_script_prefix(get_script_name(environ))
        try:
            return super().__call__(environ)
        finally:
            clear_script_prefix()


def make_mounted_browser() -> Client:
    """A browser of a site that is mounted at ``/app``."""
    browser = make_browser()
    browser.handler = _MountedHandler(enforce_csrf_checks=False)
    return browser
