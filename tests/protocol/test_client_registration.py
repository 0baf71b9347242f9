"""Dynamic client registration: metadata out, client id and secret in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_smart.exceptions import (
    RegistrationError,
    RegistrationRefusedError,
)
from django_smart.protocol.client_registration import (
    ClientInformation,
    build_registration_request,
    process_registration_response,
)
from tests.protocol.helpers import build_answer

ENDPOINT = "https://as.example.org/register?tenant=1"
CALLBACK = "https://app.example.org/smart/callback/"
METADATA = {
    "redirect_uris": [CALLBACK],
    "token_endpoint_auth_method": "client_secret_basic",
}
KEYED = {
    "token_endpoint_auth_method": "private_key_jwt",
    "jwks_uri": "https://app.example.org/smart/jwks.json",
}
ANSWER = {"client_id": "abc", "client_secret": "a secret: 100 % safe"}


def process(
    answer: Any, *, metadata: dict[str, Any] = METADATA, status_code: int = 201
) -> ClientInformation:
    return process_registration_response(
        build_answer(answer, status_code=status_code), metadata=metadata
    )


@pytest.mark.compliance("REG-06")
def test_metadata_is_posted_as_json():
    request = build_registration_request(METADATA, registration_endpoint=ENDPOINT)
    assert (request.method, request.url) == ("POST", ENDPOINT)
    assert request.headers == {
        "Accept": "application/json",
        "Content-Type": "application/json",
    }
    assert json.loads(request.body or b"") == METADATA


def test_initial_access_token_is_a_bearer_token_and_in_no_repr():
    request = build_registration_request(
        METADATA, registration_endpoint=ENDPOINT, initial_access_token="abc.DEF-1=="
    )
    assert request.headers["Authorization"] == "Bearer abc.DEF-1=="
    assert "abc.DEF" not in repr(request)


@pytest.mark.parametrize("token", ["", "x y", "x\r\nX: y", "ü", "=x"])
def test_initial_access_token_that_no_header_carries_is_refused(token):
    with pytest.raises(ValueError, match="not a bearer token") as caught:
        build_registration_request(
            METADATA, registration_endpoint=ENDPOINT, initial_access_token=token
        )
    assert token == "" or token not in str(caught.value)


@pytest.mark.parametrize("status_code", [200, 201])
def test_client_id_and_secret_are_read(status_code):
    information = process(ANSWER, status_code=status_code)
    assert information == ClientInformation(
        client_id="abc",
        client_secret="a secret: 100 % safe",
        token_endpoint_auth_method="client_secret_basic",
    )
    assert "secret:" not in repr(information)


def test_everything_a_server_adds_is_read_or_passed_over():
    information = process(
        {
            **ANSWER,
            "client_id_issued_at": 1,
            "client_secret_expires_at": 4_000_000_000,
            "scope": "launch openid",
            "redirect_uris": ["https://other.example.org/", CALLBACK],
            "registration_access_token": "x",
            "registration_client_uri": "https://as.example.org/register/abc",
            "jwks_uri": "https://elsewhere.example.net/",
        }
    )
    assert information.scope == "launch openid"
    assert information.client_secret_expires_at == 4_000_000_000


@pytest.mark.parametrize("value", [0, None])
def test_secret_that_does_not_end_has_no_end(value):
    information = process({**ANSWER, "client_secret_expires_at": value})
    assert information.client_secret_expires_at is None


@pytest.mark.parametrize("method", ["none", "client_secret_post"])
def test_method_may_be_replaced_by_the_server(method):
    information = process({**ANSWER, "token_endpoint_auth_method": method})
    assert information.token_endpoint_auth_method == method
    # A public client keeps no secret, though one was sent.
    assert (information.client_secret is None) is (method == "none")


def test_client_with_a_key_gets_no_secret():
    information = process(
        {"client_id": "abc", "client_secret": "x", "jwks_uri": KEYED["jwks_uri"]},
        metadata=KEYED,
    )
    assert information.client_secret is None
    assert information.token_endpoint_auth_method == "private_key_jwt"


def test_client_whose_keys_were_sent_expects_no_address_of_them():
    metadata = {
        "token_endpoint_auth_method": "private_key_jwt",
        "jwks": {"keys": [{"kty": "EC"}]},
    }
    information = process({"client_id": "abc"}, metadata=metadata)
    assert information.client_id == "abc"
    assert information.token_endpoint_auth_method == "private_key_jwt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client_id": None}, "client_id is missing"),
        ({"client_id": ""}, "client_id is missing"),
        ({"client_id": 7}, "client_id is not a string of visible ASCII"),
        ({"client_id": "a\nb"}, "client_id is not a string of visible ASCII"),
        ({"client_id": "ü"}, "client_id is not a string of visible ASCII"),
        ({"client_secret": None}, "client_secret is missing"),
        ({"client_secret": ["x"]}, "client_secret is not a string of visible ASCII"),
        ({"client_secret_expires_at": "0"}, "client_secret_expires_at is not a whole"),
        ({"client_secret_expires_at": -1}, "client_secret_expires_at is not a whole"),
        ({"client_secret_expires_at": True}, "client_secret_expires_at is not a whole"),
        ({"token_endpoint_auth_method": "tls_client_auth"}, "tls_client_auth"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "was sent no keys"),
        ({"redirect_uris": ["https://x.example/"]}, "different redirect_uris"),
        ({"redirect_uris": []}, "different redirect_uris"),
        ({"redirect_uris": "https://x.example/"}, "different redirect_uris"),
        ({"redirect_uris": f"{CALLBACK}more/"}, "different redirect_uris"),
        ({"scope": ["openid"]}, "scope is not a string of visible ASCII"),
    ],
)
def test_answer_that_is_of_no_use_is_refused(changes, message):
    with pytest.raises(RegistrationError, match=message) as caught:
        process({**ANSWER, **changes})
    assert "a secret" not in str(caught.value)


def test_keys_of_somebody_else_are_refused():
    answer = {"client_id": "abc", "jwks_uri": "https://elsewhere.example.net/jwks"}
    with pytest.raises(RegistrationError, match="different jwks_uri"):
        process(answer, metadata=KEYED)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"client_id":"a"'])
def test_body_that_is_no_json_object_is_refused(body):
    with pytest.raises(RegistrationError):
        process(body)


@pytest.mark.parametrize("status_code", [204, 302, 307, 400, 403, 404, 500, 503])
def test_other_status_is_a_refusal(status_code):
    with pytest.raises(RegistrationRefusedError, match=str(status_code)) as caught:
        process(ANSWER, status_code=status_code)
    assert caught.value.status_code == status_code
    assert caught.value.error == caught.value.error_description == ""
    wants_token = "initial access token" in str(caught.value)
    assert wants_token is (status_code == 403)


def test_refusal_says_what_the_server_said():
    answer = build_answer(
        {"error": "invalid_redirect_uri", "error_description": "no\r\n http"},
        status_code=400,
        content_type="application/json",
    )
    with pytest.raises(RegistrationError) as caught:
        process_registration_response(answer, metadata=METADATA)
    error = caught.value
    assert isinstance(error, RegistrationRefusedError)
    assert error.error == "invalid_redirect_uri"
    assert error.error_description == "no http"
    assert "invalid_redirect_uri" in str(error)
    assert "no http" not in str(error)


@pytest.mark.parametrize("body", [b"{", {"error": 7}, {"detail": "no"}])
def test_refusal_that_cannot_be_read_is_a_refusal(body):
    answer = build_answer(body, status_code=401, content_type="application/json")
    with pytest.raises(RegistrationRefusedError, match="initial access token") as it:
        process_registration_response(answer, metadata=METADATA)
    assert it.value.error == ""
