"""In process and over sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from werkzeug.wrappers import Response

from django_smart.testing import EHRSimulator
from tests.testing.app import PATIENT, App

_ROOT = Path(__file__).parent.parent.parent


def test_adapter_streams_and_unpacks_as_urllib3_does(
    ehr: EHRSimulator, session: requests.Session
) -> None:
    response = session.get(f"{ehr.base_url}/metadata", stream=True)
    chunks = list(response.raw.stream(1000, decode_content=True))
    assert len(chunks) > 1
    assert b"".join(chunks).startswith(b"{")
    assert response.reason == "OK"


def test_adapter_makes_an_endless_body_as_it_is_read(ehr: EHRSimulator) -> None:
    made = []
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        while True:
            made.append(1)
            yield b"x" * 100

    def answer_for_ever(*_: Any) -> Response:
        response = Response(endless(), headers={"Set-Cookie": "a=1"})
        response.headers.add("Set-Cookie", "b=2")
        response.call_on_close(closed.set)
        return response

    ehr.interceptors.append(answer_for_ever)
    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        with session.get(ehr.base_url, stream=True) as response:
            assert response.raw.read(250) == b"x" * 250
            assert response.raw.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
    assert len(made) < 200
    assert closed.is_set()


def test_last_interceptor_answers_first(app: App) -> None:
    def add(word: str) -> Any:
        def add_word(respond: Any, request: Any) -> Response:
            response: Response = respond(request)
            response.headers.add("X-Words", word)
            return response

        return add_word

    def refuse(respond: Any, request: Any) -> Response:
        return Response("No", status=503)

    app.ehr.interceptors += [add("first"), add("second")]
    url = f"{app.ehr.base_url}/metadata"
    assert app.session.get(url).headers["X-Words"] == "first, second"
    assert len(app.ehr.requests_to("metadata")) == 1
    app.ehr.interceptors.insert(0, refuse)
    response = app.session.get(url)
    assert (response.status_code, response.headers["X-Words"]) == (503, "first, second")
    # What answered otherwise did not let the EHR see the request.
    assert len(app.ehr.requests_to("metadata")) == 1
    app.ehr.interceptors.clear()
    assert "X-Words" not in app.session.get(url).headers


def test_adapter_keeps_to_its_own_origin(
    ehr: EHRSimulator, session: requests.Session
) -> None:
    headers = {"Authorization": "Bearer secret"}
    with pytest.raises(requests.ConnectionError, match="elsewhere"):
        session.post("https://elsewhere.example.net/x?a=1", "body", headers=headers)
    (recorded,) = ehr.requests_to("elsewhere")
    assert recorded.status == 0
    assert recorded.headers["authorization"] == "Bearer secret"
    assert recorded.url == "https://elsewhere.example.net/x?a=1"
    assert recorded.body == b"body"


def test_address_arrives_as_it_was_sent(app: App) -> None:
    tokens = app.launch()
    app.get("Observation?code=http%3A%2F%2Floinc.org%7C4548-4&_count=1", tokens)
    recorded = app.ehr.requests[-1]
    assert recorded.query == [("code", "http://loinc.org|4548-4"), ("_count", "1")]
    assert "code=http%3A%2F%2Floinc.org%7C4548-4" in recorded.url


def test_served_urls_are_the_real_ones(ehr: EHRSimulator) -> None:
    before = ehr.base_url
    with ehr.serve() as origin, requests.Session() as session:
        assert origin.startswith("http://localhost:")
        assert ehr.base_url == f"{origin}/v/r4/sim/abc/fhir"
        document = session.get(f"{ehr.base_url}/.well-known/smart-configuration").json()
        assert document["issuer"] == f"{origin}/v/r4/sim/abc"
        assert document["token_endpoint"].startswith(origin)
        tokens = App(ehr, session).launch()
        assert tokens["smart_style_url"].startswith(origin)
    assert ehr.base_url == before
    port = int(origin.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)


def test_server_closes_connections_that_wait(ehr: EHRSimulator) -> None:
    """Browsers open some in advance, and send nothing."""
    before = threading.enumerate()
    with ehr.serve() as origin:
        port = int(origin.rpartition(":")[2])
        waiting = socket.create_connection(("localhost", port), timeout=60)
        requests.get(f"{ehr.base_url}/metadata")
    with waiting:
        assert waiting.recv(1) == b""
    left = [one for one in threading.enumerate() if one not in before]
    assert not [one for one in left if "process_req" in one.name]


def test_given_issuer_moves_along_if_it_is_at_the_same_origin() -> None:
    own = EHRSimulator(
        "https://ehr.example.org/fhir", issuer="https://ehr.example.org/oidc"
    )
    with own.serve() as origin, requests.Session() as session:
        assert own.issuer == f"{origin}/oidc"
        found = session.get(f"{own.issuer}/.well-known/openid-configuration")
        assert found.json()["issuer"] == own.issuer
    assert own.issuer == "https://ehr.example.org/oidc"
    far = EHRSimulator(issuer="https://login.example.net")
    with far.serve():
        assert far.issuer == "https://login.example.net"


def test_taken_port_is_an_error(ehr: EHRSimulator) -> None:
    with ehr.serve() as origin:
        port = int(origin.rpartition(":")[2])
        other = EHRSimulator()
        with pytest.raises(OSError, match="in use"), other.serve(port=port):
            raise AssertionError("served twice")


def test_parallel_use_of_a_code_and_of_a_refresh_token_succeeds_once(
    ehr: EHRSimulator,
) -> None:
    with (
        ehr.serve(),
        requests.Session() as session,
        ThreadPoolExecutor(4) as pool,
    ):
        app = App(ehr, session)
        code = app.get_code(scope="launch/patient offline_access")
        responses = list(pool.map(lambda _: app.exchange(code), range(4)))
        assert sorted(one.status_code for one in responses) == [200, 400, 400, 400]
        tokens = app.launch("launch/patient offline_access")
        token = tokens["refresh_token"]
        responses = list(pool.map(lambda _: app.refresh(token), range(4)))
        assert sorted(one.status_code for one in responses) == [200, 400, 400, 400]
        assert ehr.reused_refresh_tokens == 3


def test_base_url_can_be_the_origin_itself() -> None:
    ehr = EHRSimulator("https://ehr.example.org")
    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        app = App(ehr, session)
        tokens = app.launch()
        assert app.get(f"Patient/{PATIENT}", tokens).status_code == 200
        # The page at "/" is for people.
        assert "Sign in" in session.get("https://ehr.example.org/").text


def test_it_needs_neither_django_settings_nor_pytest() -> None:
    script = """
