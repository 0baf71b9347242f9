"""
The example in the EHR's frame, on two sites with https, in Chromium as people set it.

The certificates are of an authority that the test makes.  Chromium is told the digest
of its servers' one public key (``--ignore-certificate-errors-spki-list``): everything
else is checked as ever, and no tool or file outside of the profile is needed, which the
NSS database in the home directory would be.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import (
    BrowserContext,
    Frame,
    Page,
    Playwright,
    expect,
    sync_playwright,
)
from werkzeug.wrappers import Request, Response

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.serving import running_server
from tests.chromium import FLAGS
from tests.e2e.clicks import CLINICIAN, NAME, SCOPE
from tests.known import PATIENT
from tests.processes import ExampleSite, wait_for
from tests.services import chromium_path

pytestmark = [pytest.mark.browser, pytest.mark.process]

OTHER_NAME = "Xiuying Lu"
OTHER_PATIENT = "2b7d9c40-95f1-4f6a-8d0e-6c3a1b2f4c22"


class Certificate:
    """One for both hosts, by an authority that nobody knows outside of this test."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        self.authority_file = folder / "authority.pem"
        self.file = folder / "server.pem"
        self.key_file = folder / "key.pem"
        authority.cert_pem.write_to_path(self.authority_file)
        issued.private_key_pem.write_to_path(self.key_file)
        for pem in issued.cert_chain_pems:
            pem.write_to_path(self.file, append=True)

    @property
    def context(self) -> ssl.SSLContext:
        """The server's side."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key_file)
        return context

    @property
    def fingerprint(self) -> str:
        """Of the public key, as Chromium takes it."""
        loaded = x509.load_pem_x509_certificate(self.file.read_bytes())
        key = loaded.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        return base64.b64encode(hashlib.sha256(key).digest()).decode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """For the EHR and the site."""
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, certificate: Certificate
) -> Iterator[tuple[EHRSimulator, ExampleSite]]:
    """The EHR at ``localhost``, and the example at ``127.0.0.1``."""
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    site = ExampleSite(
        tmp_path_factory.mktemp("site"),
        REQUESTS_CA_BUNDLE=str(certificate.authority_file),
    )
    site.url = site.url.replace("http:", "https:")
    site.environment["SMART_SITE_URL"] = site.url
    with ehr.serve(ssl_context=certificate.context):
        options = ("--set", f'frame_origins=["{ehr.origin}"]')
        site.register_at(ehr, "--ehr-scope", f"launch {SCOPE}", *options)
        with serving(site, certificate):
            yield ehr, site


@contextmanager
def serving(site: ExampleSite, certificate: Certificate) -> Iterator[None]:
    """The site by gunicorn, which speaks https itself."""

    def answers() -> bool:
        try:
            return requests.get(
                f"{site.url}/status.json",
                verify=str(certificate.authority_file),
                timeout=5,
            ).ok
        except requests.RequestException:
            return False

    options = (
        # Connections that Chromium opens in advance hold a thread each.
        *("--bind", f"127.0.0.1:{site.port}", "--threads", "32"),
        *("--certfile", str(certificate.file), "--keyfile", str(certificate.key_file)),
    )
    with site.process(
        "gunicorn", "-m", "gunicorn", *options, "example_project.wsgi"
    ) as log:
        wait_for(answers, what=f"{site.url}, see {log}")
        yield


@pytest.fixture
def ehr(running: tuple[EHRSimulator, ExampleSite]) -> EHRSimulator:
    """The EHR, of which nothing was asked yet."""
    running[0].clear_requests()
    return running[0]


@pytest.fixture
def site(running: tuple[EHRSimulator, ExampleSite]) -> ExampleSite:
    """The site."""
    return running[1]


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@contextmanager
def chromium(
    playwright: Playwright,
    certificate: Certificate,
    folder: Path,
    *,
    third_party: bool = True,
    blocked: str = "",
) -> Iterator[BrowserContext]:
    """
    Chromium with a profile of its own.

    Args:
        third_party: whether sites keep their cookies in frames of other sites.
        blocked: ``site,around``: no cookie of this site's, within pages of that one.
    """
    profile: dict[str, Any] = {
        "block_third_party_cookies": not third_party,
        "cookie_controls_mode": 0 if third_party else 1,
    }
    if blocked:
        exceptions = {"cookies": {blocked: {"setting": 2}}}
        profile["content_settings"] = {"exceptions": exceptions}
    preferences = folder / "profile" / "Default" / "Preferences"
    preferences.parent.mkdir(parents=True)
    preferences.write_text(json.dumps({"profile": profile}))
    context = playwright.chromium.launch_persistent_context(
        folder / "profile",
        executable_path=chromium_path(),
        args=[
            *FLAGS,
            f"--ignore-certificate-errors-spki-list={certificate.fingerprint}",
        ],
    )
    context.set_default_timeout(60_000)
    try:
        yield context
    finally:
        context.close()


def open_in_frame(page: Page, ehr: EHRSimulator, *, name: str = NAME) -> Frame:
    """Open a chart and the app below its header; returns the app's frame."""
    page.goto(ehr.origin)
    sign_in = page.get_by_role("button", name=CLINICIAN)
    if sign_in.is_visible():
        sign_in.click()
    page.get_by_role("link", name=name).click()
    page.get_by_role("button", name="Open in frame").click()
    page.locator("iframe").wait_for()
    return page.frames[1]


