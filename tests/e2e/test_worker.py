"""A Celery worker with beat keeps an offline grant fresh while no browser is open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from django_smart.testing import EHRSimulator
from tests.known import PATIENT
from tests.processes import ExampleSite, wait_for
from tests.services import redis_url

# Long enough for one tick of beat (10 s) and a busy machine after three quarters of it.
LIFETIME = 90


@pytest.fixture
def ehr_of_short_lives() -> Iterator[EHRSimulator]:
    """An EHR at ``localhost`` whose access tokens live for a minute and a half."""
    ehr = EHRSimulator(
        "https://ehr.example.org/r4/fhir", access_token_lifetime=LIFETIME
    )
    with ehr.serve():
        yield ehr


def _connect(site: ExampleSite, ehr: EHRSimulator) -> None:
    """Let a patient connect and go away; the site's web process ends too."""
    scope = "launch/patient patient/Patient.rs offline_access"
    registered = site.register_at(ehr, "--standalone-scope", scope)
    with site.web(), requests.Session() as browser:
        browser.headers["Sec-Fetch-Site"] = "same-origin"
        started = browser.get(
            registered["login_url"], allow_redirects=False, timeout=60
        )
        assert started.status_code == 302, started.text
        callback = ehr.authorize(started.headers["Location"], patient=PATIENT)
        opened = browser.get(callback, allow_redirects=False, timeout=60)
        assert opened.status_code == 302, opened.text


def _wait_for_refresh(ehr: EHRSimulator, log: Path) -> float:
    """Seconds from the first tokens to the refresh on the wire."""
    wait_for(
        lambda: ehr.requests_to("refresh"),
        seconds=LIFETIME + 20,
        what=f"a refresh, see {log}",
    )
    first = min(request.at for request in ehr.requests_to("token"))
    return ehr.requests_to("refresh")[0].at - first


@pytest.mark.process
@pytest.mark.redis
def test_worker_refreshes_an_offline_grant_before_it_expires(
    tmp_path: Path, ehr_of_short_lives: EHRSimulator
) -> None:
    ehr = ehr_of_short_lives
    site = ExampleSite(tmp_path, CELERY_BROKER_URL=redis_url(7))
    _connect(site, ehr)
    with site.worker() as log:
        waited = _wait_for_refresh(ehr, log)
        wait_for(
            lambda: "refreshed" in log.read_text(), what=f"the log line, see {log}"
        )
    assert LIFETIME / 2 < waited < LIFETIME
    text = log.read_text()
    (last,) = ehr.requests_to("refresh")
    assert last.status == 200
    assert dict(last.form)["refresh_token"] not in text
    assert ehr.reused_refresh_tokens == 0
