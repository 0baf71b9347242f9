"""A worker is killed while it reads: nothing is missing, and nothing comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.db import connection
from django.utils import timezone

from django_smart.contrib.records import sync_record
from django_smart.contrib.records.models import SyncRun
from django_smart.fhir.json import load_json
from django_smart.models import TokenGrant
from django_smart.testing import EHRSimulator, RecordedRequest
from django_smart.testing.simulator.state import Grant, RefreshToken, new_id
from tests.contrib.records.killing import make_sink
from tests.contrib.records.world import shorten_pages
from tests.factories import make_grant, make_registration, make_user
from tests.known import CLIENT_ID, CLIENT_SECRET, PATIENT

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]

_ROOT = Path(__file__).resolve().parents[3]
_SCOPE = "patient/*.rs offline_access"
_NUMBER = 60
# When the sink kills the worker.
_IN_SINK = (
    *("begin", "truncate", "after truncate", "put:3", "position:4", "commit:3"),
    *("delete:2", "after delete:2", "complete"),
)
# The request during which it is killed: the end of its path, and which one it is.
_IN_REQUESTS = (
    *("/metadata", f"/Patient/{PATIENT}", "/Encounter", "/Observation"),
    *("/fhir#3", "/Practitioner/new", "/Observation/result-20"),
)
_OTHER_MOMENTS = (*_IN_SINK, *_IN_REQUESTS)


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
    [
        "after put:3",
        *(pytest.param(each, marks=pytest.mark.long) for each in _OTHER_MOMENTS),
    ],
)
@pytest.mark.parametrize("has_files", [False, True])
def test_run_continues_after_a_worker_was_killed(
    served: EHRSimulator,
    grant: TokenGrant,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    moment: str,
    has_files: bool,
) -> None:
    directory = str(tmp_path) if has_files else ""
    sink = make_sink(directory)
    assert sync_record(grant, sink).is_complete
    _change_chart(served)
    _make_full_due()
    # After the last moment, a second worker has nothing to do.
    for _ in range(1 if moment == "complete" else 2):
        queue = str(tmp_path_factory.mktemp("queue"))
        _read_until_killed(served, [queue, directory], moment)
        # Its time is over, as it would be after five minutes.
        then = timezone.now() - timedelta(seconds=1)
        SyncRun.objects.exclude(owner="").update(busy_until=then)
    run = sync_record(grant, sink)
    assert run.is_complete, (run.states, run.last_error)
    found = _read_lines(tmp_path) if has_files else _read_rows(run)
    chart = {
        (kind, one["id"]): one["meta"]["versionId"]
        for kind in run.states
        for one in served.data[kind].values()
        if PATIENT in str(one)
    }
    assert {name: found.get(name) for name in chart} == chart
    others = found.keys() - chart.keys()
    assert ("Practitioner", "new") in others
    assert {kind for kind, _ in others} <= {"Organization", "Practitioner"}


def _change_chart(ehr: EHRSimulator) -> None:
    """Results are new, changed and deleted, and one refers to a new doctor."""
    results = ehr.data["Observation"]
    for number in range(_NUMBER):
        result = results.pop(f"result-{number}")
        if number % 20:
            meta = {**result["meta"], "versionId": "2"}
            results[result["id"]] = {**result, "meta": meta}
        name = f"new-{number}"
        results[name] = {**result, "id": name}
    doctor = next(iter(ehr.data["Practitioner"].values()))
    ehr.data["Practitioner"]["new"] = {**doctor, "id": "new"}
    results["new-1"]["performer"] = [{"reference": "Practitioner/new"}]


def _make_full_due() -> None:
    then = timezone.now() - timedelta(days=8)
    SyncRun.objects.update(started_at=then, finished_at=then, full_at=then)


def _read_rows(run: SyncRun) -> dict[tuple[str, str], str]:
    copies = list(run.copies.all())
    found = {
        (one.resource_type, one.resource_id): one.resource["meta"]["versionId"]
        for one in copies
    }
    assert len(found) == len(copies)
    return found


def _read_lines(directory: Path) -> dict[tuple[str, str], str]:
    """Nothing was written or deleted twice."""
    found: dict[tuple[str, str], str] = {}
    (path,) = directory.iterdir()
    for line in path.read_bytes().splitlines():
        resource = load_json(line)
        if resource["resourceType"] == "Bundle":
            kind, id_ = resource["entry"][0]["request"]["url"].split("/")
            del found[kind, id_]
            continue
        name = resource["resourceType"], resource["id"]
        version = resource["meta"]["versionId"]
        assert found.get(name) != version, "delivered twice"
        found[name] = version
    return found


def _read_until_killed(ehr: EHRSimulator, arguments: list[str], moment: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.contrib.records.worker", *arguments, moment],
        cwd=_ROOT,
        env=os.environ
        | {
            "DATABASE_URL": _get_database_url(),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        },
    )
    end, _, number = moment.partition("#")
    left = int(number or 1)

    def kill(request: RecordedRequest) -> None:
        """Before the answer arrives."""
        nonlocal left
        if moment in _IN_REQUESTS and request.url.partition("?")[0].endswith(end):
            left -= 1
            if left == 0:
                process.kill()

    ehr.on_request = kill
    try:
        assert process.wait(120) == -signal.SIGKILL
    finally:
        process.kill()
        ehr.on_request = None


def _get_database_url() -> str:
    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite":
        return f"sqlite:///{name}"
    url = os.environ["DATABASE_URL"]
    return urlsplit(url)._replace(path=f"/{name}").geturl()