import sys
from werkzeug.test import Client
from django_smart.testing import EHRSimulator
page = Client(EHRSimulator().wsgi_app).get("/")
assert page.status_code == 200, page.status
assert "Harbour" in page.text
from django.conf import settings
assert not settings.configured
assert not any(name.startswith(("pytest", "_pytest")) for name in sys.modules)
ours = {name for name in sys.modules if name.startswith("django_smart.")}
assert all(name.startswith("django_smart.testing") for name in ours), ours
"""
    environ = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=True,
        cwd=_ROOT,
        env=environ,
    )


def test_two_simulators_do_not_mix(ehr: EHRSimulator) -> None:
    other = EHRSimulator("https://other.example.org/fhir")
    with requests.Session() as session:
        session.mount(ehr.origin, ehr.adapter())
        session.mount(other.origin, other.adapter())
        tokens = App(ehr, session).launch()
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        refused = session.get(f"{other.base_url}/Patient/{PATIENT}", headers=headers)
        assert refused.status_code == 401


@pytest.mark.parametrize("fault", ["discovery_late", "discovery_endless"])
def test_slow_answer_does_not_hold_up_the_end(ehr: EHRSimulator, fault: str) -> None:
    ehr.faults = [fault]
    arrived = threading.Event()
    replace = ehr.wait

    def wait(seconds: float) -> bool:
        arrived.set()
        return replace(seconds)

    ehr.wait = wait  # type: ignore[method-assign]  # notes that a request is there
    started = time.monotonic()
    with ThreadPoolExecutor() as pool, requests.Session() as session:
        with ehr.serve():
            url = f"{ehr.base_url}/.well-known/smart-configuration"
            answer = pool.submit(session.get, url, timeout=60)
            assert arrived.wait(60)
        with contextlib.suppress(requests.RequestException):
            answer.result()
    assert time.monotonic() - started < 25


def test_https_is_served_to_everybody_at_once(
    ehr: EHRSimulator, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with ehr.serve(ssl_context=context) as origin:
        assert ehr.base_url.startswith(f"{origin}/")
        port = int(origin.rpartition(":")[2])
        # Opened in advance, as browsers do, and nothing said yet.
        with socket.create_connection(("localhost", port)):
            response = requests.get(
                f"{ehr.base_url}/metadata", verify=str(tmp_path / "ca.pem"), timeout=60
            )
            assert response.json()["resourceType"] == "CapabilityStatement"
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{ehr.base_url}/metadata", timeout=60)
    assert ehr.origin != origin
