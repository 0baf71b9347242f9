"""No server can keep a call for longer, or send more, than allowed."""

from __future__ import annotations

import gzip
import socket
import time
import tracemalloc

import pytest

from django_smart.exceptions import (
    ResponseTooLargeError,
    ServerTimeoutError,
)
from django_smart.transport import connections
from tests.transport.servers import (
    CANARY,
    Server,
    answer,
    assert_tells_nothing,
    close_after,
    ends_early,
    send,
)


def test_silent_server_ends_at_the_read_limit():
    with Server(lambda sock, request: server.wait(60)) as server:
        with ends_early(), pytest.raises(ServerTimeoutError) as caught:
            send(server.url, read=1, headers={"Authorization": f"Bearer {CANARY}"})
        assert len(server.requests) == 1
    assert str(caught.value) == "127.0.0.1 did not respond within the time limit"
    assert_tells_nothing(caught.value)


def test_silence_in_the_middle_ends_at_the_limit_of_the_call():
    def begin(sock, request):
        server.wait(3)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        server.wait(60)

    with Server(begin) as server:
        # Early enough: a limit that began anew after the headers would take 7 seconds.
        with ends_early(6.9), pytest.raises(ServerTimeoutError):
            send(server.url, total=4)
        assert len(server.requests) == 1


def test_limit_around_a_call_holds_for_it():
    with (
        Server(lambda sock, request: server.wait(60)) as server,
        ends_early(),
        connections.limit_call(0.25),
        pytest.raises(ServerTimeoutError),
    ):
        send(server.url)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Drip: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFF\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    ],
    ids=["status", "header", "body", "to-close", "chunk", "chunk-line", "trailer"],
)
def test_dripping_answer_ends_at_the_limit_of_the_call(start):
    def drip(sock, request):
        sock.sendall(start)
        while not server.wait(0.02):
            sock.sendall(b"a")

    with Server(drip) as server:
        with ends_early(), pytest.raises(ServerTimeoutError) as caught:
            send(server.url, total=1)
        assert len(server.requests) == 1
    assert_tells_nothing(caught.value)


def test_endless_interim_answers_end_at_the_limit_of_the_call():
    def flood(sock, request):
        while not server.wait(0):
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    with Server(flood) as server, ends_early(), pytest.raises(ServerTimeoutError):
        send(server.url, total=1)


def test_answer_that_comes_late_but_in_time_is_taken():
    def handle(sock, request):
        server.wait(0.3)
        answer(b"late")(sock, request)

    with Server(handle) as server:
        assert send(server.url, read=20, total=40).body == b"late"


# More than the system keeps of what was sent and not yet taken.
LARGE = b"x" * 20_000_000


def test_upload_that_is_taken_slowly_may_take_longer_than_connecting():
    with Server(answer(b"taken"), pause=0.01) as server:
        response = send(server.url, method="POST", body=LARGE, connect=0.5)
        assert response.body == b"taken"
        assert server.requests[0].endswith(b"\r\n\r\n" + LARGE)


def test_upload_that_is_taken_too_slowly_ends_at_the_limit_of_the_call():
    with Server(answer(), pause=0.2) as server:
        with ends_early(), pytest.raises(ServerTimeoutError):
            send(server.url, method="POST", body=LARGE, total=1)
        assert server.requests == []


def test_upload_that_is_not_taken_ends_at_the_limit_of_the_call():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with ends_early(), pytest.raises(ServerTimeoutError):
            send(url, method="POST", body=LARGE, total=0.25)


def test_connecting_ends_at_the_connect_limit(monkeypatch):
    def connect(sock, address, /):
        time.sleep(sock.gettimeout())
        raise TimeoutError

    monkeypatch.setattr(socket.socket, "connect", connect)
    with ends_early(), pytest.raises(ServerTimeoutError):
        send("http://127.0.0.1:9/", connect=0.2)


def test_connecting_to_many_dead_addresses_ends_at_the_limit_of_the_call(monkeypatch):
    def connect(sock, address, /):
        time.sleep(sock.gettimeout())
        raise TimeoutError

    addresses = socket.getaddrinfo("127.0.0.1", 9, type=socket.SOCK_STREAM) * 200
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: addresses)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with ends_early(), pytest.raises(ServerTimeoutError):
        send("http://127.0.0.1:9/", connect=0.2, total=0.5)


def test_second_address_is_tried(monkeypatch):
    with (
        Server(answer(b"second")) as server,
        socket.create_server(("127.0.0.1", 0)) as closed,
    ):
        dead = closed.getsockname()
        closed.close()
        live = ("127.0.0.1", server.port)
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda *args: [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
                for address in (dead, live)
            ],
        )
        assert send("http://localhost:1/").body == b"second"


def test_failed_connection_is_tried_again(monkeypatch):
    attempts = []
    original = socket.socket.connect

    def connect(sock, address, /):
        attempts.append(address)
        if len(attempts) == 1:
            raise ConnectionRefusedError
        return original(sock, address)

    with Server(answer(b"again")) as server:
        monkeypatch.setattr(socket.socket, "connect", connect)
        assert send(server.url, method="POST", body=b"x").body == b"again"
        assert len(server.requests) == 1


def test_body_of_exactly_the_limit_is_taken():
    with Server(answer(b"x" * 1000)) as server:
        assert len(send(server.url, max_body=1000).body) == 1000


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length: 1001", b"Transfer-Encoding: chunked", b"X: y"],
    ids=["announced", "chunked", "to-close"],
)
def test_larger_body_is_refused(headers):
    body = b"3E9\r\n" if b"chunked" in headers else b""
    body += b"x" * 1001 + (b"\r\n0\r\n\r\n" if b"chunked" in headers else b"")
    handler = close_after(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n\r\n" + body)
    with Server(handler) as server, pytest.raises(ResponseTooLargeError) as caught:
        send(server.url, max_body=1000)
    assert str(caught.value) == "127.0.0.1 sent more than 1000 bytes"
    assert_tells_nothing(caught.value)


def test_endless_body_is_refused():
    def flood(sock, request):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.wait(0):
            sock.sendall(b"x" * 65536)

    refused = pytest.raises(ResponseTooLargeError)
    with Server(flood) as server, ends_early(), refused:
        send(server.url, max_body=1_000_000)


@pytest.mark.parametrize("layers", [1, 2])
def test_bomb_is_refused_without_unpacking_it(layers):
    bomb = b"\0" * 30_000_000
    for _ in range(layers):
        bomb = gzip.compress(bomb)
    encoding = ", ".join(["gzip"] * layers)
    with Server(answer(bomb, headers=(f"Content-Encoding: {encoding}",))) as server:
        send(f"{server.url}&warm", max_body=100_000_000)
        tracemalloc.start()
        try:
            with ends_early(), pytest.raises(ResponseTooLargeError):
                send(server.url, max_body=1_000_000)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()
