"""
What the client suite of Inferno's SMART App Launch test kit checks.

The checks are those of the public repository, in our words.  The simulator has the
shape of its server: the base URL is the issuer, only the OpenID configuration names
the keys, and scopes for data are of version 1.  The table is in
``docs/reference/conformance.rst``.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from django.core.management import call_command
from werkzeug.wrappers import Request, Response

from django_smart import transport
from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.grants.refresh import refresh_grant
from django_smart.models import ClientRegistration, SigningKey, TokenGrant
from django_smart.testing import EHRSimulator, RecordedRequest
from tests.ehr import connect, get_callback, get_launch, make_browser, start_ehr_launch
from tests.factories import METHODS, SERVICE_ID, make_client, make_service
from tests.known import (
    BASE_URL,
    CLIENT_ID,
    CLIENT_SECRET,
    PATIENT,
    REDIRECT_URI,
    SITE,
)

pytestmark = pytest.mark.django_db

SCOPE = "openid fhirUser offline_access patient/*.read"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_NOT_IN_ITS_DOCUMENT = ("jwks_uri", "registration_endpoint", "revocation_endpoint")


@pytest.fixture
def ehr() -> Iterator[EHRSimulator]:
    """The simulator, with the SMART configuration of Inferno's server."""
    ehr = EHRSimulator(BASE_URL, issuer=BASE_URL)

    def describe(respond: Callable[[Request], Response], request: Request) -> Response:
        response = respond(request)
        if request.path.endswith("/.well-known/smart-configuration"):
            document = json.loads(response.get_data())
            for name in _NOT_IN_ITS_DOCUMENT:
                document.pop(name)
            document["capabilities"].remove("sso-openid-connect")
            document["scopes_supported"] = [
                *("system/*.read", "user/*.read", "patient/*.read")
            ]
            response.set_data(json.dumps(document))
        return response

    ehr.interceptors.append(describe)
    with transport.mounted(ehr.origin, ehr.adapter()):
        yield ehr


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everything that one client has sent."""

    ehr: EHRSimulator
    method: str
    launches: list[str]

    @property
    def authorizations(self) -> list[dict[str, str]]:
        """Parameters of each authorization request."""
        return [dict(one.query) for one in self.ehr.requests_to("authorize")]

    @property
    def exchanges(self) -> list[tuple[RecordedRequest, dict[str, str]]]:
        """Token requests, with their form."""
        return [(one, dict(one.form)) for one in self.ehr.requests_to("token")]


@pytest.fixture(params=METHODS)
def session(request: pytest.FixtureRequest, ehr: EHRSimulator) -> Session:
    """An EHR launch, a standalone launch, a read and a refresh of one client."""
    make_client(ehr, request.param, SCOPE)
    sent = start_ehr_launch(browser := make_browser(), ehr)
    get_launch(get_callback(browser, ehr.authorize(sent)))
    connect(make_browser(), ehr, patient=PATIENT)
    grant = TokenGrant.objects.latest("pk")
    fhir_client_for(grant=grant).read("Patient", PATIENT)
    assert refresh_grant(grant)
    fhir_client_for(grant=TokenGrant.objects.latest("pk")).read("Patient", PATIENT)
    return Session(ehr=ehr, method=request.param, launches=list(ehr.store.launches))


@pytest.fixture
def service(ehr: EHRSimulator) -> Session:
    """Two clients of a backend service, each with a token of its own."""
    registration = make_service(ehr, system_scope="system/*.read")
    for _ in range(2):
        backend_client_for(registration).read("Patient", PATIENT)
        TokenGrant.objects.all().delete()
    return Session(ehr=ehr, method="private_key_jwt", launches=[])


@pytest.mark.compliance("REG-02", "REG-03")
def test_registered_urls_are_https(settings: Any, capsys: Any) -> None:
    settings.SMART_SITE_URL = SITE
    options = (
        "--token-endpoint-auth-method",
        "none",
        "--ehr-scope",
        "launch openid",
        "--offline",
    )
    where = ("--base-url", BASE_URL, "--client-id", CLIENT_ID)
    more = ("--standalone-scope", "launch/patient openid")
    call_command("smart_register", *where, *options, *more)
    printed = json.loads(capsys.readouterr().out)
    printed.pop("slug")
    assert all(url.startswith(f"{SITE}/") for url in printed.values())


@pytest.mark.compliance("AUTH-02", "AUTH-03", "EHRL-05", "SAL-02")
def test_authorization_requests_are_conformant(session: Session) -> None:
    by_ehr, standalone = session.authorizations
    for asked in (by_ehr, standalone):
        assert asked["response_type"] == "code"
        assert asked["client_id"] == CLIENT_ID
        assert asked["redirect_uri"] == REDIRECT_URI
        assert asked["aud"] == BASE_URL
        assert asked["code_challenge"]
        assert asked["code_challenge_method"] == "S256"
        assert asked["scope"]
    assert [by_ehr["launch"]] == session.launches
    assert "launch" not in standalone
    # 122 bits at least, in letters of six bits each.
    assert all(len(each["state"]) * 6 >= 122 for each in (by_ehr, standalone))
    assert by_ehr["state"] != standalone["state"]


@pytest.mark.compliance("TOK-02", "TOK-03", "AUTH-04", "REF-03")
def test_token_requests_are_conformant(session: Session) -> None:
    *codes, (_, refresh) = session.exchanges
    assert refresh["grant_type"] == "refresh_token"
    assert refresh["refresh_token"] in session.ehr.store.refresh_tokens
    for asked, (_, form) in zip(session.authorizations, codes, strict=True):
        assert form["grant_type"] == "authorization_code"
        assert form["code"] in session.ehr.store.codes
        assert form["redirect_uri"] == asked["redirect_uri"]
        hashed = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(hashed).decode().rstrip("=")
        assert challenge == asked["code_challenge"]


@pytest.mark.compliance("TOK-07", "TOK-08", "TOK-17")
def test_every_token_request_authenticates_as_registered(session: Session) -> None:
    assert len(session.exchanges) == 3
    for request, form in session.exchanges:
        named = {"client_id", "client_secret", "client_assertion_type"} & set(form)
        if session.method == "none":
            assert form["client_id"] == CLIENT_ID
            assert named == {"client_id"}
        if session.method == "client_secret_basic":
            raw = f"{CLIENT_ID}:{CLIENT_SECRET}".encode()
            expected = f"Basic {base64.b64encode(raw).decode()}"
            assert request.headers["Authorization"] == expected
            assert named == set()
        if session.method == "private_key_jwt":
            assert form["client_assertion_type"] == _ASSERTION
        assert ("Authorization" in request.headers) is (
            session.method == "client_secret_basic"
        )


@pytest.mark.parametrize("session", ["private_key_jwt"], indirect=True)
@pytest.mark.compliance("TOK-10", "TOK-11", "TOK-14", "TOK-16")
def test_assertions_of_an_app_are_conformant(session: Session) -> None:
    _check_assertions(session, CLIENT_ID, number=3)


@pytest.mark.compliance("BACK-03", "TOK-11", "TOK-14", "TOK-16")
def test_token_requests_of_a_backend_service_are_conformant(service: Session) -> None:
    for _, form in service.exchanges:
        assert form["grant_type"] == "client_credentials"
        assert form["client_assertion_type"] == _ASSERTION
        assert form["scope"] == "system/*.read"
    _check_assertions(service, SERVICE_ID, number=2)


@pytest.mark.compliance("JWKS-01", "JWKS-02")
def test_registered_key_set_has_a_valid_key(session: Session) -> None:
    keys = SigningKey.objects.as_jwks()["keys"]
    assert bool(keys) is (session.method == "private_key_jwt")
    assert all(jwt.PyJWK(each).key_id for each in keys)


@pytest.mark.compliance("FHIR-01")
def test_returned_tokens_are_used(session: Session) -> None:
    used = {one.headers["Authorization"] for one in session.ehr.requests_to("fhir")}
    issued = {f"Bearer {token}" for token in session.ehr.store.access_tokens}
    # Before the refresh, and after it.
    assert len(used) == 2
    assert used <= issued


@pytest.mark.compliance("BACK-08", "FHIR-01")
def test_returned_tokens_of_a_backend_service_are_used(service: Session) -> None:
    used = {one.headers["Authorization"] for one in service.ehr.requests_to("fhir")}
    assert used == {f"Bearer {token}" for token in service.ehr.store.access_tokens}
    assert ClientRegistration.objects.count() == 1


def _check_assertions(session: Session, client_id: str, *, number: int) -> None:
    keys = {each["kid"]: each for each in SigningKey.objects.as_jwks()["keys"]}
    seen = set()
    for _, form in session.exchanges:
        header = jwt.get_unverified_header(form["client_assertion"])
        assert header["typ"] == "JWT"
        claims = jwt.decode(
            form["client_assertion"],
            jwt.PyJWK(keys[header["kid"]]),
            algorithms=[header["alg"]],
            audience=session.ehr.token_endpoint,
            options={"require": ["iss", "sub", "aud", "exp", "jti"]},
        )
        assert claims["iss"] == claims["sub"] == client_id
        assert claims["aud"] == session.ehr.token_endpoint
        seen.add(claims["jti"])
    assert len(seen) == number
