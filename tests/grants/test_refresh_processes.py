"""Refreshes over sockets, and with another database."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from django_smart.grants.engine import RefreshResult
from django_smart.testing import EHRSimulator
from tests.factories import make_grants, make_registration
from tests.grants.working import refresh_grants
from tests.known import CLIENT_ID, CLIENT_SECRET

_ROOT = Path(__file__).resolve().parents[2]


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
