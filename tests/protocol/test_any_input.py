"""Any bytes and any JSON, for the parsers that have no page of their own for it."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import (
    DiscoveryError,
    RegistrationError,
    SMARTError,
)
from django_smart.protocol.client_registration import (
    process_registration_response,
)
from django_smart.protocol.configuration import SMARTConfiguration
from django_smart.protocol.context import LaunchContext
from django_smart.protocol.discovery import (
    process_discovery_response,
    process_jwks_response,
    process_openid_configuration_response,
)
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.oauth import parse_oauth_error
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.style import parse_style
from django_smart.protocol.token import process_refresh_response, process_token_response
from django_smart.protocol.token_management import process_introspection_response

NOW = datetime(2026, 11, 25, tzinfo=UTC)
BASE_URL = "https://ehr.example.org/fhir"
REDIRECT_URI = "https://app.example.org/smart/callback/"
METADATA = {
    "redirect_uris": [REDIRECT_URI],
    "token_endpoint_auth_method": "client_secret_basic",
}

_TEXT = st.text(max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3)
    ),
    max_leaves=4,
)


def _objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have some of the members *names*, of any type."""
    return st.dictionaries(st.sampled_from(names), _JSON | _TEXT, max_size=4)


def _answer(value: object, status_code: int = 200) -> HTTPResponse:
    return HTTPResponse(status_code=status_code, body=json.dumps(value).encode())


@given(
    _objects(
        "client_id",
        "client_secret",
        "client_secret_expires_at",
        "redirect_uris",
        "scope",
        "token_endpoint_auth_method",
        "error",
        "error_description",
    ),
    st.sampled_from([200, 201, 302, 400, 401, 500]),
)
def test_any_registration_gives_a_client_or_a_typed_error(members, status):
    with contextlib.suppress(RegistrationError, SMARTError):
        information = process_registration_response(
            _answer(members, status), metadata=METADATA
        )
        assert information.client_id


@given(_objects("issuer", "jwks_uri", "x"), st.none() | _TEXT)
def test_any_openid_configuration_gives_two_urls_or_a_typed_error(members, issuer):
    with contextlib.suppress(DiscoveryError):
        found = process_openid_configuration_response(_answer(members), issuer=issuer)
        assert found["jwks_uri"].startswith("https://")


@given(_objects("keys", "x") | _JSON)
def test_any_key_set_is_a_list_of_objects_or_a_typed_error(value):
    with contextlib.suppress(DiscoveryError):
        assert all(
            isinstance(key, dict)
            for key in process_jwks_response(_answer(value))["keys"]
        )


@given(_objects("error", "error_description", "error_uri"))
def test_any_error_can_be_shown_or_is_none(members):
    error = parse_oauth_error(members)
    if error:
        assert error["error"].isascii()
        assert error["error_uri"] == "" or error["error_uri"].startswith("https://")
        assert len(error["error_description"]) <= 500
        assert error["error_description"].isprintable()


@given(st.text(max_size=30))
def test_any_header_is_a_number_of_seconds_or_none(value):
    response = HTTPResponse(
        status_code=503,
        headers={"retry-after": value, "cache-control": value, "content-type": value},
    )
    for seconds in (response.retry_after, response.max_age):
        assert seconds is None or seconds >= 0
    assert ";" not in response.media_type


_configure = partial(SMARTConfiguration.from_json, base_url=BASE_URL)
_PARSERS: dict[str, Callable[[HTTPResponse], object]] = {
    "configuration": lambda it: _configure(process_discovery_response(it)),
    "introspection": lambda answer: process_introspection_response(answer),
    "key set": process_jwks_response,
    "openid": lambda answer: process_openid_configuration_response(answer, issuer=None),
    "refresh": lambda answer: process_refresh_response(
        answer,
        granted=ScopeSet.parse("openid"),
        now=NOW,
        previous_context=LaunchContext(),
    ),
    "registration": lambda answer: process_registration_response(
        answer, metadata=METADATA
    ),
    "style": lambda answer: parse_style(answer.body),
    "token": lambda answer: process_token_response(
        answer, requested=ScopeSet.parse("openid"), now=NOW
    ),
}


@given(st.binary(max_size=60), st.sampled_from([200, 201, 302, 400, 404, 429, 500]))
def test_any_bytes_give_every_parser_a_value_or_a_typed_error(body, status):
    for parse in _PARSERS.values():
        with contextlib.suppress(SMARTError):
            parse(HTTPResponse(status_code=status, body=body))


_SIZE = 200_000


def _absurd() -> Iterator[tuple[str, bytes]]:
    """Bodies within the size that is read, made to cost as much as they can."""
    yield "lists", b"[" * _SIZE
    yield "closed lists", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "objects", b'{"a":' * 40_000
    yield "digits", b'{"expires_in": ' + b"9" * _SIZE + b"}"
    yield "exponent", b'{"expires_in": 1e999999999}'
    yield "digits in a text", b'{"expires_in": "' + b"9" * _SIZE + b'"}'
    yield "escapes", b'{"access_token": "' + rb"\u0041" * 33_000 + b'"}'
    yield "surrogates", b'{"scope": "' + rb"\ud800" * 33_000 + b'"}'
    yield "white space", b" " * _SIZE
    yield "members", json.dumps({f"m{n}": n for n in range(16_000)}).encode()
    yield "scopes", b'{"scope": "' + b"patient/*.rs?a=b&" * 12_000 + b'"}'
    yield "many scopes", b'{"scope": "' + b"patient/A.rs " * 16_000 + b'"}'
    yield "keys", b'{"keys": [' + b"{}," * 60_000 + b"{}]}"


@pytest.mark.parametrize("name", sorted(_PARSERS))
def test_absurd_input_costs_bounded_time_and_memory(name):
    for kind, body in _absurd():
        tracemalloc.start()
        started = time.process_time()
        try:
            with contextlib.suppress(SMARTError):
                _PARSERS[name](HTTPResponse(status_code=200, body=body))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # Generous, and far from what is not linear.
        assert time.process_time() - started < 2, kind
        assert peak < 60 * _SIZE, (kind, peak)
