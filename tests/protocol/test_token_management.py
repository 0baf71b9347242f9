"""Revocation and introspection."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import (
    MalformedTokenResponseError,
    TokenError,
    TokenResponseError,
    TokenServerError,
    TransportError,
)
from django_smart.protocol.client_auth import ClientSecretBasic, PublicClient
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.token_management import (
    build_introspection_request,
    build_revocation_request,
    process_introspection_response,
    process_revocation_response,
)
from tests.protocol.helpers import VECTORS, build_answer, read_form

PUBLISHED = VECTORS["introspection"]


@pytest.mark.compliance("SEC-12")
def test_a_revocation_posts_the_token_with_its_kind():
    request = build_revocation_request(
        revocation_endpoint="https://as.example.org/revoke",
        token="r+1",
        token_type_hint="refresh_token",
        client_authentication=ClientSecretBasic(client_id="a", client_secret="b"),
    )
    assert request.method == "POST"
    assert request.url == "https://as.example.org/revoke"
    assert read_form(request) == [
        ("token", "r+1"),
        ("token_type_hint", "refresh_token"),
    ]
    assert request.headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("body", [b"", b"ok", b"<html>"])
def test_a_revocation_succeeds_whatever_its_body(status, body):
    process_revocation_response(build_answer(body, status_code=status))


@pytest.mark.parametrize(
    ("status", "body", "error_class"),
    [
        (400, {"error": "unsupported_token_type"}, TokenResponseError),
        (503, b"", TokenServerError),
        (404, b"", TokenServerError),
        (302, b"", TransportError),
        (202, {}, MalformedTokenResponseError),
    ],
)
def test_a_revocation_that_failed_is_told(status, body, error_class):
    with pytest.raises(error_class):
        process_revocation_response(build_answer(body, status_code=status))


@pytest.mark.compliance("INTRO-01", "INTRO-02")
def test_the_published_introspection_request_is_built():
    expected = PUBLISHED["request"]
    authorization = expected["headers"]["Authorization"]
    request = build_introspection_request(
        introspection_endpoint="https://as.example.org/introspect",
        token=expected["form"]["token"],
        access_token=authorization.removeprefix("Bearer "),
    )
    assert request.url == "https://as.example.org/introspect"
    assert request.method == expected["method"]
    assert request.headers == expected["headers"]
    assert dict(read_form(request)) == expected["form"]


@pytest.mark.compliance("INTRO-01")
def test_the_client_may_authenticate_itself_instead():
    request = build_introspection_request(
        introspection_endpoint="https://as.example.org/introspect",
        token="t",
        client_authentication=PublicClient(client_id="a"),
    )
    assert read_form(request) == [("client_id", "a"), ("token", "t")]
    assert "Authorization" not in request.headers


@pytest.mark.compliance("INTRO-03")
def test_the_published_introspection_is_read():
    published = PUBLISHED["response"]
    answer = process_introspection_response(build_answer(published))
    assert answer.active
    assert answer.scopes == ScopeSet.parse(published["scope"])
    assert answer.scopes.covers("patient/Observation.rs")
    assert answer.client_id == published["client_id"]
    assert answer.subject == published["sub"]
    assert answer.issuer is None
    assert answer.fhir_user == published["fhirUser"]
    assert answer.context.patient == published["patient"]
    assert answer.expires_at == datetime(2020, 8, 17, 15, 42, 44, tzinfo=UTC)


@pytest.mark.compliance("INTRO-03")
def test_conditional_members_may_be_absent():
    known = {"active": True, "iss": "https://as.example.org"}
    assert process_introspection_response(build_answer(known)).issuer == known["iss"]
    answer = process_introspection_response(build_answer({"active": True}))
    assert answer.active
    assert answer.scopes == ScopeSet()
    assert answer.expires_at is None


def test_a_subject_that_is_a_number_is_read():
    body = build_answer({"active": True, "sub": 7})
    assert process_introspection_response(body).subject == "7"


@pytest.mark.compliance("INTRO-04")
def test_an_inactive_token_says_nothing_else():
    body = {**PUBLISHED["response"], "active": False}
    answer = process_introspection_response(build_answer(body))
    assert answer.active is False
    assert answer.subject is None
    assert answer.context.patient is None


@pytest.mark.compliance("INTRO-05")
def test_no_repr_shows_whom_a_token_is_about():
    answer = process_introspection_response(build_answer(PUBLISHED["response"]))
    assert PUBLISHED["response"]["sub"] not in repr(answer)
    assert "456" not in repr(answer)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"active": "true"},
        {"active": None},
        {"active": 1},
        {"active": True, "scope": ["x", 1]},
        {"active": True, "sub": 7.5},
        {"active": True, "sub": True},
        {"active": True, "exp": "soon"},
        {"active": True, "exp": True},
        {"active": True, "exp": 10**19},
        {"active": True, "exp": -(10**19)},
        {"active": True, "patient": 7.5},
    ],
)
def test_an_introspection_of_a_wrong_shape_is_refused(members):
    with pytest.raises(MalformedTokenResponseError):
        process_introspection_response(build_answer(members))


@given(
    st.dictionaries(
        st.sampled_from(["scope", "client_id", "exp", "iss", "sub", "fhirUser", "x"]),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]),
    )
)
def test_any_introspection_gives_a_value_or_a_typed_error(members):
    with contextlib.suppress(TokenError):
        body = {"active": True, **members}
        assert process_introspection_response(build_answer(body)).active
