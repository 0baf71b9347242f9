"""What goes out, what comes back, and where secrets may go."""

from __future__ import annotations

import gzip
import time
import zlib
from email.utils import formatdate

import pytest

import django_smart
from django_smart.exceptions import (
    InsecureURLError,
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


@pytest.mark.compliance("DISC-05")
@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
def test_answer_has_status_lower_case_headers_body_and_url(name):
    handler = answer(b'{"a": 1}', headers=(f"{name}: Application/JSON; x=y",))
    with Server(handler) as server:
        response = send(server.url)
    assert response.status_code == 200
    assert response.headers["content-type"] == "Application/JSON; x=y"
    assert response.media_type == "application/json"
    assert response.body == b'{"a": 1}'
    assert response.url == server.url


@pytest.mark.parametrize("date", [(), ("Date: Wed, 21 Oct 2015 07:28:00 GMT",)])
def test_date_to_retry_after_counts_from_the_receipt_if_the_server_tells_none(date):
    later = formatdate(time.time() + 100, usegmt=True)
    handler = answer(status="503 Busy", headers=(f"Retry-After: {later}", *date))
    with Server(handler) as server:
        seconds = send(server.url).retry_after
    assert seconds is not None
    assert (seconds == 24 * 3600) if date else (60 < seconds <= 100)


def test_request_goes_out_byte_for_byte():
    with Server(answer()) as server:
        send(
            f"http://127.0.0.1:{server.port}/a%20b/T?c=4548-4&_sort%3Adesc=date&p=%7C",
            method="POST",
            headers={"Accept": "application/json", "accept-encoding": "br"},
            body=b"code=1&grant_type=authorization_code",
        )
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /a%20b/T?c=4548-4&_sort%3Adesc=date&p=%7C HTTP/1.1"
    assert sorted(lines[1:]) == [
        "Accept-Encoding: gzip, deflate",
        "Accept: application/json",
        "Content-Length: 36",
        f"Host: 127.0.0.1:{server.port}",
        f"User-Agent: django_smart/{django_smart.__version__}",
    ]
    assert body == b"code=1&grant_type=authorization_code"


def test_caller_may_name_itself():
    with Server(answer()) as server:
        send(server.url, headers={"user-agent": "site/1"})
        assert server.requests[0].lower().count(b"user-agent") == 1
        assert b"User-Agent: site/1\r\n" in server.requests[0]


@pytest.mark.compliance("TOK-05", "FHIR-03")
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 T", "308 P"])
def test_redirect_is_returned_and_not_followed(status):
    with Server(answer()) as other:
        handler = answer(b"", status=status, headers=(f"Location: {other.url}",))
        with Server(handler) as server:
            response = send(server.url, headers={"Authorization": f"Bearer {CANARY}"})
        assert response.status_code == int(status[:3])
        assert response.headers["location"] == other.url
        assert other.requests == []


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "500 Oops"])
def test_any_status_is_an_answer(status):
    with Server(answer(b"", status=status)) as server:
        assert send(server.url).status_code == int(status[:3])


def test_head_has_no_body_and_leaves_a_connection_in_order():
    handler = answer(headers=("X: y",))

    def handle(sock, request):
        if request.startswith(b"HEAD"):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
        else:
            handler(sock, request)

    with Server(handle) as server:
        assert send(server.url, method="HEAD").body == b""
        assert send(server.url).body == b"{}"
        assert server.connections == 1


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        ("gzip", gzip.compress(b"x" * 5000)),
        ("deflate", zlib.compress(b"x" * 5000)),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x" * 5000))),
    ],
    ids=["gzip", "deflate", "gzip twice"],
)
def test_body_is_unpacked(encoding, packed):
    with Server(answer(packed, headers=(f"Content-Encoding: {encoding}",))) as server:
        assert send(server.url).body == b"x" * 5000


def test_chunked_body_is_read():
    handler = close_after(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: x\r\n\r\n"
    )
    with Server(handler) as server:
        assert send(server.url).body == b"abcdefg"


def test_body_that_ends_with_the_connection_is_read():
    with Server(close_after(b"HTTP/1.1 200 OK\r\n\r\nabc")) as server:
        assert send(server.url).body == b"abc"


@pytest.mark.compliance("TOK-05", "SEC-04", "FHIR-03")
def test_plain_http_is_refused_before_anything_is_sent():
    with Server(answer()) as server:
        with pytest.raises(InsecureURLError):
            send(server.url, insecure_hosts=frozenset())
        assert server.connections == 0
        assert send(server.url).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/",
        "https://user:pass@127.0.0.1/",
        "https://127.0.0.1/#fragment",
        "https://127.0.0.1/a b",
        "https:///path",
        "/path",
        "",
    ],
)
def test_unusable_url_is_refused(url):
    with pytest.raises(InsecureURLError):
        send(url)


def test_header_that_would_break_the_line_is_refused():
    with Server(answer()) as server:
        with pytest.raises(ServerUnreachableError) as caught:
            send(server.url, headers={"Authorization": f"Bearer {CANARY}\r\nX: y"})
        assert server.requests == []
    assert_tells_nothing(caught.value)


def test_passwords_of_a_netrc_file_are_never_sent(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with Server(answer()) as server:
        send(server.url)
        assert b"authorization" not in server.requests[0].lower()


def test_cookies_are_not_kept():
    with Server(answer(headers=("Set-Cookie: a=b; Path=/",))) as server:
        send(server.url)
        send(server.url)
        assert b"cookie" not in server.requests[1].lower()
