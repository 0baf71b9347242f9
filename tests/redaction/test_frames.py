"""
What a traceback holds that is captured in the middle of a call.

A soft time limit of Celery, or anything else that a signal handler raises, is no error
of the transport: it passes through every frame, and reporters show their variables.
"""

from __future__ import annotations

import io
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from requests.adapters import BaseAdapter

from django_smart import transport
from django_smart.clients import fhir_client_for
from django_smart.grants.ending import revoke_tokens
from django_smart.grants.introspection import introspect
from django_smart.grants.refresh import refresh_grant
from django_smart.models import TokenGrant
from django_smart.protocol.messages import HTTPRequest
from django_smart.redaction import SMARTExceptionReporter, SMARTExceptionReporterFilter
from django_smart.testing import EHRSimulator
from tests.ehr import CLIENT_SECRET, connect, make_browser

pytestmark = pytest.mark.django_db


class OutOfTime(BaseAdapter):
    """The time limit is reached while this server is asked."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        raise SoftTimeLimitExceeded

    def close(self) -> None:
        """Nothing is held."""


def walk(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def find_shown(traceback: TracebackType | None, *, but: str = "") -> dict[str, str]:
    """Every variable of the captured frames as a reporter shows it."""
    return {
        f"{module}.{frame.f_code.co_name}.{name}": repr(value)
        for frame in walk(traceback)
        if not (module := frame.f_globals["__name__"]).startswith("tests.")
        and not (but and module.startswith(but))
        for name, value in frame.f_locals.items()
    }


USES: dict[str, Callable[[TokenGrant], object]] = {
    "read": lambda grant: fhir_client_for(grant=grant).read("Observation", "o"),
    "search": lambda grant: list(fhir_client_for(grant=grant).search("Observation")),
    "create": lambda grant: fhir_client_for(grant=grant).create(
        {
            "resourceType": "Observation",
            "subject": {"reference": f"Patient/{grant.patient_id}"},
        }
    ),
    "download": lambda grant: fhir_client_for(grant=grant).download(
        "Binary/b", io.BytesIO()
    ),
    "session": lambda grant: fhir_client_for(grant=grant).session.get(
        f"{grant.registration.server.base_url}/Patient/p"
    ),
    "refresh": refresh_grant,
    "revoke": revoke_tokens,
    "introspect": lambda grant: introspect(
        grant.refresh_token,
        registration=grant.registration,
        access_token=grant.access_token,
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.usefixtures("registration")
def test_time_limit_in_mid_call_captures_no_token(
    ehr: EHRSimulator, use: Callable[[TokenGrant], object]
) -> None:
    grant = connect(make_browser(), ehr).grant
    assert grant is not None
    secrets = (grant.access_token, grant.refresh_token, CLIENT_SECRET)
    with transport.mounted("https://ehr.example.org", OutOfTime()):
        try:
            use(grant)
        except SoftTimeLimitExceeded:
            error_type, error, traceback = sys.exc_info()
        else:
            pytest.fail("nothing was sent")
    shown = find_shown(traceback)
    assert any(name.startswith("django_smart.transport") for name in shown)
    reporter = SMARTExceptionReporter(None, error_type, error, traceback)
    reporter.filter = SMARTExceptionReporterFilter()
    report = reporter.get_traceback_html() + reporter.get_traceback_text()
    assert "SoftTimeLimitExceeded" in report
    for secret in secrets:
        assert [name for name, text in shown.items() if secret in text] == []
        assert secret not in report


def test_token_of_a_grant_has_no_repr(grant: TokenGrant) -> None:
    for token in (grant.access_token, grant.refresh_token):
        assert str(token) not in repr(token)
        assert str(token) not in repr({"any name": token})


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Raise the time limit in this thread, as Celery does, after some seconds."""
    timers: list[threading.Timer] = []
    this_thread = threading.get_ident()

    def reach_limit(*_: object) -> None:
        raise SoftTimeLimitExceeded

    def start(seconds: float) -> None:
        timer = threading.Timer(
            seconds, signal.pthread_kill, (this_thread, signal.SIGUSR1)
        )
        timers.append(timer)
        timer.start()

    before = signal.signal(signal.SIGUSR1, reach_limit)
    yield start
    for timer in timers:
        timer.cancel()
    signal.signal(signal.SIGUSR1, before)


SECRET = "canary-3f5d"


@pytest.mark.parametrize(
    ("token", "body", "waits_in"),
    [
        (SECRET, None, "readinto"),
        (SECRET, SECRET.encode(), "readinto"),
        # The socket takes no more of these.
        (SECRET, SECRET.encode() * 2_000_000, "send"),
        (SECRET * 2_000_000, None, "send"),
    ],
    ids=["waiting", "waiting with a body", "sending the body", "sending the header"],
)
def test_time_limit_at_a_socket_captures_no_token(
    alarm: Callable[[float], None], token: str, body: bytes | None, waits_in: str
) -> None:
    # Nobody reads what is sent there.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        request = HTTPRequest(
            method="POST",
            url=f"http://127.0.0.1:{listener.getsockname()[1]}/fhir",
            headers={"Authorization": f"Bearer {token}"},
            body=body,
        )
        alarm(0.5)
        try:
            transport.send(
                request,
                timeouts=transport.Timeouts(connect=20, read=20, total=40),
                max_body=1000,
                insecure_hosts=frozenset({"127.0.0.1"}),
            )
        except SoftTimeLimitExceeded:
            traceback = sys.exc_info()[2]
        else:
            pytest.fail("there was an answer")
    names = [frame.f_code.co_name for frame in walk(traceback)]
    assert waits_in in names
    # The standard library's own frames while it puts the header together; see
    # docs/how-to/keys-and-logs.rst.
    shown = find_shown(traceback, but="http.client")
    assert [name for name, text in shown.items() if SECRET in text] == []
    kept = {
        name.rpartition(".")[0]
        for name, text in find_shown(traceback).items()
        if SECRET in text
    }
    # On a busy machine, the limit may strike before the header is sent.
    parts = {"_send_output", "endheaders", "putheader"}
    assert kept <= {f"http.client.{part}" for part in parts}
