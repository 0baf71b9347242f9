"""HTTP messages as values."""

from __future__ import annotations

import pytest

from django_smart.protocol.messages import HiddenBytes, HiddenText, HTTPRequest
from tests.protocol.helpers import build_answer


@pytest.mark.parametrize(
    ("content_type", "media_type"),
    [
        ("application/json", "application/json"),
        ("Application/FHIR+JSON ; charset=utf-8", "application/fhir+json"),
        ("", ""),
    ],
)
def test_the_media_type_is_without_parameters_in_lower_case(content_type, media_type):
    assert build_answer(content_type=content_type).media_type == media_type


def test_without_content_type_there_is_no_media_type():
    assert build_answer().media_type == ""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("", None),
        ("1795762800000", 86_400),
        ("9" * 400, 86_400),
    ],
)
def test_retry_after_is_read_if_it_is_a_number_of_seconds(value, seconds):
    assert build_answer(retry_after=value).retry_after == seconds
    assert build_answer().retry_after is None


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, 0.5),
        (503, {"retry_after": "2"}, 2),
        (503, {"retry_after": "6"}, None),
        (503, {"retry_after": "soon"}, None),
        (500, {"retry_after": "2"}, None),
    ],
)
def test_only_a_briefly_busy_server_is_asked_again(status, headers, seconds):
    answer = build_answer(status_code=status, **headers)
    assert answer.retry_wait == seconds


NOW = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("Wed, 21 Oct 2026 07:28:30 GMT", NOW, 30),
        ("Wed, 21 Oct 2026 07:28:30", NOW, 30),
        ("Wednesday, 21-Oct-26 07:28:30 GMT", NOW, 30),
        ("Wed, 21 Oct 2026 07:00:00 GMT", NOW, 0),
        ("Wed, 21 Oct 2099 07:28:30 GMT", NOW, 86_400),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "soon", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", NOW, None),
        ("soon", NOW, None),
    ],
)
def test_retry_after_may_be_a_date(value, date, seconds):
    assert build_answer(retry_after=value, date=date).retry_after == seconds
    assert build_answer(retry_after=value).retry_after is None


@pytest.mark.compliance("SEC-01")
def test_no_repr_shows_query_headers_or_body():
    request = HTTPRequest(
        method="POST",
        url="https://as.example.org/?x=secret",
        headers={"Authorization": "secret"},
        body=b"secret",
    )
    assert "secret" not in repr(request)
    assert "secret" not in repr(build_answer(b"secret", location="secret"))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("max-age=300", 300),
        ("public, MAX-AGE = 300", 300),
        ('max-age="300"', 300),
        ("max-age=300, max-age=600", 300),
        ("max-age=300, no-store", 0),
        ('no-cache="Set-Cookie", max-age=300', 0),
        ("s-maxage=300", None),
        ("max-age=-1", None),
        ("max-age=1.5", None),
        ("max-age=²", None),
        ("max-age=1000000000", None),
        ("max-age", None),
        ("", None),
    ],
)
def test_max_age_is_what_cache_control_says_in_seconds(value, seconds):
    assert build_answer(cache_control=value).max_age == seconds
    assert build_answer().max_age is None


@pytest.mark.compliance("SEC-01")
def test_hidden_values_are_sent_and_not_shown():
    text, data = HiddenText("Bearer secret"), HiddenBytes(b"token=secret")
    assert (text, data) == ("Bearer secret", b"token=secret")
    assert "secret" not in f"{[text, data]} {data}"
