"""Registering a client: the address of the site."""

from __future__ import annotations

import pytest

from django_smart.exceptions import InsecureURLError
from django_smart.servers.registering import validate_site_url


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example.org", "https://app.example.org"),
        ("https://app.example.org/", "https://app.example.org"),
        ("https://app.example.org:8443", "https://app.example.org:8443"),
        ("http://localhost:8000", "http://localhost:8000"),
    ],
)
def test_site_url_is_an_origin(settings, url, origin):
    settings.SMART_INSECURE_HTTP_HOSTS = ["localhost"]
    assert validate_site_url(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/",
        "app.example.org",
        "http://app.example.org",
        "https://app.example.org//",
        "https://app.example.org/smart",
        "https://app.example.org?a=b",
        "https://app.example.org/?",
        "https://app.example.org?",
        "https://app.example.org#a",
        "https://me@app.example.org",
        "ftp://app.example.org",
        "https://app.example.org:port",
    ],
)
def test_anything_else_is_no_site_url(url):
    with pytest.raises(InsecureURLError):
        validate_site_url(url)
