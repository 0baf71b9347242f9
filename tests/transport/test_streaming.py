"""Answers read piece by piece."""

from __future__ import annotations

import array
import fcntl
import gzip
import sys
import termios
import threading
import tracemalloc

import pytest

from django_smart import transport
from django_smart.exceptions import (
    InsecureURLError,
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from django_smart.protocol.messages import HTTPRequest
from django_smart.testing import EHRSimulator
from tests.transport.servers import (
    LOOPBACK,
    Server,
    answer,
    assert_tells_nothing,
    ends_early,
)


def open_stream(url: str, *, max_body: int = 10**8, total: float = 40):
    return transport.open_stream(
        HTTPRequest(method="GET", url=url),
        timeouts=transport.Timeouts(connect=20, read=20, total=total),
        max_body=max_body,
        insecure_hosts=LOOPBACK,
    )


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_body_is_read_in_pieces_whatever_the_status(status):
    with (
        Server(answer(b"organisations", status=status)) as server,
        open_stream(server.url) as stream,
    ):
        assert stream.head.status_code == int(status[:3])
        assert stream.head.body == b""
        assert stream.head.url == server.url
        assert b"".join(stream.chunks) == b"organisations"
        assert "organisations" not in repr(stream)


def test_body_is_never_held_in_memory_as_a_whole():
    size = 30 * 1024**2
    with Server(answer(bytes(size))) as server:
        tracemalloc.start()
        with open_stream(server.url) as stream:
            assert sum(len(chunk) for chunk in stream.chunks) == size
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The server's side of the connection holds one copy.
    assert peak < size + 4 * 1024**2


def test_body_that_was_left_is_closed_and_the_next_call_works():
    with Server(answer(bytes(10**6))) as server:
        with open_stream(server.url) as stream:
            next(stream.chunks)
        for _ in range(2):
            with open_stream(server.url) as stream:
                assert sum(map(len, stream.chunks)) == 10**6
    # One that was read to its end is used again.
    assert server.connections == 2


def test_drip_ends_at_the_limit_of_the_whole_call():
    def drip(sock, request):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not server.wait(0.1):
            sock.sendall(b"x")

    server = Server(drip)
    with server, ends_early(15), open_stream(server.url, total=4) as stream:
        with pytest.raises(ServerTimeoutError) as caught:
            list(stream.chunks)
        assert_tells_nothing(caught.value)


def count_unreceived(sock):
    """Bytes that the other side's system has not confirmed; Linux alone says so."""
    count = array.array("i", [0])
    if sys.platform == "linux":
        fcntl.ioctl(sock, termios.TIOCOUTQ, count)
    return count[0]


@pytest.mark.parametrize("is_secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "part"])
def test_after_a_suspension_what_has_arrived_is_read(
    is_secure, is_whole, certificate, monkeypatch, host_clock
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    # More would not fit into the buffer of the side that does not read yet.
    body = b"x" * 20_000
    sent = threading.Event()

    def handle(sock, request):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n")
        sock.sendall(body if is_whole else body[:10_000])
        while count_unreceived(sock):
            server.wait(0.01)
        sent.set()
        server.wait(60)

    with (
        Server(handle, context=certificate[0] if is_secure else None) as server,
        open_stream(server.url) as stream,
    ):
        assert sent.wait(60)
        host_clock.shift(50)
        if is_whole:
            assert b"".join(stream.chunks) == body
        else:
            with ends_early(), pytest.raises(ServerTimeoutError):
                list(stream.chunks)


def test_compressed_body_is_unpacked_and_a_broken_one_is_an_error():
    packed = gzip.compress(b"lines\n" * 1000)
    for body, is_whole in [(packed, True), (b"no gzip", False)]:
        handler = answer(body, headers=("Content-Encoding: gzip",))
        with Server(handler) as server, open_stream(server.url) as stream:
            if is_whole:
                assert b"".join(stream.chunks) == b"lines\n" * 1000
                continue
            with pytest.raises(ServerUnreachableError):
                list(stream.chunks)


def test_limits_hold_for_a_stream_too():
    with (
        Server(answer(bytes(200_000))) as server,
        open_stream(server.url, max_body=100_000) as stream,
        pytest.raises(ResponseTooLargeError),
    ):
        list(stream.chunks)


def test_errors_are_ours_and_tell_no_url():
    with pytest.raises(InsecureURLError), open_stream("http://elsewhere.example/x"):
        pass
    with (
        pytest.raises(ServerUnreachableError) as caught,
        open_stream("http://127.0.0.1:9/secret"),
    ):
        pass
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


def test_mounted_server_answers_in_pieces():
    ehr = EHRSimulator("https://ehr.example.org/fhir")
    with (
        transport.mounted("https://ehr.example.org", ehr.adapter()),
        open_stream("https://ehr.example.org/fhir/metadata") as stream,
    ):
        assert stream.head.status_code == 200
        assert b"CapabilityStatement" in b"".join(stream.chunks)
