"""Connections are shared, and lead through the proxies of the environment."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest

from django_smart import transport
from django_smart.exceptions import (
    ResponseTooLargeError,
    ServerUnreachableError,
)
from django_smart.transport import connections
from tests.transport.servers import (
    CANARY,
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


def test_hosts_share_the_trusted_certificates():
    pooled = connections.get_pooled()
    assert pooled._get_context() is pooled._get_context()


def test_nothing_is_received_after_the_deadline():
    ours, theirs = socket.socketpair()
    with ours, theirs, connections.limit_call(0.05):
        theirs.sendall(b"HTTP/1.1 200 OK\r\n\r\nbody")
        response = connections._BoundedResponse(ours)
        time.sleep(0.1)
        with pytest.raises(TimeoutError):
            response.begin()
        response.close()
