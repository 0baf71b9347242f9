"""Servers that break off: one class of error, and nothing of the exchange in it."""

from __future__ import annotations

import logging
import socket

import pytest
import requests

from django_smart.exceptions import (
    ServerUnreachableError,
)
from tests.transport.servers import (
    CANARY,
    Server,
    answer,
    assert_tells_nothing,
    close_after,
    send,
)


def test_refused_connection_is_unreachable(caplog):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ServerUnreachableError) as caught,
    ):
        send(f"http://127.0.0.1:{port}/?code={CANARY}")
    assert str(caught.value) == "127.0.0.1 refused the connection"
    assert_tells_nothing(caught.value)
    assert CANARY not in caplog.text


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError()])
def test_unknown_host_is_unreachable(monkeypatch, error):
    def look_up(*args):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(ServerUnreachableError) as caught:
        send("https://nowhere.invalid/")
    assert ("DNS" in str(caught.value)) is isinstance(error, socket.gaierror)
    assert "nowhere.invalid" in str(caught.value)


def test_host_without_addresses_is_unreachable(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: [])
    with pytest.raises(ServerUnreachableError):
        send("https://nowhere.invalid/")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nnot gzip",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    ],
    ids=[
        "nothing",
        "headers",
        "body",
        "chunk",
        "chunk-size",
        "gzip",
        "not-http",
        "many-headers",
        "long-header",
    ],
)
@pytest.mark.compliance("TOK-05")
def test_broken_answer_is_unreachable_and_the_request_is_sent_once(message):
    with Server(close_after(message)) as server:
        if b"Content-Le" in message and not message.endswith(b"abc"):
            # http.client takes headers that break off for an answer without a body.
            assert send(server.url, method="POST", body=b"code").body == b""
            return
        with pytest.raises(ServerUnreachableError) as caught:
            send(server.url, method="POST", body=CANARY.encode())
        assert len(server.requests) == 1
    assert_tells_nothing(caught.value)


def test_odd_headers_leave_no_query_in_the_log(caplog):
    message = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nno colon here\r\n\r\n"
    with Server(close_after(message)) as server, caplog.at_level(logging.DEBUG):
        send(server.url)
    assert CANARY not in caplog.text
    assert "no colon" not in caplog.text
    assert "GET to 127.0.0.1: 200" in caplog.text


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "503 Busy"])
def test_log_of_urllib3_names_the_host_and_no_path_query_or_token(caplog, status):
    handler = answer(status=status, headers=("Location: /x", "Retry-After: 1"))
    with Server(handler) as server, caplog.at_level(logging.DEBUG):
        send(
            server.url,
            method="POST",
            headers={"Authorization": f"Bearer {CANARY}"},
            body=CANARY.encode(),
        )
        assert server.requests[0].startswith(b"POST /fhir/metadata?code=canary")
    assert f'127.0.0.1:{server.port} "POST /*** HTTP/1.1" {status[:3]}' in caplog.text
    assert CANARY not in caplog.text
    assert "metadata" not in caplog.text


def test_what_others_do_with_urllib3_is_logged_as_ever(caplog):
    with (
        Server(answer()) as server,
        caplog.at_level(logging.DEBUG),
        requests.Session() as s,
    ):
        s.get(server.url)
    assert CANARY in caplog.text
