"""RP-initiated logout."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest

from django_smart.protocol.logout import build_end_session_url


@pytest.mark.parametrize(
    ("endpoint", "before"), [("/logout", []), ("/logout?tenant=1", [("tenant", "1")])]
)
def test_the_browser_is_sent_with_the_client_and_the_way_back(endpoint, before):
    url = build_end_session_url(
        f"https://ehr.example.org{endpoint}",
        client_id="a b&c",
        post_logout_redirect_uri="https://app.example.org/bye/?x=1",
    )
    assert url.startswith("https://ehr.example.org/logout?")
    assert parse_qsl(urlsplit(url).query) == [
        *before,
        ("client_id", "a b&c"),
        ("post_logout_redirect_uri", "https://app.example.org/bye/?x=1"),
    ]
