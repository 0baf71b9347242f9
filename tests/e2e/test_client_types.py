"""
Every type of client from the launch to the revocation, as the EHR sees it.

The EHR takes this site's keys from where they are published, and checks every proof.
"""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from django.test import Client

from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.grants.refresh import refresh_grant
from django_smart.models import ClientRegistration, Launch, SigningKey, TokenGrant
from django_smart.servers.signing_keys import ensure_active_key, ensure_next_key
from django_smart.testing import EHRSimulator, RecordedRequest
from tests.ehr import (
    CLIENT_ID,
    CLIENT_SECRET,
    PATIENT,
    REDIRECT_URI,
    SITE,
    get_callback,
    get_launch,
    make_browser,
)
from tests.factories import make_registration
from tests.launch_urls import open_page

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.launch_urls")]

JWKS_URL = f"{SITE}/smart/jwks.json"
DATA = "patient/Patient.rs offline_access"
# Of a public client, a confidential symmetric and a confidential asymmetric one.
TYPES: dict[str, dict[str, str]] = {
    "public": {"token_endpoint_auth_method": "none"},
    "basic": {"token_endpoint_auth_method": "client_secret_basic"},
    "basic-encoded": {
        "token_endpoint_auth_method": "client_secret_basic",
        "server__basic_credentials": "form_encoded",
    },
    "post": {"token_endpoint_auth_method": "client_secret_post"},
    "RS384": {
        "token_endpoint_auth_method": "private_key_jwt",
        "signing_algorithm": "RS384",
    },
    "ES384": {
        "token_endpoint_auth_method": "private_key_jwt",
        "signing_algorithm": "ES384",
    },
}


@pytest.fixture
def ehr(ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch) -> EHRSimulator:
    """The EHR, which fetches this site's keys without cookies or credentials."""

    def fetch(url: str) -> Any:
        assert url == JWKS_URL
        response = Client().get(
            urlsplit(url).path, headers={"Accept": "application/json"}, secure=True
        )
        assert response.status_code == 200
        return response.json()

    monkeypatch.setattr(ehr, "fetch_jwks", fetch)
    return ehr


def register(ehr: EHRSimulator, name: str, **values: Any) -> ClientRegistration:
    """A client of this type, at both ends; with two keys, as ahead of a rotation."""
    method = TYPES[name]["token_endpoint_auth_method"]
    secret = CLIENT_SECRET if method.startswith("client_secret_") else ""
    uses_key = method == "private_key_jwt"
    for algorithm in ("RS384", "ES384") if uses_key else ():
        ensure_active_key(algorithm)
        ensure_next_key(algorithm)
    ehr.register_client(
        CLIENT_ID,
        auth_method=method,
        client_secret=secret or None,
        jwks_url=JWKS_URL if uses_key else None,
        redirect_uris=[REDIRECT_URI],
    )
    return make_registration(**{**TYPES[name], "client_secret": secret, **values})


def launch(browser: Client, ehr: EHRSimulator, kind: str) -> Launch:
    if kind == "standalone":
        response = browser.get("/smart/login/", {"server": "harbour"})
    else:
        value = ehr.create_launch(CLIENT_ID, patient=PATIENT)
        query = {"iss": ehr.base_url, "launch": value}
        response = browser.get("/smart/launch/", query)
    callback = ehr.authorize(response["Location"], patient=PATIENT)
    return get_launch(get_callback(browser, callback))


