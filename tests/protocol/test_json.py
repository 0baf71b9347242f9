"""Strict JSON."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import MalformedTokenResponseError
from django_smart.protocol.json import MAX_DEPTH, parse_json_object


def parse(body, **options):
    return parse_json_object(
        body, error=MalformedTokenResponseError, what="token response", **options
    )


def test_an_object_is_returned_as_a_dict():
    assert parse(b' {"a": [1, -2.5, true, null, {"b": "\xc3\xa9"}]} ') == {
        "a": [1, -2.5, True, None, {"b": "é"}]
    }


def test_a_byte_order_mark_is_skipped():
    assert parse(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.compliance("DISC-06", "RESP-01")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not valid JSON"),
        (b"<html></html>", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"12", "not a JSON object"),
        (b'{"a": 1, "a": 1}', "duplicate"),
        (b'{"a": {"b": 1, "\\u0062": 2}}', "duplicate"),
        (b'{"a": NaN}', "the number NaN"),
        (b'{"a": -Infinity}', "the number -Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 123456789012345678901}', "too large"),
        (b'{"a": -' + b"9" * 5000 + b"}", "too large"),
        (b'{"a": "\\u0000"}', "NUL"),
        (b'{"a\\u0000": 1}', "NUL"),
        (b'{"a": ["\\ud800"]}', "surrogate"),
        (b'{"a": "\\udfff"}', "surrogate"),
        ('{"a": "é\\u0000"}'.encode(), "NUL"),
    ],
)
def test_what_is_not_a_sound_json_object_is_refused_with_its_reason(body, reason):
    with pytest.raises(MalformedTokenResponseError, match=reason):
        parse(body)


def test_text_that_cannot_be_stored_is_replaced_if_asked():
    body = {"a\0": ["\ud83d", {"b": "\udfff-\0"}, "\U0001f600", 1, None]}
    assert parse(json.dumps(body).encode(), replace_unstorable=True) == {
        "a\ufffd": ["\ufffd", {"b": "\ufffd-\ufffd"}, "\U0001f600", 1, None]
    }
    with pytest.raises(MalformedTokenResponseError, match="deeper than 32"):
        parse(nest(100_000), replace_unstorable=True)


@pytest.mark.parametrize("number", [10**19, -(10**19), 12345678901234567890])
def test_integers_of_twenty_digits_are_read(number):
    assert parse(b'{"a": %d}' % number) == {"a": number}


def nest(depth, *, inner=b"1"):
    return b'{"a": ' + b"[" * (depth - 1) + inner + b"]" * (depth - 1) + b"}"


def test_the_deepest_nesting_allowed_is_read():
    assert parse(nest(MAX_DEPTH))["a"]
    assert parse(nest(MAX_DEPTH, inner=b'"text"'))["a"]


def test_unsound_text_at_the_deepest_level_is_refused():
    with pytest.raises(MalformedTokenResponseError, match="NUL"):
        parse(nest(MAX_DEPTH, inner=b'"\\u0000"'))


@pytest.mark.compliance("STATE-14")
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1000, 100_000])
def test_deeper_nesting_is_refused_without_a_recursion_error(depth):
    with pytest.raises(MalformedTokenResponseError, match="deeper than 32"):
        parse(nest(depth))


def test_the_error_quotes_nothing_of_the_body_and_chains_nothing():
    with pytest.raises(MalformedTokenResponseError) as caught:
        parse(b'{"access_token": "secret-token"')
    assert "secret-token" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_the_error(body):
    with contextlib.suppress(MalformedTokenResponseError):
        assert isinstance(parse(body), dict)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**19), 10**19)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from("abc"), _VALUES))
def test_sound_objects_come_back_equal(value):
    assert parse(json.dumps(value).encode()) == value
