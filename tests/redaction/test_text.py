"""What is taken out of a text, in every spelling, and what stays."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from urllib.parse import quote

import pytest
from django.http import QueryDict
from django.urls import reverse, set_script_prefix
from django.utils.html import escape
from hypothesis import given
from hypothesis import strategies as st

from django_smart.redaction import HIDDEN, PARAMETERS, get_protocol_paths, redact

SECRET = "s3cret.Value-of_a-launch~1"
JWT = "eyJhbGciOiJFUzM4NCJ9.eyJzdWIiOiJtYXJpYSJ9.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def _loaded_urls() -> None:
    """As after the first request."""
    reverse("django_smart:launch")


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_is_hidden_in_every_spelling(name):
    query = f"first=1&{name}={SECRET}&last=2"
    url = f"https://app.example.org/elsewhere/?{query}"
    pair = {name: SECRET, "other": "stays"}
    texts = [
        query,
        url,
        f"{name}={SECRET}",
        f"GET /elsewhere/?{query} HTTP/1.1",
        quote(url, safe=""),
        quote(quote(url, safe=""), safe=""),
        escape(url),
        json.dumps(url),
        json.dumps({"url": url}).replace("&", "\\u0026"),
        json.dumps(pair),
        json.dumps(json.dumps(pair)),
        json.dumps(pair, indent=2),
        repr(pair),
        repr({name: [SECRET]}),
        repr({name: ("first", "it's", f'"{SECRET}')}),
        repr({name.encode(): [b"first", SECRET.encode()]}),
        repr({name.encode(): SECRET.encode()}),
        repr([(name, SECRET)]),
        repr(QueryDict(query)),
        repr(QueryDict(f"{name}=first&{query}")),
        json.dumps(json.dumps({name: ["first", SECRET]})),
        f"Thing({name}='{SECRET}', other='stays')",
        f"Thing(other='stays', {name}={SECRET!r})",
    ]
    for text in texts:
        redacted = redact(text)
        assert SECRET not in redacted, text
        assert HIDDEN in redacted
        assert redact(redacted) == redacted
    assert redact(query) == f"first=1&{name}={HIDDEN}&last=2"
    assert "stays" in redact(repr(pair))


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: {SECRET}",
        f"{{'Authorization': 'Basic {SECRET}'}}",
        f"{{b'Authorization': b'Basic {SECRET}'}}",
        f'{{"Authorization": "DPoP {SECRET}"}}',
        f"send: b'GET / HTTP/1.1\\r\\nAuthorization: Bearer {SECRET}\\r\\n\\r\\n'",
        f"'HTTP_AUTHORIZATION': 'Bearer {SECRET}'",
        f"sent the Bearer {SECRET}",
        f"Cookie: a=b; __Host-smart_browser={SECRET}",
        f"Set-Cookie: sessionid={SECRET}; HttpOnly",
        f"{{'HTTP_COOKIE': 'sessionid={SECRET}'}}",
        f"amqp://worker:{SECRET}@broker.example.org:5672//",
        f"postgres://:{SECRET}@db.example.org/site",
    ],
)
def test_credentials_are_hidden(text):
    redacted = redact(text)
    assert SECRET not in redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        *(JWT, f"got {JWT}.", f'"{JWT}"', JWT + ".a.b"),
        *(f"key-{JWT}", f"key_1-eyJ-{JWT}", f"-{JWT}", f"v1.{JWT}"),
    ],
)
def test_signed_tokens_are_hidden_wherever_they_stand(text):
    redacted = redact(text)
    assert "eyJ" not in redacted
    assert "c2lnbmF0dXJl" not in redacted
    assert redact(redacted) == redacted


def test_what_stands_before_a_signed_token_stays():
    assert redact(f"grant-7-{JWT}, x") == f"grant-7-{HIDDEN}, x"


def test_value_with_spaces_and_quotation_marks_goes_as_a_whole():
    value = 'two words, "quoted" and more'
    for text in (json.dumps({"client_secret": value}), f"client_secret={value!r}"):
        redacted = redact(text)
        assert "words" not in redacted
        assert "more" not in redacted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Launch 7 failed: state_unknown",
        "GET /patient/?tab=labs HTTP/1.1",
        "status_code=200 barcode=5 xcode=1 estate=2",
        "the code and the state of the launch",
        "Basic authentication is required",
        "Grant 5 refreshed",
        "https://ehr.example.org:8443/fhir/Patient/1",
        "the cookie is missing",
        "scope=patient/Patient.rs client_id=growth-chart",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize("path", ["/smart/callback/", "/smart/launch/"])
def test_query_of_a_protocol_url_goes_as_a_whole(path):
    assert get_protocol_paths() == ("/smart/callback/", "/smart/launch/")
    for url in (path, path.rstrip("/"), f"https://a.example{path}", f"/mounted{path}"):
        text = redact(f'"GET {url}?iss=x&error_description=Maria+fell HTTP/1.1" 200')
        assert text == f'"GET {url}?{HIDDEN} HTTP/1.1" 200'


def test_protocol_urls_are_found_under_any_prefix():
    set_script_prefix("/mounted/~abcdefghijklmnopqrstuvwx/")
    try:
        assert get_protocol_paths() == ("/smart/callback/", "/smart/launch/")
    finally:
        set_script_prefix("/")


@pytest.mark.parametrize(
    "urlconf", ["tests.no_such_module", "tests.management.no_urls"]
)
def test_site_without_our_urls_still_has_its_parameters_hidden(settings, urlconf):
    settings.ROOT_URLCONF = urlconf
    assert get_protocol_paths() == ()
    assert redact(f"/smart/callback/?code={SECRET}&error=x") == (
        f"/smart/callback/?code={HIDDEN}&error=x"
    )


def test_filter_works_before_django_does():
    code = (
        "import logging; from django_smart.redaction import RedactionFilter;"
        "record = logging.makeLogRecord({'msg': 'code=%s', 'args': ('x',)});"
        "RedactionFilter().filter(record); print(record.getMessage())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout == f"code={HIDDEN}\n"


@given(st.text())
def test_any_text_can_be_redacted_and_a_second_time_changes_nothing(text):
    redacted = redact(text)
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "piece",
    [
        "code=",
        "'code': '",
        "'code': ['x', ",
        "\\",
        '"',
        "://",
        "eyJ",
        "Authorization: ",
        "%25",
        "a&",
        ":",
        "-eyJ",
        "eyJ-",
        "eyJaaaaaaaa.",
        "-eyJaaaaaaaa-",
        "Bearer ",
        "Cookie: ",
        "('code', ",
    ],
)
def test_long_texts_take_no_longer_than_their_length(piece):
    # Of this process alone, whatever else the machine does.
    started = time.process_time()
    redact("token" + piece * (200_000 // len(piece)))
    assert time.process_time() - started < 2


@pytest.mark.parametrize("space", [" ", "\n", " \t"])
@pytest.mark.parametrize(
    "beginning",
    [
        *("'code'", "'code':", "'code': [", "'code': ['x',", "('code',", "code="),
        *("Authorization", "Authorization:", "Authorization: Bearer"),
        *("Bearer", "Cookie", "Cookie:", "HTTP_COOKIE'", "https://user:"),
    ],
)
@pytest.mark.parametrize("end", ["x", "'", "\\", ""])
def test_white_space_within_a_secret_takes_no_longer_than_its_length(
    beginning, space, end
):
    text = beginning + space * 40_000 + end
    started = time.process_time()
    redact(text)
    assert time.process_time() - started < 2


@pytest.mark.parametrize("piece", ["\\", "\\n", "\\'"])
def test_backslashes_in_a_list_take_no_longer_than_their_number(piece):
    started = time.process_time()
    redact("'code': ['" + piece * 20_000)
    assert time.process_time() - started < 2