def check_proof(request: RecordedRequest, name: str) -> None:
    """That *request* has the proof of its client type and no other."""
    form, headers = dict(request.form), request.headers
    method = TYPES[name]["token_endpoint_auth_method"]
    assert request.status == 200
    assert ("Authorization" in headers) is (method == "client_secret_basic")
    assert ("client_secret" in form) is (method == "client_secret_post")
    assert ("client_assertion" in form) is (method == "private_key_jwt")
    assert ("client_id" in form) is (method in {"none", "client_secret_post"})
    if method == "client_secret_basic":
        user, _, secret = (
            base64.b64decode(headers["Authorization"].removeprefix("Basic "))
            .decode()
            .partition(":")
        )
        encoded = name == "basic-encoded"
        assert user == CLIENT_ID
        assert secret == ("a+secret%3A+100+%25+safe" if encoded else CLIENT_SECRET)
    if method == "private_key_jwt":
        check_assertion(form["client_assertion"], name, request.url)


def check_assertion(assertion: str, algorithm: str, endpoint: str) -> None:
    key = SigningKey.objects.active().get(algorithm=algorithm)
    assert jwt.get_unverified_header(assertion) == {
        "alg": algorithm,
        "kid": key.kid,
        "typ": "JWT",
    }
    claims = jwt.decode(assertion, options={"verify_signature": False})
    # Whoever receives an assertion can present it to its audience.
    assert claims["aud"] == endpoint
    assert claims["iss"] == claims["sub"]
    assert claims["exp"] - claims["iat"] <= 300


@pytest.mark.compliance("TOK-03", "TOK-10", "TOK-11", "TOK-14")
@pytest.mark.parametrize("with_identity", [True, False], ids=["openid", "data"])
@pytest.mark.parametrize("kind", ["ehr", "standalone"])
@pytest.mark.parametrize("name", TYPES)
def test_client_launches_reads_refreshes_and_revokes(
    ehr: EHRSimulator, name: str, kind: str, with_identity: bool
) -> None:
    scope = f"openid fhirUser {DATA}" if with_identity else DATA
    register(
        ehr,
        name,
        ehr_scope=f"launch {scope}",
        standalone_scope=f"launch/patient {scope}",
    )
    browser = make_browser()
    opened = launch(browser, ehr, kind)
    assert (opened.user is not None) is with_identity
    assert open_page(browser, opened) == 200
    grant = TokenGrant.objects.get()
    assert (grant.user_id, grant.kind) == (opened.user_id, opened.kind)
    assert grant.is_offline
    client = fhir_client_for(grant=grant)
    assert client.read("Patient", PATIENT)["id"] == PATIENT

    assert refresh_grant(grant) is True
    ehr.expire_access_tokens()
    assert client.read("Patient", PATIENT)["id"] == PATIENT
    assert len(ehr.requests_to("refresh")) == 2
    assert ehr.reused_refresh_tokens == 0

    disconnect_grant(grant)
    assert revoke_pending() == 1
    assert open_page(browser, opened) != 200
    assert all(each.revoked for each in ehr.store.grants())
    proven = [*ehr.requests_to("token"), *ehr.requests_to("revoke")]
    assert len(proven) == 5
    for request in proven:
        check_proof(request, name)
    assertions = {dict(each.form).get("client_assertion") for each in proven}
    assert len(assertions) == (5 if name in {"RS384", "ES384"} else 1)


@pytest.mark.compliance("BACK-01", "BACK-03", "BACK-07", "JWKS-08")
@pytest.mark.parametrize("name", ["RS384", "ES384"])
def test_backend_service_reads_and_reads_on(ehr: EHRSimulator, name: str) -> None:
    registration = register(
        ehr,
        name,
        ehr_scope="",
        standalone_scope="",
        redirect_uri="",
        system_scope="system/Patient.rs",
    )
    client = backend_client_for(registration)
    for _ in range(2):
        assert client.read("Patient", PATIENT)["id"] == PATIENT
    ehr.expire_access_tokens()
    assert client.read("Patient", PATIENT)["id"] == PATIENT
    requests = ehr.requests_to("token")
    assert len(requests) == 2
    for request in requests:
        check_proof(request, name)
    grant = TokenGrant.objects.get()
    disconnect_grant(grant)
    assert revoke_pending() == 1
    (request,) = ehr.requests_to("revoke")
    check_proof(request, name)
