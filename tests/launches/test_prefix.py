"""The launch prefix: what it is, and where it stands in a path."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.urls import path, reverse, set_script_prefix
from django.utils.translation import gettext_lazy, override

from django_smart.launches.prefix import (
    build_launch_path,
    find_route,
    get_protocol_url,
    leave_launch,
    split_launch_key,
)

KEY = "k" * 24


@pytest.fixture
def mounted():
    """The site's script prefix is ``/app/``."""
    set_script_prefix("/app/")
    yield
    set_script_prefix("/")


@pytest.mark.parametrize(
    ("path_info", "expected"),
    [
        (f"/~{KEY}/a/b/", (KEY, "/a/b/")),
        (f"/~{KEY}/", (KEY, "/")),
        (f"/~{KEY}", (KEY, "/")),
        (f"/~{KEY}/a\nb", (KEY, "/a\nb")),
        (f"/~{KEY}/~{KEY}/a", (KEY, f"/~{KEY}/a")),
        (f"/~{KEY}\n", (None, f"/~{KEY}\n")),
        (f"/a/~{KEY}/", (None, f"/a/~{KEY}/")),
        ("/~maria/", (None, "/~maria/")),
        (f"/~{'k' * 65}/", (None, f"/~{'k' * 65}/")),
        (f"/~{KEY}é/", (None, f"/~{KEY}é/")),
        ("/~/", (None, "/~/")),
        ("/", (None, "/")),
        ("", (None, "")),
    ],
)
def test_split_launch_key_takes_one_key_off(path_info, expected):
    assert split_launch_key(path_info) == expected


def test_split_launch_key_follows_the_setting(settings):
    settings.SMART_LAUNCH_PREFIX = "c.h/"
    assert split_launch_key(f"/c.h/{KEY}/a") == (KEY, "/a")
    assert split_launch_key(f"/cxh/{KEY}/a") == (None, f"/cxh/{KEY}/a")
    settings.SMART_LAUNCH_PREFIX = ""
    assert split_launch_key(f"/{KEY}/a") == (None, f"/{KEY}/a")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/a/?b=%2F#c", "/a/?b=%2F#c"),
        ("a", "/a"),
        ("?b=1", "/?b=1"),
        ("", "/"),
        (f"/~{'o' * 24}/a", "/a"),
        ("https://other.example/a?b", "/a?b"),
        ("//other.example/a", "/a"),
        ("/a;b/%2F", "/a;b/%2F"),
    ],
)
def test_build_launch_path_stays_on_this_site(path, expected, settings):
    assert build_launch_path(KEY, path) == f"/~{KEY}{expected}"
    settings.SMART_LAUNCH_PREFIX = ""
    if "~" not in path:
        assert build_launch_path(KEY, path) == expected


@pytest.mark.usefixtures("mounted")
def test_build_launch_path_knows_where_the_site_is_mounted(settings):
    assert build_launch_path(KEY, "/app/a") == f"/app/~{KEY}/a"
    assert build_launch_path(KEY, "/a") == f"/app/~{KEY}/a"
    assert build_launch_path(KEY, f"/app/~{'o' * 24}/a") == f"/app/~{KEY}/a"
    settings.SMART_LAUNCH_PREFIX = ""
    assert build_launch_path(KEY, "/app/a") == "/app/a"


@pytest.mark.parametrize("outer", ["/", "/app/", "/a/~b/"])
def test_protocol_urls_are_never_under_a_launch(outer, settings):
    set_script_prefix(outer)
    try:
        assert get_protocol_url("callback") == f"{outer}smart/callback/"
        set_script_prefix(f"{outer}~{KEY}/")
        assert get_protocol_url("callback") == f"{outer}smart/callback/"
        settings.SMART_LAUNCH_PREFIX = ""
        set_script_prefix(outer)
        assert get_protocol_url("callback") == f"{outer}smart/callback/"
    finally:
        set_script_prefix("/")


def test_route_is_found_in_the_language_in_which_its_path_was_made(settings):
    # A word of Django's own catalogs.
    day = path(gettext_lazy("Monday"), lambda _: HttpResponse(), name="login")
    settings.ROOT_URLCONF = (day,)
    for language, expected in (("de", "/Montag"), ("en", "/Monday")):
        with override(language):
            assert reverse("login") == expected
            assert find_route(expected) is not None
    assert find_route("/Dienstag") is None


@pytest.mark.parametrize("slashes", ["/", "//", "///"])
def test_path_without_its_launch_stays_on_this_site(slashes: str) -> None:
    key = "A" * 22
    assert leave_launch(f"/~{key}{slashes}evil.example/x") == "/evil.example/x"
