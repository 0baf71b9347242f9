"""What every exchange with a server needs: our limits and our credentials there."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jwt
import pytest
from django.utils import timezone

from django_smart.exceptions import (
    CredentialsError,
    InsecureURLError,
    ResponseTooLargeError,
)
from django_smart.models import ClientRegistration, SigningKey
from django_smart.protocol.jwk import PrivateKey, load_private_key
from django_smart.protocol.messages import HTTPRequest
from django_smart.servers import http
from django_smart.servers.http import (
    build_client_authentication,
    send,
    whole_call_seconds,
)
from django_smart.servers.signing_keys import create_signing_key, rotate_key
from django_smart.testing import EHRSimulator
from tests.ehr import CLIENT_ID, CLIENT_SECRET, launch, make_browser
from tests.factories import make_registration, register_key_at

pytestmark = pytest.mark.django_db

_ENDPOINT = "https://ehr.example.org/token"


def _apply(registration: ClientRegistration) -> tuple[dict[str, str], dict[str, str]]:
    """The form and the headers that prove who *registration* is."""
    form: list[tuple[str, str]] = []
    headers: dict[str, str] = {}
    build_client_authentication(registration, token_endpoint=_ENDPOINT).apply(
        form, headers, endpoint=_ENDPOINT
    )
    return dict(form), headers


@pytest.mark.compliance("TOK-07", "TOK-03")
@pytest.mark.parametrize(
    ("way", "credentials"),
    [
        ("raw", f"{CLIENT_ID}:{CLIENT_SECRET}"),
        ("form_encoded", f"{CLIENT_ID}:a+secret%3A+100+%25+safe"),
    ],
)
def test_basic_credentials_go_as_the_server_wants_them(
    way: str, credentials: str
) -> None:
    form, headers = _apply(make_registration(server__basic_credentials=way))
    expected = base64.b64encode(credentials.encode()).decode()
    assert (form, headers) == ({}, {"Authorization": f"Basic {expected}"})


def test_secret_goes_into_the_form_where_it_is_wanted_there() -> None:
    form, headers = _apply(
        make_registration(token_endpoint_auth_method="client_secret_post")
    )
    assert form == {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    assert "Authorization" not in headers


@pytest.mark.compliance("TOK-03", "TOK-08")
def test_public_client_sends_its_id_alone() -> None:
    form, headers = _apply(
        make_registration(token_endpoint_auth_method="none", client_secret="")
    )
    assert (form, headers) == ({"client_id": CLIENT_ID}, {})


@pytest.mark.compliance("TOK-17", "JWKS-08")
@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_private_key_signs_an_assertion_for_the_endpoint(algorithm: str) -> None:
    registration = make_registration(
        token_endpoint_auth_method="private_key_jwt",
        client_secret="",
        signing_algorithm=algorithm,
    )
    with pytest.raises(CredentialsError):
        _apply(registration)
    create_signing_key(algorithm, status=SigningKey.Status.NEXT)
    with pytest.raises(CredentialsError):
        _apply(registration)
    key = create_signing_key(algorithm)
    form, headers = _apply(registration)
    assert headers == {}
    assertion = form["client_assertion"]
    assert jwt.get_unverified_header(assertion)["kid"] == key.kid
    claims = jwt.decode(
        assertion,
        jwt.PyJWK(key.public_jwk, algorithm).key,
        algorithms=[algorithm],
        audience=_ENDPOINT,
    )
    assert (claims["iss"], claims["sub"]) == (CLIENT_ID, CLIENT_ID)
    again, _ = _apply(registration)
    assert again["client_assertion"] != assertion


@pytest.mark.compliance("TOK-04")
def test_launch_works_with_an_assertion(ehr: EHRSimulator) -> None:
    make_registration(token_endpoint_auth_method="private_key_jwt", client_secret="")
    create_signing_key("RS384")
    register_key_at(ehr)
    assert launch(make_browser(), ehr).status == "open"


def test_secret_is_read_from_the_environment_or_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registration = make_registration(
        client_secret="", client_secret_env="SMART_TEST_SECRET"
    )
    monkeypatch.delenv("SMART_TEST_SECRET", raising=False)
    with pytest.raises(CredentialsError, match="SMART_TEST_SECRET"):
        _apply(registration)
    monkeypatch.setenv("SMART_TEST_SECRET", "from the environment")
    assert registration.get_client_secret({"SMART_TEST_SECRET": "x"}) == "x"
    encoded = base64.b64encode(f"{CLIENT_ID}:from the environment".encode()).decode()
    assert _apply(registration)[1]["Authorization"] == f"Basic {encoded}"

    file = tmp_path / "secret"
    registration.client_secret_env = ""
    registration.client_secret_file = str(file)
    with pytest.raises(CredentialsError, match="cannot be read"):
        _apply(registration)
    file.write_text("\n")
    with pytest.raises(CredentialsError, match="empty"):
        _apply(registration)
    file.write_text("from a file\n")
    assert registration.get_client_secret({}) == "from a file"


def test_launch_fails_with_its_code_when_the_secret_is_gone(ehr: EHRSimulator) -> None:
    registration = make_registration(client_secret="", client_secret_env="NO_SUCH_NAME")
    browser = make_browser()
    start = browser.post("/smart/login/", {"server": "harbour"})
    response = browser.get(ehr.authorize(start["Location"]))
    assert response.status_code == 503
    assert b"<code>credentials_unusable</code>" in response.content
    launched = registration.launches.get()
    assert (launched.status, launched.error_code) == ("failed", "credentials_unusable")
    assert not ehr.requests_to("token")


@pytest.mark.compliance("SEC-04", "TOK-05")
@pytest.mark.usefixtures("ehr")
def test_limits_of_the_settings_are_those_of_every_request(settings: Any) -> None:
    request = HTTPRequest(
        method="GET",
        url="https://ehr.example.org/smart-style.json",
        headers={},
    )
    assert send(request, server=None).status_code == 200
    with pytest.raises(ResponseTooLargeError):
        send(request, server=None, max_body=5)
    settings.SMART_HTTP_TIMEOUT = (1, 2, 3)
    assert whole_call_seconds() == 3
    with pytest.raises(InsecureURLError):
        send(HTTPRequest(method="GET", url="http://ehr.example.org/"), server=None)


# Signing keys


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_key_is_parsed_once_for_many_signatures(
    monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    registration = make_registration(
        token_endpoint_auth_method="private_key_jwt",
        client_secret="",
        signing_algorithm=algorithm,
    )
    create_signing_key(algorithm)
    parsed: list[str] = []
    load = load_private_key

    def count(pem: str) -> PrivateKey:
        parsed.append(pem)
        return load(pem)

    monkeypatch.setattr(http, "load_private_key", count)
    assertions = {_apply(registration)[0]["client_assertion"] for _ in range(5)}
    assert (len(assertions), len(parsed)) == (5, 1)
    # What was signed with before does not stay in memory.
    create_signing_key(algorithm, status=SigningKey.Status.NEXT)
    rotate_key(algorithm, at_once=True)
    for _ in range(2):
        _apply(registration)
    assert len(parsed) == 2
    assert list(http._parsed_keys[algorithm, None])[:1] == [
        SigningKey.objects.active().get().kid
    ]


@pytest.mark.compliance("JWKS-10")
def test_key_that_another_process_rotated_is_noticed_at_the_next_signature() -> None:
    registration = make_registration(
        token_endpoint_auth_method="private_key_jwt",
        client_secret="",
        signing_algorithm="ES384",
    )
    old = create_signing_key("ES384")
    new = create_signing_key("ES384", status=SigningKey.Status.NEXT)
    kids = [_get_kid(registration)]
    rotate_key("ES384", at_once=True)
    kids.append(_get_kid(registration))
    assert kids == [old.kid, new.kid]
    SigningKey.objects.retire(new, now=timezone.now())
    with pytest.raises(CredentialsError, match="smart_keys generate"):
        _apply(registration)


def _get_kid(registration: ClientRegistration) -> str:
    assertion = _apply(registration)[0]["client_assertion"]
    return str(jwt.get_unverified_header(assertion)["kid"])
