"""How an app proves who it is, method by method."""

from __future__ import annotations

import base64
from typing import Any

import jwt
import pytest
import requests

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.id_tokens import SigningKey
from tests.testing.app import (
    CLIENT_ID,
    CLIENT_SECRET,
    KEY,
    App,
    Clock,
    assertion_form,
    jwk,
    private_jwk,
    register,
)

FORM = {"grant_type": "refresh_token", "refresh_token": "unknown"}


def post(app: App, form: dict[str, str], **options: Any) -> requests.Response:
    return app.session.post(app.ehr.token_endpoint, data={**FORM, **form}, **options)


def is_known(response: requests.Response) -> bool:
    """Whether the client got past authentication (its token is still unknown)."""
    error = response.json()["error"]
    assert error in {"invalid_grant", "invalid_client"}
    assert response.status_code == {"invalid_grant": 400, "invalid_client": 401}[error]
    return bool(error == "invalid_grant")


@pytest.mark.compliance("TOK-07")
def test_basic_is_taken_and_its_refusal_names_the_scheme(app: App) -> None:
    assert is_known(post(app, {}, auth=(CLIENT_ID, CLIENT_SECRET)))
    assert is_known(
        post(app, {"client_id": CLIENT_ID}, auth=(CLIENT_ID, CLIENT_SECRET))
    )
    wrong = post(app, {}, auth=(CLIENT_ID, "wrong"))
    assert not is_known(wrong)
    assert wrong.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize("encoded", [True, False])
def test_basic_may_be_raw_or_form_encoded(app: App, encoded: bool) -> None:
    secret = "a secret: 100 % +"
    register(app.ehr, client_secret=secret)
    sent = secret.replace("%", "%25").replace(":", "%3A").replace("+", "%2B")
    sent = sent.replace(" ", "+") if encoded else secret
    assert is_known(post(app, {}, auth=(CLIENT_ID, sent)))


@pytest.mark.parametrize(
    "header",
    ["Basic !", "Bearer abc", "Basic " + base64.b64encode(b"no colon").decode()],
)
def test_malformed_authorization_is_refused(app: App, header: str) -> None:
    assert not is_known(post(app, {}, headers={"Authorization": header}))


@pytest.mark.compliance("TOK-03", "TOK-08")
def test_public_client_only_names_itself(app: App) -> None:
    register(app.ehr, auth_method="none")
    assert is_known(post(app, {"client_id": CLIENT_ID}))
    assert not is_known(post(app, {}))
    assert not is_known(post(app, {"client_id": CLIENT_ID}, auth=(CLIENT_ID, "")))
    form = {"client_id": CLIENT_ID, "client_secret": "x"}
    assert not is_known(post(app, form))


def test_secret_in_the_body_is_taken_from_those_who_registered_it(app: App) -> None:
    form = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    assert not is_known(post(app, form))
    register(app.ehr, auth_method="client_secret_post")
    assert is_known(post(app, form))
    assert not is_known(post(app, {**form, "client_secret": "wrong"}))
    assert not is_known(post(app, form, auth=(CLIENT_ID, CLIENT_SECRET)))
    assert not is_known(post(app, {}, auth=(CLIENT_ID, CLIENT_SECRET)))


def test_confidential_client_must_authenticate(app: App) -> None:
    assert not is_known(post(app, {"client_id": CLIENT_ID}))
    other = post(app, {"client_id": "other"}, auth=(CLIENT_ID, CLIENT_SECRET))
    assert not is_known(other)


@pytest.mark.compliance("TOK-09", "TOK-10", "TOK-11", "TOK-17")
@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_assertion_is_taken(app: App, algorithm: str) -> None:
    key = SigningKey.generate(algorithm)
    register(app.ehr, auth_method="private_key_jwt", jwks={"keys": [jwk(), jwk(key)]})
    assert is_known(post(app, assertion_form(app.ehr, key=key)))
    form = assertion_form(app.ehr, key=key, aud=[app.ehr.token_endpoint])
    assert is_known(post(app, form))


@pytest.fixture
def asymmetric(app: App) -> App:
    register(app.ehr, auth_method="private_key_jwt")
    return app


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": None},
        {"iss": "other"},
        {"sub": None},
        {"sub": "other"},
        {"aud": None},
        {"aud": "https://ehr.example.org/v/r4/sim/abc"},
        {"aud": "https://ehr.example.org/v/r4/sim/abc/fhir"},
        {"exp": None},
        {"exp": "soon"},
        {"exp": 1_790_000_000.5},
        {"exp": 1_790_000_000},
        {"exp": 1_790_000_301},
        {"nbf": 1_790_000_001},
        {"jti": None},
        {"jti": ""},
        {"jti": 7},
    ],
)
@pytest.mark.compliance("TOK-13", "TOK-14", "TOK-15", "TOK-16")
def test_assertion_with_a_wrong_claim_is_refused(
    asymmetric: App, claims: dict[str, Any]
) -> None:
    assert is_known(post(asymmetric, assertion_form(asymmetric.ehr)))
    assert not is_known(post(asymmetric, assertion_form(asymmetric.ehr, **claims)))


