"""npm's ``fhirclient`` in Chromium, with the proxy as its server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route

from tests.boundary.cases import Case, observation
from tests.boundary.running import Hospital, ask_proxy
from tests.chromium import chromium

__all__ = ["chromium"]

pytestmark = pytest.mark.browser

SITE = "https://testserver"
PROXY = f"{SITE}/~launch-1/fhir/"
_FHIRCLIENT = (
    Path(__file__).parents[2]
    / "example_project/static/example/vendor/fhirclient-2.6.3"
    / "fhir-client.pure.min.js"
)
_START = """
    const client = FHIR.client({
      serverUrl: "https://testserver/~launch-1/fhir/",
      tokenResponse: { patient: "mine" },
    });
"""


class Script:
    """A page of the site whose script may call the proxy, and nobody else."""

    def __init__(self, page: Page) -> None:
        self.hospital = Hospital(is_lenient=True)
        self.client = self.hospital.build_client("patient/*.cruds")
        self.asked: list[str] = []
        self._page = page
        page.route("**/*", self._answer)
        page.goto(SITE)
        page.add_script_tag(path=_FHIRCLIENT)

    def run(self, code: str) -> Any:
        """What *code*, the body of an async function, returns."""
        self.hospital.ehr.clear_requests()
        self.asked.clear()
        return self._page.evaluate(f"async () => {{ {_START} {code} }}")

    def _answer(self, route: Route) -> None:
        request = route.request
        if not request.url.startswith(PROXY):
            self.asked.append(request.url)
            route.fulfill(body="<!doctype html>", content_type="text/html")
            return
        parts = urlsplit(request.url)
        path = parts.path.removeprefix("/~launch-1/fhir/")
        case = Case(
            about="",
            method=request.method,
            path=f"{path}?{parts.query}" if parts.query else path,
            body=request.post_data,
            headers={
                name: value
                for name, value in request.headers.items()
                if name not in {"content-length", "content-type", "host"}
            },
            media_type=request.headers.get("content-type", ""),
        )
        response = ask_proxy(self.client, case)
        self.asked.append(f"{case.method} {path} {response.status_code}")
        route.fulfill(
            status=response.status_code,
            headers=dict(response.headers),
            body=response.content,
        )


@pytest.fixture
def script(chromium: Browser, monkeypatch: pytest.MonkeyPatch) -> Script:
    # Playwright runs an event loop in the thread that its handlers are called in.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    return Script(chromium.new_page())


NEW = json.dumps({k: v for k, v in observation().items() if k != "id"})
CALLS: list[tuple[str, Callable[[Any], bool]]] = [
    ("return await client.patient.read()", lambda got: got["id"] == "mine"),
    (
        'return await client.patient.request("Condition")',
        lambda got: (
            [one["resource"]["id"] for one in got["entry"]] == ["condition-mine"]
        ),
    ),
    (
        'return await client.request("Observation?_count=1", '
        "{ pageLimit: 0, flat: true })",
        lambda got: len(got) == 3,
    ),
    (
        'return await client.request("Observation/absolute", '
        '{ resolveReferences: ["performer", "encounter"] })',
        lambda got: (
            got["performer"][0]["name"][0]["family"] == "Quill"
            and got["encounter"]["id"] == "encounter-mine"
        ),
    ),
    ("return await client.getFhirVersion()", lambda got: got == "4.0.1"),
    (f"return await client.create({NEW})", lambda got: bool(got["id"])),
    (
        f"return await client.update({json.dumps(observation(status='amended'))})",
        lambda got: got["status"] == "amended",
    ),
    (
        'return await client.patch("Observation/observation-mine", '
        '[{ op: "replace", path: "/status", value: "amended" }])',
        lambda got: got["meta"]["versionId"] == "2",
    ),
    (
        'return (await client.delete("Observation/observation-mine", '
        "{ includeResponse: true })).response.status",
        lambda got: got == 204,
    ),
]


@pytest.mark.parametrize(("code", "is_right"), CALLS)
def test_call_of_fhirclient(
    script: Script, code: str, is_right: Callable[[Any], bool]
) -> None:
    assert is_right(script.run(code)), script.asked
    assert all(" " in one for one in script.asked)


@pytest.mark.parametrize(
    "call",
    [
        'client.request("Observation/observation-other")',
        'client.request("Observation?patient=other")',
        f"client.update({json.dumps(observation('other'))})",
        'client.patch("Observation/observation-other", '
        '[{ op: "remove", path: "/status" }])',
        'client.delete("Patient/other")',
    ],
)
def test_record_of_another_patient_is_refused(script: Script, call: str) -> None:
    code = f"return {call}.then(() => 0, (error) => error.statusCode)"
    assert script.run(code) == 403
    assert script.hospital.ehr.written == []
