"""Servers within the process, for simulators."""

from __future__ import annotations

import io
import time

import pytest
import requests

from django_smart import transport
from django_smart.exceptions import (
    InsecureURLError,
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
    TransportError,
)
from tests.transport.servers import (
    CANARY,
    Server,
    answer,
    assert_tells_nothing,
    send,
)


class InProcess(requests.adapters.BaseAdapter):
    """Answers with its name."""

    def __init__(self, name: str, *, delay: float = 0) -> None:
        super().__init__()
        self.name = name
        self.delay = delay
        self.seen: list[requests.PreparedRequest] = []

    def send(self, request, *args, **kwargs):
        self.seen.append(request)
        time.sleep(self.delay)
        response = requests.Response()
        response.status_code = 200
        response.headers["X-Name"] = self.name
        response.raw = io.BytesIO(self.name.encode())
        response.request = request
        return response

    def close(self):
        """Nothing to close."""


def test_longest_mounted_prefix_answers():
    short, long = InProcess("short"), InProcess("long")
    with (
        transport.mounted("https://EHR.example/", short),
        transport.mounted("https://ehr.example/fhir", long),
    ):
        assert send("https://ehr.example/token").body == b"short"
        response = send(
            "https://ehr.example/fhir/Patient?a%3Ab=c", method="POST", body=b"12"
        )
    assert response.body == b"long"
    assert response.headers == {"x-name": "long"}
    seen = long.seen[0]
    assert (seen.method, seen.path_url) == ("POST", "/fhir/Patient?a%3Ab=c")
    assert (seen.body, seen.headers["content-length"]) == (b"12", "2")


def test_unmounted_prefix_is_the_network_again():
    adapter = InProcess("one")
    with Server(answer(b"network")) as server:
        with transport.mounted("http://127.0.0.1", adapter):
            with transport.mounted("http://127.0.0.1", InProcess("two")):
                assert send(server.url).body == b"two"
            assert send(server.url).body == b"network"
        assert send(server.url).body == b"network"
    assert adapter.seen == []


def test_rules_hold_within_the_process():
    with transport.mounted("http", InProcess("x" * 100)):
        with pytest.raises(InsecureURLError):
            send("http://ehr.example/")
        with pytest.raises(ResponseTooLargeError):
            send("https://ehr.example/", max_body=99)
    slow = transport.mounted("https://", InProcess("slow", delay=0.2))
    with slow:
        # It is here, so it is used.
        assert send("https://ehr.example/", total=0.1).body == b"slow"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (requests.ConnectionError, ServerUnreachableError),
        (requests.ReadTimeout, ServerTimeoutError),
        (requests.exceptions.SSLError, ServerUnreachableError),
    ],
)
def test_errors_of_requests_are_ours_without_their_text(error, expected):
    class Broken(InProcess):
        def send(self, request, *args, **kwargs):
            raise error(f"failed: {request.url}")

    broken = transport.mounted("https://", Broken("broken"))
    with broken, pytest.raises(TransportError) as caught:
        send(f"https://ehr.example/?code={CANARY}")
    assert type(caught.value) is expected
    assert_tells_nothing(caught.value)


def test_server_within_the_process_may_send_by_itself():
    class Gateway(InProcess):
        def send(self, request, *args, **kwargs):
            self.name = send("https://inner.example/", total=10).body.decode()
            return super().send(request, **kwargs)

    with (
        transport.mounted("https://outer.example", Gateway("outer")),
        transport.mounted("https://inner.example", InProcess("inner")),
    ):
        assert send("https://outer.example/").body == b"inner"
