"""Connections are shared, and lead through the proxies of the environment."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import requests

from django_smart import transport
from django_smart.exceptions import (
    ResponseTooLargeError,
    ServerUnreachableError,
)
from django_smart.transport import connections
from tests.transport.servers import (
    CANARY,
    Handler,
    Server,
    answer,
    assert_tells_nothing,
    close_after,
    send,
)


def test_connection_is_used_again():
    with Server(answer()) as server:
        for _ in range(3):
            send(server.url)
        assert (server.connections, len(server.requests)) == (1, 3)


def test_connection_after_a_failure_is_not_used_again():
    with Server(answer(b"x" * 1000)) as server:
        with pytest.raises(ResponseTooLargeError):
            send(server.url, max_body=10)
        send(server.url)
        assert server.connections == 2


def test_connection_that_was_idle_for_long_is_not_used_again(host_clock):
    with Server(answer()) as server:
        send(server.url)
        host_clock.shift(54)
        send(server.url)
        assert server.connections == 1
        host_clock.shift(56)
        send(server.url)
        assert server.connections == 2


def test_connection_that_the_server_closed_is_not_used_again():
    with Server(close_after(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as server:
        send(server.url)
        time.sleep(0.1)
        send(server.url)
        assert server.connections == 2


def close_later(message: bytes) -> Handler:
    """Answer once on each connection; close it, unseen, when more is asked of it."""
    seen = []

    def handle(sock, request):
        if sock in seen:
            return False
        seen.append(sock)
        sock.sendall(message)
        return True

    return handle


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_read_on_a_connection_that_was_closed_is_sent_once_more(method):
    handler = close_later(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with Server(handler) as server:
        for _ in range(3):
            assert send(server.url, method=method).status_code == 200
        # The first, and twice one that was closed and one that was not.
        assert len(server.requests) == 5
        assert server.connections == 3


def test_read_on_a_closed_connection_over_tls_is_sent_once_more(
    certificate, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    handler = close_later(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with Server(handler, context=certificate[0]) as server:
        for _ in range(3):
            assert send(server.url).status_code == 200


def test_read_is_not_sent_more_than_twice():
    def handle(sock, request):
        if len(server.requests) > 1:
            return False
        return answer()(sock, request)

    with Server(handle) as server:
        send(server.url)
        with pytest.raises(ServerUnreachableError):
            send(server.url)
        assert len(server.requests) == 3


def test_read_on_a_new_connection_is_sent_once():
    with Server(lambda sock, request: False) as server:
        with pytest.raises(ServerUnreachableError):
            send(server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_write_on_a_connection_that_was_closed_is_not_sent_again(method):
    handler = close_later(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with Server(handler) as server:
        send(server.url)
        with pytest.raises(ServerUnreachableError):
            send(server.url, method=method, body=b"code=1")
        assert len(server.requests) == 2


def test_write_is_sent_once_although_the_caller_handles_a_refused_connection():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with Server(close_after(b"")) as server:
        try:
            requests.get(f"http://127.0.0.1:{port}/", timeout=5)
        except requests.ConnectionError:
            with pytest.raises(ServerUnreachableError) as caught:
                send(server.url, method="POST", body=b"grant_type=refresh_token")
        assert len(server.requests) == 1
        assert "refused" not in str(caught.value)


def test_write_takes_no_connection_that_was_idle_for_seconds(host_clock):
    with Server(answer()) as server:
        send(server.url)
        host_clock.shift(2)
        send(server.url, method="POST", body=b"code=1")
        assert server.connections == 1
        host_clock.shift(4)
        send(server.url)
        host_clock.shift(4)
        send(server.url, method="POST", body=b"code=1")
        assert server.connections == 2


def test_threads_share_the_pool_and_not_a_connection():
    barrier = threading.Barrier(4, timeout=60)

    def handle(sock, request):
        barrier.wait()
        answer()(sock, request)

    with Server(handle) as server:
        threads = [threading.Thread(target=send, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert (server.connections, len(server.requests)) == (4, 4)


def test_forked_process_opens_connections_of_its_own(monkeypatch):
    with Server(answer()) as server:
        send(server.url)
        parent = connections.get_pooled()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            send(server.url)
            assert connections.get_pooled() is not parent
            transport.close()
        assert server.connections == 2
        parent.close()


def test_many_hosts_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *args: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", args[1]))
        ],
    )
    hosts = [f"ehr-{number}.localhost" for number in range(70)]
    with Server(answer()) as server:
        for host in [*hosts, hosts[0]]:
            response = send(
                f"http://{host}:{server.port}/", insecure_hosts=frozenset(hosts)
            )
            assert response.status_code == 200
        # No more connections are kept than for 64 of them.
        assert server.connections == 71


def test_plain_http_goes_through_the_proxy_of_the_environment(monkeypatch):
    with Server(answer(b"by proxy")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        url = "http://ehr.example/fhir?a%3Ab=c"
        response = send(url, insecure_hosts=frozenset({"ehr.example"}))
        assert response.body == b"by proxy"
        assert proxy.requests[0].startswith(b"GET http://ehr.example/fhir?a%3Ab=c HTTP")
        with Server(answer(b"directly")) as server:
            assert send(server.url).body == b"directly"


def test_https_goes_through_a_tunnel_and_is_verified_at_its_end(
    certificate, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    monkeypatch.setenv("NO_PROXY", "")
    with Server(answer(b"inside"), context=certificate[0]) as server:

        def tunnel(sock, request):
            target = socket.create_connection(("127.0.0.1", server.port))
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

            def copy(source, sink):
                with contextlib.suppress(OSError):
                    while data := source.recv(65536):
                        sink.sendall(data)

            back = threading.Thread(target=copy, args=(target, sock))
            back.start()
            copy(sock, target)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_RDWR)
            back.join(60)
            target.close()
            return False

        with Server(tunnel) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@127.0.0.1:{proxy.port}")
            try:
                assert send(server.url).body == b"inside"
            finally:
                transport.close()
            head = proxy.requests[0]
            assert head.startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
            assert b"Proxy-Authorization: Basic" in head
            assert CANARY.encode() not in head
        assert b"Proxy-Authorization" not in server.requests[0]


def test_proxy_that_refuses_the_tunnel_is_unreachable(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    with Server(answer(b"", status="403 Forbidden")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(ServerUnreachableError) as caught:
            send(f"https://ehr.example/?code={CANARY}")
    assert_tells_nothing(caught.value)


def test_socks_proxy_without_its_library_is_unreachable(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ServerUnreachableError):
        send("https://ehr.example/")


def test_certificates_are_read_once_for_all_hosts(certificate, monkeypatch, tmp_path):
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(Path(certificate[1]).read_text())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with (
        Server(answer(), context=certificate[0]) as one,
        Server(answer(), context=certificate[0]) as two,
    ):
        send(one.url)
        bundle.unlink()
        assert send(two.url).status_code == 200
        transport.close()
        with pytest.raises(ServerUnreachableError):
            send(two.url)