@pytest.mark.parametrize(
    "headers",
    [
        {"kid": "unknown"},
        {"kid": ""},
        {"typ": "at+jwt"},
        {"typ": None},
        {"jku": "https://evil.example.net/jwks.json"},
    ],
)
@pytest.mark.compliance("TOK-11", "TOK-12")
def test_assertion_with_a_wrong_header_is_refused(
    asymmetric: App, headers: dict[str, Any]
) -> None:
    form = assertion_form(asymmetric.ehr, headers=headers)
    assert not is_known(post(asymmetric, form))


@pytest.mark.compliance("TOK-16")
def test_assertion_is_taken_once(asymmetric: App, clock: Clock) -> None:
    form = assertion_form(asymmetric.ehr, jti="one")
    assert is_known(post(asymmetric, form))
    assert not is_known(post(asymmetric, form))
    clock.advance(301)
    assert is_known(post(asymmetric, assertion_form(asymmetric.ehr, jti="one")))


@pytest.mark.compliance("TOK-10", "JWKS-07")
def test_assertion_signed_otherwise_is_refused(asymmetric: App) -> None:
    ehr = asymmetric.ehr
    weak = SigningKey("RS256", KEY.private_key, KEY.kid)
    assert not is_known(post(asymmetric, assertion_form(ehr, key=weak)))
    forger = SigningKey("RS384", SigningKey.generate("RS384").private_key, KEY.kid)
    assert not is_known(post(asymmetric, assertion_form(ehr, key=forger)))
    register(ehr, auth_method="private_key_jwt", jwks={"keys": [jwk(), jwk()]})
    assert not is_known(post(asymmetric, assertion_form(ehr)))
    register(ehr, auth_method="private_key_jwt", jwks={"keys": [private_jwk()]})
    assert not is_known(post(asymmetric, assertion_form(ehr)))
    broken = {"kty": "RSA", "kid": KEY.kid, "n": "AQAB"}
    register(ehr, auth_method="private_key_jwt", jwks={"keys": [broken]})
    assert not is_known(post(asymmetric, assertion_form(ehr)))


@pytest.mark.compliance("TOK-17")
def test_assertion_needs_its_type_and_nothing_beside_it(asymmetric: App) -> None:
    form = assertion_form(asymmetric.ehr)
    assert not is_known(post(asymmetric, {**form, "client_assertion_type": "jwt"}))
    assert not is_known(post(asymmetric, form, auth=(CLIENT_ID, CLIENT_SECRET)))
    assert not is_known(post(asymmetric, {**form, "client_id": "other"}))
    assert not is_known(post(asymmetric, {**form, "client_assertion": "no.jwt"}))
    only_type = {"client_assertion_type": form["client_assertion_type"]}
    assert not is_known(post(asymmetric, {**only_type, "client_id": CLIENT_ID}))


@pytest.mark.compliance("TOK-12", "JWKS-03", "JWKS-04")
def test_keys_are_fetched_from_the_registered_url(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "https://app.example.com/jwks.json"
    register(app.ehr, auth_method="private_key_jwt", jwks_url=url)
    asked: list[str] = []

    def fetch(address: str) -> Any:
        asked.append(address)
        return {"keys": [jwk(), "not a key"]}

    monkeypatch.setattr(app.ehr, "fetch_jwks", fetch)
    assert is_known(post(app, assertion_form(app.ehr, headers={"jku": url})))
    assert asked == [url]
    monkeypatch.setattr(app.ehr, "fetch_jwks", lambda address: [])
    assert not is_known(post(app, assertion_form(app.ehr)))


def test_key_set_is_fetched_over_http(app: App) -> None:
    other = EHRSimulator()
    with other.serve() as origin:
        keys = app.ehr.fetch_jwks(f"{origin}{other.root_path}/auth/jwks")
        assert keys["keys"][0]["kty"] == "RSA"
        with pytest.raises(OSError, match="404"):
            app.ehr.fetch_jwks(f"{origin}/nowhere")
    (recorded,) = other.requests_to("jwks")
    assert recorded.headers["Accept"] == "application/json"


@pytest.mark.parametrize(
    "values",
    [
        {"auth_method": "mtls"},
        {"auth_method": "client_secret_basic"},
        {"auth_method": "none", "client_secret": "x"},
        {"auth_method": "private_key_jwt"},
        {"auth_method": "none", "jwks": {"keys": []}},
    ],
)
@pytest.mark.compliance("REG-04")
def test_registration_wants_the_credential_of_its_method(
    ehr: EHRSimulator, values: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        ehr.register_client("app", **values)


def test_assertions_are_plain_jwts() -> None:
    form = assertion_form(EHRSimulator())
    header = jwt.get_unverified_header(form["client_assertion"])
    assert header == {"alg": "RS384", "kid": KEY.kid, "typ": "JWT"}
