"""Refreshes over sockets, in several processes, and with another database."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection
from django.utils import timezone

from django_smart.grants.turn import RefreshResult
from django_smart.models import TokenGrant
from django_smart.testing import EHRSimulator
from tests.factories import make_due, make_grants, make_registration, reload_grant
from tests.grants.askers import THREADS
from tests.grants.working import refresh_grants
from tests.known import CLIENT_ID, CLIENT_SECRET, PATIENT

_ROOT = Path(__file__).resolve().parents[2]
_PROCESSES = 4


@pytest.fixture
def served(settings: Any) -> Iterator[EHRSimulator]:
    """An EHR behind sockets; its token endpoint takes its time."""
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    ehr = EHRSimulator("http://127.0.0.1/fhir")
    ehr.register_client(CLIENT_ID, client_secret=CLIENT_SECRET)

    def respond_slowly(respond: Any, request: Any) -> Any:
        response = respond(request)
        if request.path.endswith("/auth/token"):
            time.sleep(0.1)
        return response

    ehr.interceptors.append(respond_slowly)
    with ehr.serve("127.0.0.1"):
        yield ehr


def _get_database_url() -> str:
    """The address of the database this test runs in."""
    name = str(connection.settings_dict["NAME"])
    url = os.environ.get("DATABASE_URL", "")
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    return urlsplit(url)._replace(path=f"/{name}").geturl()


def _get_environment() -> dict[str, str]:
    return os.environ | {
        "DATABASE_URL": _get_database_url(),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
    }


@contextmanager
def _alone() -> Iterator[None]:
    """Not beside another such run: a server has a hundred connections or so."""
    with (Path(tempfile.gettempdir()) / "django-smart-race.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _askers() -> Iterator[list[subprocess.Popen[str]]]:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.grants.askers"],
            cwd=_ROOT,
            env=_get_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(_PROCESSES)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.communicate()


def _tell(processes: list[subprocess.Popen[str]], line: str) -> list[str]:
    """Give each the line, and take one from each."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
    answers = []
    for process in processes:
        assert process.stdout is not None
        answers.append(process.stdout.readline().strip())
    return answers


def _end_token(ehr: EHRSimulator, grant_id: int, *, is_known: bool) -> None:
    """Let the access token end, for the EHR alone or for us as well."""
    ehr.expire_access_tokens()
    now = timezone.now()
    ends = now - timedelta(hours=1) if is_known else now + timedelta(hours=1)
    TokenGrant.objects.filter(pk=grant_id).update(
        received_at=now - timedelta(hours=2), expires_at=ends
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.long
@pytest.mark.process
@pytest.mark.timeout(1200)
@pytest.mark.compliance("REF-08", "SEC-06")
def test_of_64_threads_in_4_processes_one_refreshes_200_times(
    served: EHRSimulator,
) -> None:
    registration = make_registration(server__base_url=served.base_url)
    (grant_id,) = make_grants(served, registration, 1, patient_id=PATIENT)
    (known,) = served.store.refresh_tokens.values()
    known.grant.patient = PATIENT
    with _alone(), _askers() as processes:
        for number in range(200):
            _end_token(served, grant_id, is_known=number % 2 == 0)
            before = reload_grant(grant_id).access_token
            assert _tell(processes, str(grant_id)) == ["ready"] * _PROCESSES
            served.clear_requests()
            answers = _tell(processes, "go")
            got = [each for answer in answers for each in json.loads(answer)]
            assert got == [PATIENT] * _PROCESSES * THREADS, f"round {number}"
            assert len(served.requests_to("refresh")) == 1, f"round {number}"
            token = reload_grant(grant_id).access_token
            used = [
                request.headers["Authorization"]
                for request in served.requests_to("fhir")
                if request.status == 200
            ]
            assert used == [f"Bearer {token}"] * _PROCESSES * THREADS
            assert token != before
    assert served.reused_refresh_tokens == 0
    assert reload_grant(grant_id).status == TokenGrant.Status.ACTIVE


@pytest.mark.django_db(transaction=True)
def test_answer_after_the_read_limit_of_reads_is_waited_for(
    served: EHRSimulator, settings: Any
) -> None:
    registration = make_registration(server__base_url=served.base_url)
    first, second = make_grants(served, registration, 2)
    assert refresh_grants([first]) == RefreshResult(refreshed=1)
    # Shorter than the token endpoint takes.
    settings.SMART_HTTP_TIMEOUT = (5, 0.05, 20)
    assert refresh_grants([second]) == RefreshResult(refreshed=1)


_REFRESH = """
import sys

import django

django.setup()

from django.conf import settings

from tests.grants.working import refresh_grants

settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
settings.SMART_HTTP_TIMEOUT = (5, 5, 5)
print(refresh_grants([int(sys.argv[1])]).refreshed)
"""


@pytest.mark.django_db(transaction=True)
@pytest.mark.long
@pytest.mark.process
def test_response_that_arrived_while_the_process_was_suspended_is_used(
    served: EHRSimulator,
) -> None:
    registration = make_registration(server__base_url=served.base_url)
    (grant_id,) = make_grants(served, registration, 1)
    suspended = threading.Event()
    process = subprocess.Popen(
        [sys.executable, "-c", _REFRESH, str(grant_id)],
        cwd=_ROOT,
        env=_get_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )

    def suspend(respond: Any, request: Any) -> Any:
        response = respond(request)
        if request.path.endswith("/auth/token"):
            process.send_signal(signal.SIGSTOP)
            suspended.set()
        return response

    served.interceptors.append(suspend)
    try:
        assert suspended.wait(60)
        # Longer than the call may take, but not as long as the lease.
        time.sleep(6)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60)[0].strip() == "1"
    served.interceptors.remove(suspend)
    assert refresh_grants([make_due(grant_id)]) == RefreshResult(refreshed=1)
    assert served.reused_refresh_tokens == 0


def test_site_whose_router_names_another_database_refreshes_there(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.grants.routed", str(tmp_path)],
        cwd=_ROOT,
        env=os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
