"""Certificates are verified, whatever the settings."""

from __future__ import annotations

import socket
import ssl
import threading

import pytest

from django_smart.exceptions import (
    ServerTimeoutError,
    ServerUnreachableError,
)
from tests.transport.servers import (
    LOOPBACK,
    Server,
    answer,
    assert_tells_nothing,
    ends_early,
    send,
)


@pytest.mark.compliance("TOK-05", "SEC-04", "DISC-14")
def test_certificate_nobody_vouches_for_is_refused(certificate):
    with Server(answer(), context=certificate[0]) as server:
        with pytest.raises(ServerUnreachableError) as caught:
            send(server.url, insecure_hosts=LOOPBACK)
        assert server.requests == []
    assert "certificate of 127.0.0.1 is not trusted" in str(caught.value)
    assert_tells_nothing(caught.value)


@pytest.mark.compliance("TOK-06", "FHIR-03")
def test_certificate_authority_of_the_environment_is_used(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    with Server(answer(b"secret"), context=certificate[0]) as server:
        assert send(server.url, insecure_hosts=frozenset()).body == b"secret"
        assert send(server.url, insecure_hosts=frozenset()).body == b"secret"
        assert server.connections == 1


def test_certificates_of_a_folder_are_used(certificate, monkeypatch, tmp_path):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv("CURL_CA_BUNDLE", str(tmp_path))
    with Server(answer(), context=certificate[0]) as server:
        with pytest.raises(ServerUnreachableError):
            send(server.url)
        assert server.requests == []


def test_missing_certificate_file_is_no_reason_to_trust(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/does/not/exist.pem")
    with Server(answer(), context=certificate[0]) as server:
        with pytest.raises(ServerUnreachableError):
            send(server.url)
        assert server.requests == []


def test_certificate_of_another_host_is_refused(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda *args: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", args[1]))
        ],
    )
    with Server(answer(), context=certificate[0]) as server:
        with pytest.raises(ServerUnreachableError) as caught:
            send(f"https://localhost:{server.port}/")
        assert server.requests == []
    assert "is not trusted" in str(caught.value)


@pytest.mark.compliance("TOK-06", "BACK-09")
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_tls_before_1_2_is_not_spoken(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(certificate[1], certificate[1].replace("cert.pem", "key.pem"))
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1_1
    for newest, is_spoken in [
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_1, False),
    ]:
        old.maximum_version = newest
        with Server(answer(), context=old) as server:
            if is_spoken:
                send(server.url)
                continue
            with pytest.raises(ServerUnreachableError):
                send(server.url)
            assert server.requests == []


def test_handshake_that_never_ends_is_cut_off():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        with ends_early(), pytest.raises(ServerTimeoutError):
            send(url, connect=0.3)


def test_upload_over_tls_may_take_longer_than_connecting(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    body = b"x" * 20_000_000
    with Server(answer(b"taken"), context=certificate[0], pause=0.003) as server:
        send(server.url, connect=20)
        response = send(server.url, method="POST", body=body, connect=0.5)
        assert response.body == b"taken"
        assert server.requests[1].endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("pause", [0.2, 60])
def test_upload_over_tls_ends_at_the_limit_of_the_call(certificate, monkeypatch, pause):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate[1])
    body = b"x" * 20_000_000
    with Server(answer(), context=certificate[0], pause=pause) as server:
        with ends_early(), pytest.raises(ServerTimeoutError):
            send(server.url, method="POST", body=body, total=1.5)
        assert server.requests == []


def test_proxy_that_does_not_answer_is_cut_off_at_the_connect_limit(monkeypatch):
    with Server(lambda sock, request: proxy.wait(60)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with ends_early(), pytest.raises(ServerTimeoutError):
            send("https://ehr.example.org/", connect=0.3)
        assert len(proxy.requests) == 1


def test_handshake_in_a_tunnel_that_never_ends_is_cut_off(monkeypatch):
    def open_tunnel(sock, request):
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        proxy.wait(60)

    with Server(open_tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with ends_early(), pytest.raises(ServerTimeoutError):
            send("https://ehr.example.org/", connect=0.3)
        assert len(proxy.requests) == 1


def test_server_without_tls_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            with listener.accept()[0] as sock:
                sock.sendall(b"220 mail.example ESMTP\r\n")
                sock.recv(65536)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(ServerUnreachableError):
            send(f"https://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join(60)
