"""Launches at the same moment in one browser, over real sockets and threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.cookies import SimpleCookie
from typing import Any

import pytest
import requests
from django.contrib.sessions.backends import cache, cached_db, db, signed_cookies
from django.core.handlers.wsgi import WSGIHandler
from django.utils import timezone

from django_smart.clients import fhir_client_for
from django_smart.grants.refresh import refresh_grant
from django_smart.models import Launch, TokenGrant
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.serving import running_server
from tests.ehr import (
    CLIENT_ID,
    connect,
    copy_browser,
    get_callback,
    launch,
    make_browser,
    start_ehr_launch,
)
from tests.factories import make_registration, register_at, reload_grant
from tests.threads import run_together

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.site.urls"),
]

BACKENDS = [each.__name__ for each in (db, cache, cached_db, signed_cookies)]


class Browser:
    """One cookie jar, and as many tabs as one likes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._cookies: dict[str, str] = {}
        self._lock = threading.Lock()

    def get(self, path: str) -> requests.Response:
        """One request of one tab; redirects are not followed."""
        with self._lock:
            cookies = "; ".join(f"{k}={v}" for k, v in self._cookies.items())
        response = requests.get(
            self.url + path.removeprefix(self.url),
            headers={"Cookie": cookies},
            allow_redirects=False,
            timeout=60,
        )
        with self._lock:
            for header in response.raw.headers.getlist("Set-Cookie"):
                for name, cookie in SimpleCookie(header).items():
                    if cookie["max-age"] == "0":
                        self._cookies.pop(name, None)
                    else:
                        self._cookies[name] = cookie.value
        return response

    def launch(
        self, ehr: EHRSimulator, patient: str, *, meeting: threading.Barrier | None
    ) -> str:
        """A whole launch in a tab; returns the address of its page."""
        launch_id = ehr.create_launch(CLIENT_ID, patient=patient)
        started = self.get(ehr.launch_url(CLIENT_ID, launch_id))
        assert started.status_code == 302, started.text
        url = ehr.authorize(started.headers["Location"])
        if meeting is not None:
            meeting.wait(60)
        landed = self.get(url)
        assert landed.status_code == 302, landed.text
        return str(landed.headers["Location"])


@pytest.fixture
def site_url(ehr: EHRSimulator, settings: Any, request: Any) -> Iterator[str]:
    """The tests' site by a server with a thread for each request."""
    settings.SESSION_ENGINE = request.param
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    settings.SMART_LAUNCH_REDIRECT_URL = "/whoami/"
    settings.SMART_LAUNCHES_PER_BROWSER = 50
    with running_server(WSGIHandler(), "127.0.0.1", 0) as port:
        url = f"http://127.0.0.1:{port}"
        redirect_uri = f"{url}/smart/callback/"
        make_registration(redirect_uri=redirect_uri)
        register_at(ehr, redirect_uri, launch_url=f"{url}/smart/launch/")
        yield url


def _launch_in_parallel(ehr: EHRSimulator, url: str, *, times: int) -> None:
    """First launches of a browser, and then more of them in the session they made."""
    patients = list(ehr.data["Patient"])[:2]
    for number in range(times):
        browser = Browser(url)
        pages: list[tuple[str, str]] = []
        for _ in ("first", "same session"):
            # Every second time they meet once more, before their callbacks.
            meeting = threading.Barrier(2) if number % 2 else None
            tabs = [
                partial(browser.launch, ehr, patient, meeting=meeting)
                for patient in patients
            ]
            opened = run_together(*tabs)
            assert all(isinstance(each, str) for each in opened), opened
            pages += zip(patients, opened, strict=True)
        for patient, page in pages:
            shown = browser.get(page)
            assert shown.status_code == 200, shown.text
            assert shown.json()["patient"] == patient
    users = Launch.objects.values_list("user", flat=True)
    assert len(set(users)) == 1
    assert set(Launch.objects.values_list("status", flat=True)) == {"open"}


@pytest.mark.compliance("EHRL-09")
@pytest.mark.parametrize("site_url", BACKENDS, indirect=True)
def test_launches_of_two_tabs_at_one_moment_both_complete(ehr, site_url):
    _launch_in_parallel(ehr, site_url, times=5)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("site_url", BACKENDS, indirect=True)
def test_launches_of_two_tabs_at_one_moment_both_complete_each_time(ehr, site_url):
    _launch_in_parallel(ehr, site_url, times=50)


@pytest.mark.parametrize("finished", ["in turn", "at one moment"])
def test_launches_that_sign_in_over_another_user_both_complete(ehr, finished):
    """A session of somebody else was left open: the first of them ends it."""
    make_registration(user_switch="switch")
    browser = make_browser()
    before = launch(browser, ehr)
    second = [name for name in ehr.users if name.startswith("Practitioner/")][1]
    patients = list(ehr.data["Patient"])[:2]
    urls = [
        ehr.authorize(start_ehr_launch(browser, ehr, patient=each, user=second))
        for each in patients
    ]
    tabs = [browser, browser]
    if finished == "at one moment":
        tabs = [copy_browser(browser), copy_browser(browser)]
    pages = {}
    callbacks = [get_callback(tab, url) for tab, url in zip(tabs, urls, strict=True)]
    for callback, patient in zip(callbacks, patients, strict=True):
        assert callback.status_code == 302, callback.content
        pages[callback["Location"].split("/")[1]] = patient
        browser.cookies.update(callback.cookies)
    for key, patient in pages.items():
        assert browser.get(f"/{key}/whoami/").json()["patient"] == patient
    assert browser.get(f"/~{before.key}/whoami/").status_code == 410


# Jobs of one user


def test_jobs_of_two_grants_never_use_the_other_s_token(ehr):
    """While both tokens end and are replaced, again and again."""
    registration = make_registration(
        standalone_scope="openid fhirUser launch/patient patient/Patient.rs "
        "offline_access"
    )
    browser = make_browser()
    patients = list(ehr.data["Patient"])[:2]
    opened = {patient: connect(browser, ehr, patient=patient) for patient in patients}
    (user,) = {each.user for each in opened.values()}
    ehr.clear_requests()

    def work(patient: str) -> list[str]:
        """As a task would: by patient, and by grant."""
        by_patient = fhir_client_for(user, registration.server, patient_id=patient)
        by_grant = fhir_client_for(grant=reload_grant(opened[patient].grant_id))
        return [
            client.read("Patient", patient)["id"] for client in (by_patient, by_grant)
        ]

    for _ in range(5):
        TokenGrant.objects.update(expires_at=timezone.now())
        ehr.expire_access_tokens()
        done = run_together(
            *(partial(work, each) for each in patients * 2),
            lambda: refresh_grant(reload_grant(opened[patients[0]].grant_id)),
        )
        assert done[:4] == [[each] * 2 for each in patients * 2]

    # By the judge's own record: whose token came with which patient's address.
    served = [
        (each.patient, each.url.split("/")[-1]) for each in ehr.requests_to("fhir")
    ]
    assert set(served) == {(each, each) for each in patients}
    assert ehr.reused_refresh_tokens == 0
    for patient, each in opened.items():
        assert ehr.patient_of(reload_grant(each.grant_id).access_token) == patient
