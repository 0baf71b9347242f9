"""Walks by Chromium: real tabs, frames, history and cookies."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.serving import running_server
from tests.chromium import open_chromium
from tests.ehr import EHR_SCOPE, STANDALONE_SCOPE
from tests.factories import make_registration, register_at
from tests.walk.chromium import ChromiumWalker
from tests.walk.traffic import Traffic

pytestmark = [
    pytest.mark.browser,
    pytest.mark.process,
    pytest.mark.django_db(transaction=True),
    pytest.mark.urls("tests.walk.site"),
]

# Another host than the EHR's, so another site: its frames are in a jar of their own.
_HOST = "127.0.0.1"


@pytest.fixture
def traffic() -> Traffic:
    """What the EHR and the site have to answer."""
    return Traffic()


@pytest.fixture
def real_ehr(traffic: Traffic) -> Iterator[EHRSimulator]:
    """The EHR at ``localhost``, on a port of its own."""
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    ehr.interceptors.append(traffic.watch(lambda respond, request: respond(request)))
    with ehr.serve():
        yield ehr


@contextmanager
def _running_asgi(traffic: Traffic) -> Iterator[int]:
    """The site by uvicorn, in a thread; gives the port."""
    app = traffic.watch_asgi(ASGIHandler())
    server = uvicorn.Server(
        uvicorn.Config(app, _HOST, 0, lifespan="off", log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def stack() -> str:
    """How Django is served; a test may choose the other one."""
    return "wsgi"


@pytest.fixture
def site_url(
    db: None, real_ehr: EHRSimulator, traffic: Traffic, settings: Any, stack: str
) -> Iterator[str]:
    """The site of the walks in a thread, registered at the EHR, which may embed it."""
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost", _HOST]
    settings.SMART_LAUNCHES_PER_BROWSER = 6
    settings.X_FRAME_OPTIONS = "SAMEORIGIN"
    with (
        _running_asgi(traffic)
        if stack == "asgi"
        else running_server(traffic.watch(WSGIHandler()), _HOST, 0)
    ) as port:
        url = f"http://{_HOST}:{port}"
        make_registration(
            redirect_uri=f"{url}/smart/callback/",
            ehr_scope=f"{EHR_SCOPE} online_access",
            standalone_scope=f"{STANDALONE_SCOPE} patient/Observation.rs",
            server__base_url=real_ehr.base_url,
            server__frame_origins=[real_ehr.origin],
            server__authorize_in_frame=True,
        )
        register_at(
            real_ehr, f"{url}/smart/callback/", launch_url=f"{url}/smart/launch/"
        )
        yield url


def walk(
    ehr: EHRSimulator, site_url: str, traffic: Traffic, *, steps: int
) -> dict[str, int]:
    """
    One walk; ``WALK_SEED`` repeats its choices.

    Raises:
        MismatchError: with the seed and the steps.
    """
    seed = int(os.environ.get("WALK_SEED", secrets.randbelow(10**6)))
    print(f"Chromium, {steps} steps: WALK_SEED={seed}")  # noqa: T201 (to repeat it)
    with open_chromium() as browser:
        walker = ChromiumWalker(browser, ehr, site_url, traffic, seed=seed)
        try:
            walker.walk(steps)
        except Exception as exc:
            exc.add_note(f"WALK_SEED={seed}")
            raise
        finally:
            walker.close()
    print(f"zero mismatches; pages: {walker.served}")  # noqa: T201
    return walker.served


@pytest.mark.timeout(1200)
def test_no_step_of_a_walk_shows_another_patient(real_ehr, site_url, traffic):
    served = walk(real_ehr, site_url, traffic, steps=60)
    # It was a walk.
    assert served["shown"] > 10


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("number", "stack"), [(1, "wsgi"), (2, "wsgi"), (3, "asgi")])
def test_no_step_of_a_long_walk_shows_another_patient(
    real_ehr, site_url, traffic, number
):
    served = walk(real_ehr, site_url, traffic, steps=500)
    assert served["shown"] > 150
    assert served["refused"] > 20
