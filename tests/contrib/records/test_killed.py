"""A process is killed while it reads: nothing is missing, and nothing comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Timer
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection
from django.utils import timezone

from django_smart.contrib.records import sync_record
from django_smart.contrib.records.models import SyncRun
from django_smart.contrib.records.sinks import ModelSink, NDJSONSink
from django_smart.fhir.json import load_json
from django_smart.models import TokenGrant
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.state import Grant, RefreshToken, new_id
from tests.contrib.records.world import shorten_pages
from tests.factories import make_grant, make_registration, make_user
from tests.known import CLIENT_ID, CLIENT_SECRET, PATIENT

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]

_ROOT = Path(__file__).resolve().parents[3]
_SCOPE = "patient/*.rs offline_access"
_NUMBER = 400


@pytest.fixture
def served(settings: Any) -> Iterator[EHRSimulator]:
    """An EHR behind sockets, with a long chart."""
    settings.SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
    ehr = EHRSimulator("http://127.0.0.1/fhir", rotate_refresh_tokens=False)
    ehr.register_client(CLIENT_ID, client_secret=CLIENT_SECRET)
    old = next(iter(ehr.data["Observation"].values()))
    for number in range(_NUMBER):
        name = f"result-{number}"
        subject = {"reference": f"Patient/{PATIENT}"}
        ehr.data["Observation"][name] = {**old, "id": name, "subject": subject}

    def respond(handler: Any, request: Any) -> Any:
        shorten_pages(request, 10)
        return handler(request)

    ehr.interceptors.append(respond)
    with ehr.serve("127.0.0.1"):
        yield ehr


@pytest.fixture
def grant(served: EHRSimulator) -> TokenGrant:
    """A connection whose access token has ended."""
    registration = make_registration(
        server__base_url=served.base_url, ehr_scope="", standalone_scope=_SCOPE
    )
    known = Grant(
        client_id=CLIENT_ID,
        user=None,
        patient=PATIENT,
        scopes=_SCOPE.split(),
        context={"patient": PATIENT},
    )
    token = RefreshToken(value=new_id(), grant=known, expires_at=None)
    served.store.refresh_tokens[token.value] = token
    return make_grant(
        registration,
        kind=TokenGrant.Kind.STANDALONE,
        user=make_user(),
        refresh_token=token.value,
        patient_id=PATIENT,
        scope=_SCOPE,
        scope_granted=_SCOPE,
        expires_at=timezone.now(),
    )


@pytest.mark.parametrize(
    "moment",
    [1, *(pytest.param(moment, marks=pytest.mark.long) for moment in range(2, 11))],
)
@pytest.mark.parametrize("has_files", [False, True])
def test_run_continues_after_its_process_was_killed(
    served: EHRSimulator,
    grant: TokenGrant,
    tmp_path: Path,
    moment: int,
    has_files: bool,
) -> None:
    directory = str(tmp_path) if has_files else ""
    command = ["reader", str(grant.pk), directory]
    _kill_twice(served, command, moment)
    _check_record(grant, tmp_path if has_files else None)


@pytest.mark.parametrize(
    "has_files", [False, pytest.param(True, marks=pytest.mark.long)]
)
def test_run_continues_after_a_worker_was_killed(
    served: EHRSimulator,
    grant: TokenGrant,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    has_files: bool,
) -> None:
    queue = str(tmp_path_factory.mktemp("queue"))
    _kill_twice(served, ["worker", queue, str(tmp_path) if has_files else ""], 3)
    _check_record(grant, tmp_path if has_files else None)


def _kill_twice(ehr: EHRSimulator, command: list[str], moment: int) -> None:
    for _ in range(2):
        _read_until_killed(ehr, command, moment)
        # Its time is over, as it would be after five minutes.
        then = timezone.now() - timedelta(seconds=1)
        assert SyncRun.objects.exclude(owner="").update(busy_until=then) == 1


def _check_record(grant: TokenGrant, directory: Path | None) -> None:
    """Nothing is missing, and nothing came twice."""
    run = sync_record(grant, NDJSONSink(directory) if directory else ModelSink())
    assert run.is_complete, (run.states, run.last_error)
    if directory:
        (path,) = directory.iterdir()
        lines = path.read_bytes().splitlines()
        names = Counter(load_json(line)["id"] for line in lines)
    else:
        names = Counter(run.copies.values_list("resource_id", flat=True))
    assert set(names.values()) == {1}
    assert {f"result-{number}" for number in range(_NUMBER)} <= set(names)


def _read_until_killed(ehr: EHRSimulator, command: list[str], moment: int) -> None:
    """The first moments are during a request, and others while its answer is stored."""
    name, *arguments = command
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.contrib.records.{name}", *arguments],
        cwd=_ROOT,
        env=os.environ
        | {
            "DATABASE_URL": _get_database_url(),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        },
    )
    left = 2 * moment

    def count(request: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            Timer(moment % 5 * 0.01, process.kill).start()

    ehr.on_request = count
    assert process.wait(120) == -signal.SIGKILL
    ehr.on_request = None


def _get_database_url() -> str:
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    url = os.environ["DATABASE_URL"]
    return urlsplit(url)._replace(path=f"/{name}").geturl()
