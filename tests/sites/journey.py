"""What a person does in a site that was launched, by the links of its pages alone."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from asgiref.sync import async_to_sync
from django.test import AsyncClient, Client

from django_smart.testing import EHRSimulator
from tests.known import CLIENT_ID


class Visitor:
    """
    A browser at a site.

    Args:
        browser: reaches the site by WSGI.
        root: what all paths of the site begin with.
        by_asgi: let everything go through the asynchronous stack.
    """

    def __init__(
        self, browser: Client, *, root: str = "", by_asgi: bool = False
    ) -> None:
        self.root = root
        self._browser: Any = AsyncClient() if by_asgi else browser
        self._origin = "https://testserver" if by_asgi else "https://app.example.org"
        self._browser.handler.enforce_csrf_checks = True
        self._by_asgi = by_asgi

    def get(self, url: str, values: Any = None, **headers: str) -> Any:
        """GET a path of the site; redirects are not followed."""
        return self._send("get", url, values, headers)

    def post(self, url: str, values: Any, **headers: str) -> Any:
        """POST, as a page of the site does."""
        headers = {"origin": self._origin, **headers}
        return self._send("post", url, values, headers)

    def _send(self, method: str, url: str, values: Any, headers: Any) -> Any:
        send = getattr(self._browser, method)
        if self._by_asgi:
            send = async_to_sync(send)
        return send(url, values, headers=headers, secure=True)

    def launch(self, ehr: EHRSimulator, patient: str, **headers: str) -> str:
        """A whole EHR launch; returns where it leads."""
        values = {
            "iss": ehr.base_url,
            "launch": ehr.create_launch(CLIENT_ID, patient=patient),
        }
        started = self.get(f"{self.root}/smart/launch/", values, **headers)
        assert started.status_code == 302, started.content
        url = urlsplit(ehr.authorize(started["Location"]))
        query = parse_qsl(url.query)
        landed = self.get(f"{self.root}/smart/callback/", query, **headers)
        assert landed.status_code == 302, landed.content
        return str(landed["Location"])


def follow(visitor: Visitor, url: str, prefix: str) -> Any:
    """The page that *url* leads to; every step is below *prefix*."""
    for _ in range(4):
        assert url.startswith(prefix)
        response = visitor.get(url)
        if response.status_code not in {301, 302}:
            assert response.status_code == 200, response.content
            return response
        url = response["Location"]
    raise AssertionError(url)


def find(page: Any, name: str) -> str:
    """The address of one of the links."""
    found = re.search(f'id="{name}" href="([^"]+)"', page.content.decode())
    assert found, page.content
    return found[1].replace("&amp;", "&")


def expect_patient(page: Any, patient: str) -> None:
    """Everything on the page is about *patient*."""
    text = page.content.decode()
    assert re.findall('data-patient="([^"]+)"', text) == [patient]
    assert set(re.findall('data-result="([^"]+)"', text)) <= {patient}
    assert all(
        each.startswith(f"{patient}: ")
        for each in re.findall('data-note="([^"]+)"', text)
    )


def visit(visitor: Visitor, stranger: Visitor, ehr: EHRSimulator) -> None:
    """Two charts in one browser, through everything that builds an address."""
    patients = list(ehr.data["Patient"])[:2]
    landings = {each: visitor.launch(ehr, each) for each in patients}
    charts = {}
    for patient, landing in landings.items():
        prefix = landing[: landing.index("/", landing.index("~")) + 1]
        assert prefix.startswith(f"{visitor.root}/~")
        charts[patient] = prefix, follow(visitor, landing, prefix)
    for patient, (prefix, page) in charts.items():
        expect_patient(page, patient)
        _visit_one(visitor, page, patient, prefix)
    for patient, landing in landings.items():
        # What was written meanwhile is in its own chart.
        page = follow(visitor, landing, charts[patient][0])
        expect_patient(page, patient)
        assert page.content.decode().count("data-note") == 1
        refused = stranger.get(find(page, "chart"))
        assert refused.status_code == 403
        assert b"<code>launch_foreign</code>" in refused.content
        assert patient.encode() not in refused.content


def _visit_one(visitor: Visitor, page: Any, patient: str, prefix: str) -> None:
    # By redirect() and with APPEND_SLASH.
    expect_patient(follow(visitor, find(page, "moved"), prefix), patient)
    without_slash = find(page, "results").removesuffix("/")
    assert visitor.get(without_slash).status_code == 301
    # Page by page.
    results = follow(visitor, without_slash, prefix)
    seen = 0
    while True:
        expect_patient(results, patient)
        seen += results.content.decode().count("data-result")
        if b'id="next"' not in results.content:
            break
        results = follow(visitor, find(results, "next"), prefix)
    assert seen > 2
    # A form, with and without its token.
    text = page.content.decode()
    (action,) = re.findall('action="([^"]+)"', text)
    (token,) = re.findall('name="csrfmiddlewaretoken" value="([^"]+)"', text)
    assert visitor.post(action, {"text": "refused"}).status_code == 403
    values = {"text": "kept", "csrfmiddlewaretoken": token}
    response = visitor.post(action, values)
    assert response.status_code == 302
    expect_patient(follow(visitor, response["Location"], prefix), patient)
    # The site's own login.
    staff = find(page, "staff")
    response = visitor.get(staff)
    url = response["Location"]
    assert url.endswith(f"/sign-in/?next={quote(staff)}")
    assert follow(visitor, url, prefix).content == b"sign in"
