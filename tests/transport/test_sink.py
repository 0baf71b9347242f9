"""Answers that are larger than memory go to a file."""

from __future__ import annotations

import io
import tracemalloc

import pytest

from django_smart import transport
from django_smart.exceptions import ResponseTooLargeError
from django_smart.protocol.messages import HTTPRequest
from tests.transport.servers import LOOPBACK, Server, answer


def download(url: str, sink: io.BytesIO, *, max_body: int = 10**8):
    return transport.send(
        HTTPRequest(method="GET", url=url),
        timeouts=transport.Timeouts(connect=20, read=20, total=40),
        max_body=max_body,
        insecure_hosts=LOOPBACK,
        sink=sink,
    )


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_body_goes_to_the_sink_whatever_the_status(status):
    sink = io.BytesIO()
    with Server(answer(b"organisations", status=status)) as server:
        response = download(server.url, sink)
    assert response.status_code == int(status[:3])
    assert response.body == b""
    assert sink.getvalue() == b"organisations"


def test_body_is_not_held_in_memory(tmp_path):
    size = 30 * 1024**2
    body = bytes(size)
    with (
        Server(answer(body)) as server,
        (tmp_path / "body").open("wb") as sink,
    ):
        tracemalloc.start()
        download(server.url, sink)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "body").stat().st_size == size
    # The server's side of the connection holds one copy.
    assert peak < size + 4 * 1024**2


def test_limit_holds_for_a_sink_too():
    sink = io.BytesIO()
    with (
        Server(answer(bytes(200_000))) as server,
        pytest.raises(ResponseTooLargeError),
    ):
        download(server.url, sink, max_body=100_000)
    assert len(sink.getvalue()) <= 100_000
