"""The pages in Chromium, with an app on another host that is framed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from django_smart.testing import EHRSimulator
from tests.chromium import chromium
from tests.testing.app import CLIENT_ID, VERIFIER, challenge_of, query_of, register

pytestmark = pytest.mark.browser

__all__ = ["chromium"]


class _Quiet(WSGIRequestHandler):
    def log(self, *args):
        pass


@pytest.fixture
def ehr() -> Iterator[EHRSimulator]:
    """The EHR at ``localhost``, with an app at ``127.0.0.1``."""
    ehr = EHRSimulator("https://ehr.example.org/fhir")

    @Request.application
    def app(request: Request) -> Response:
        if request.path == "/launch":
            params = {
                "response_type": "code",
                "client_id": CLIENT_ID,
                "redirect_uri": f"{request.host_url}callback",
                "scope": "launch patient/Patient.rs",
                "state": "a-state-that-is-long-enough",
                "aud": request.args["iss"],
                "launch": request.args["launch"],
                "code_challenge": challenge_of(VERIFIER),
                "code_challenge_method": "S256",
            }
            url = f"{ehr.authorization_endpoint}?{urlencode(params)}"
            return Response(status=302, headers={"Location": url})
        return Response("<h1>Arrived</h1>", content_type="text/html")

    server = ThreadedWSGIServer("127.0.0.1", 0, app, _Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    site = f"http://127.0.0.1:{server.port}"
    register(ehr, redirect_uris=[f"{site}/callback"], launch_url=f"{site}/launch")
    with ehr.serve():
        yield ehr
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.compliance("EHRL-08")
def test_app_opens_in_a_tab_and_in_a_frame(
    ehr: EHRSimulator, chromium: Browser
) -> None:
    """On a phone's width, and no page is wider than it."""
    page = chromium.new_page(viewport={"width": 375, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(ehr.origin)
    page.get_by_role("button", name="Dr. Helena Brandvold").click()
    page.get_by_role("link", name="Quillfeather").click()
    page.get_by_role("heading", name="Latest results").wait_for()
    page.wait_for_load_state("load")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Open in new tab").click()
    tab = opened.value
    tab.get_by_role("button", name="Approve").click()
    tab.get_by_role("heading", name="Arrived").wait_for()
    assert "code" in query_of(tab.url)
    page.get_by_role("button", name="Open in frame").click()
    frame = page.frame_locator("iframe")
    # Lax cookies reach it: page and frame are of one site, the EHR's.
    frame.get_by_role("button", name="Approve").click()
    frame.get_by_role("heading", name="Arrived").wait_for()
    assert page.get_by_text("Back to the chart").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert complaints == []
