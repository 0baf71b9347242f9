"""The look of the EHR: one fetch for each URL, and no page that breaks."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
import requests
import time_machine
from django.core.cache.backends.locmem import LocMemCache
from requests.adapters import BaseAdapter

from django_smart import transport
from django_smart.contrib import style as flow
from django_smart.contrib.style import get_style
from django_smart.models import FHIRServer
from django_smart.protocol.style import SMARTStyle
from tests.known import BASE_URL

ORIGIN = "https://style.example.org"
URL = f"{ORIGIN}/day.json?v=1"
DAY: dict[str, Any] = {"color_text": "#303030", "dim_border_radius": "6px"}


class StyleServer(BaseAdapter):
    """Answers with what a test puts into it."""

    def __init__(self) -> None:
        super().__init__()
        self.body: bytes | Exception = json.dumps(DAY).encode()
        self.status = 200
        self.headers = {"Content-Type": "application/json; charset=utf-8"}
        self.requests: list[requests.PreparedRequest] = []
        self.timeout: Any = None

    def send(self, request, *args, timeout=None, **kwargs):
        """The answer."""
        self.requests.append(request)
        self.timeout = timeout
        if isinstance(self.body, Exception):
            raise self.body
        response = requests.Response()
        response.status_code = self.status
        response.headers.update(self.headers)
        response.raw = io.BytesIO(self.body)
        return response

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def server():
    """The server at ``ORIGIN``."""
    adapter = StyleServer()
    with transport.mounted(ORIGIN, adapter):
        yield adapter


def fetch(url: str = URL) -> SMARTStyle | None:
    return get_style(url, server=FHIRServer(base_url=BASE_URL), launch_id=7)


@pytest.mark.compliance("RESP-15")
def test_style_is_fetched_without_any_token(server):
    assert fetch() == SMARTStyle(color_text="#303030", dim_border_radius="6px")
    (request,) = server.requests
    assert (request.method, request.url, request.body) == ("GET", URL, None)
    assert not {"authorization", "cookie"} & {name.lower() for name in request.headers}


@pytest.mark.compliance("RESP-16")
def test_one_url_is_fetched_once_and_a_new_one_anew(server):
    assert fetch() == fetch() == SMARTStyle(**DAY)
    assert len(server.requests) == 1
    server.body = b'{"color_text": "#fff"}'
    assert fetch(f"{ORIGIN}/day.json?v=2") == SMARTStyle(color_text="#fff")
    assert fetch() == SMARTStyle(**DAY)
    assert len(server.requests) == 2


def test_urls_that_differ_in_case_are_two(server):
    fetch()
    server.body = b'{"color_text": "#fff"}'
    assert fetch(f"{ORIGIN}/DAY.json?v=1") == SMARTStyle(color_text="#fff")


def test_style_is_asked_for_again_after_a_day(server):
    with time_machine.travel(0, tick=False) as clock:
        fetch()
        clock.shift(24 * 3600 - 1)
        fetch()
        assert len(server.requests) == 1
        clock.shift(2)
        fetch()
        assert len(server.requests) == 2


def test_limits_are_short(server):
    fetch()
    assert server.timeout == (2, 2)
    assert flow._SECONDS == 2


@pytest.mark.compliance("RESP-15")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": 404}, "style not used: status 404"),
        ({"status": 302, "body": b""}, "style not used: status 302"),
        ({"headers": {"Content-Type": "text/css"}}, "its media type is not JSON"),
        ({"headers": {}}, "its media type is not JSON"),
        ({"body": b"{color_text: 1}"}, "style: The style is not valid JSON"),
        ({"body": b'{"color_text": "url(x)"}'}, "color_text is not a valid value"),
        ({"body": b" " * 65537}, "style not fetched (response_too_large)"),
        ({"body": requests.Timeout("x")}, "style not fetched (server_timeout)"),
        ({"body": OSError("x")}, "style not fetched (server_unreachable)"),
    ],
)
def test_style_that_is_wrong_is_a_line_in_the_log(server, caplog, changes, reason):
    for name, value in changes.items():
        setattr(server, name, value)
    with caplog.at_level(logging.WARNING):
        assert fetch() is None
    assert reason in caplog.text
    assert "Launch 7: " in caplog.text
    assert "example.org/" not in caplog.text
    assert "url(x)" not in caplog.text


@pytest.mark.parametrize(
    "kind", ["application/json", "text/json", "application/x+json"]
)
def test_media_types_of_json_are_taken(server, kind):
    server.headers = {"Content-Type": kind}
    assert fetch() == SMARTStyle(**DAY)


def test_body_of_the_largest_size_is_taken(server):
    server.body = server.body.ljust(65536)
    assert fetch() == SMARTStyle(**DAY)


def test_server_that_failed_is_left_alone_for_a_while(server):
    server.status = 500
    with time_machine.travel(0, tick=False) as clock:
        assert fetch() is None
        server.status = 200
        clock.shift(299)
        assert fetch() is None
        assert len(server.requests) == 1
        clock.shift(2)
        assert fetch() == SMARTStyle(**DAY)


def test_nobody_waits_for_the_fetch_of_another(server):
    answer = server.send

    def send(*args, **kwargs):
        assert fetch() is None
        return answer(*args, **kwargs)

    server.send = send
    assert fetch() == SMARTStyle(**DAY)
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["http://style.example.org/x", "https://u@h.org", "x"])
def test_url_that_is_not_safe_is_not_asked(server, caplog, url):
    assert fetch(url) is None
    assert server.requests == []
    assert "style not fetched (insecure_url)" in caplog.text


@pytest.mark.parametrize("name", ["get", "add", "set"])
def test_broken_cache_breaks_no_page(server, caplog, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise ConnectionError("redis://secret")

    monkeypatch.setattr(LocMemCache, name, refuse)
    assert fetch() is None
    assert "Launch 7: no style (ConnectionError)" in caplog.text
    assert "secret" not in caplog.text