def approve(frame: Frame) -> None:
    """At the EHR's page in the frame, up to the patient's."""
    frame.get_by_role("button", name="Approve").click()
    frame.wait_for_url("**/~*/patient/")


def expect_patient(shown: Frame | Page, patient: str) -> None:
    """The page is about *patient*."""
    expect(shown.locator("[data-patient-id]")).to_have_attribute(
        "data-patient-id", patient
    )


def reload(frame: Frame) -> None:
    """As the person's button does, within the frame."""
    with frame.expect_navigation():
        frame.evaluate("setTimeout(() => location.reload())")


@pytest.mark.parametrize("third_party", [True, False], ids=["allowed", "blocked"])
def test_launch_in_a_frame_is_carried_by_partitioned_cookies(
    playwright: Playwright,
    certificate: Certificate,
    ehr: EHRSimulator,
    site: ExampleSite,
    tmp_path: Path,
    third_party: bool,
) -> None:
    with chromium(
        playwright, certificate, tmp_path, third_party=third_party
    ) as context:
        page, other = context.pages[0], context.new_page()
        page.goto(site.url)
        page.evaluate("document.cookie = 'usual=1; SameSite=None; Secure'")

        frame = open_in_frame(page, ehr)
        approve(frame)
        expect_patient(frame, PATIENT)
        # The profile is as it should be: this is what other sites' cookies do there.
        assert ("usual=1" in frame.evaluate("document.cookie")) is third_party

        # Another chart in the same jar, and each keeps its own.
        second = open_in_frame(other, ehr, name=OTHER_NAME)
        approve(second)
        for shown, patient in ((frame, PATIENT), (second, OTHER_PATIENT)) * 2:
            reload(shown)
            expect_patient(shown, patient)
        # A tab of the site is another browser.
        tab = context.new_page()
        tab.goto(frame.url)
        expect(tab.get_by_text("launch_foreign")).to_be_visible()
        check_other_origin_cannot_frame(tab, ehr, certificate, frame.url)

        # A form of the site, whose token is in a cookie.
        frame.get_by_role("button", name="Sign out").click()
        expect(frame.get_by_text("Connect your records").first).to_be_visible()
        reload(second)
        expect(second.get_by_text("launch_ended")).to_be_visible()


def check_other_origin_cannot_frame(
    page: Page, ehr: EHRSimulator, certificate: Certificate, url: str
) -> None:
    """The same site as the EHR's, so with the same jar, and not named by the server."""

    @Request.application
    def other(request: Request) -> Response:
        return Response(f'<iframe src="{url}"></iframe>', content_type="text/html")

    with (
        running_server(other, "localhost", 0, certificate.context) as port,
        page.expect_console_message(
            lambda message: f"frame-ancestors {ehr.origin}" in message.text
        ),
    ):
        page.goto(f"https://localhost:{port}/")
    assert page.frame_locator("iframe").locator("[data-patient-id]").count() == 0


def test_launch_goes_on_in_a_window_where_the_frame_has_no_cookies(
    playwright: Playwright,
    certificate: Certificate,
    ehr: EHRSimulator,
    site: ExampleSite,
    tmp_path: Path,
) -> None:
    blocked = "https://127.0.0.1,https://localhost"
    with chromium(playwright, certificate, tmp_path, blocked=blocked) as context:
        page = context.pages[0]
        frame = open_in_frame(page, ehr)
        button = frame.locator("a[target=_blank]")
        expect(button).to_be_visible()
        # Nothing of the launch was spent.
        assert not ehr.requests_to("authorize")
        # A window without an opener is not always told of as this page's popup.
        with context.expect_page() as opened:
            button.click()
        window = opened.value
        window.get_by_role("button", name="Approve").click()
        window.wait_for_url("**/~*/patient/")
        expect_patient(window, PATIENT)
        expect(button).to_be_visible()
