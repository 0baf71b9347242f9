"""Launches at an authorization server made with the npm package oidc-provider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from django.test import Client

from django_smart import transport
from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.contrib.doctor import examine
from django_smart.diagnoses import Severity
from django_smart.exceptions import (
    ReauthorizationRequiredError,
)
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import refresh_grant
from django_smart.models import ClientRegistration, Launch, SigningKey, TokenGrant
from django_smart.servers.registering import register_dynamically
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.signals import launch_failed
from tests.ehr import get_callback, get_launch, listening, make_browser, start_login
from tests.factories import METHODS, make_registration
from tests.known import REDIRECT_URI, SITE
from tests.launch_urls import get_code, open_page
from tests.outside.node import running
from tests.outside.people import go, submit

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.node,
    pytest.mark.process,
    pytest.mark.urls("tests.launch_urls"),
]

PATIENT = "maria"
SCOPE = "openid fhirUser patient/Patient.rs offline_access"
# OpenID Connect Core, section 11: without it offline_access is ignored.
CONSENT = {"prompt": "consent"}
TYPES: dict[str, dict[str, str]] = {
    "none": {"token_endpoint_auth_method": "none"},
    "basic": {
        "token_endpoint_auth_method": "client_secret_basic",
        # RFC 6749, section 2.3.1, to the letter.
        "server__basic_credentials": "form_encoded",
    },
    "post": {"token_endpoint_auth_method": "client_secret_post"},
    "RS384": {"token_endpoint_auth_method": "private_key_jwt"},
    "ES384": {
        "token_endpoint_auth_method": "private_key_jwt",
        "signing_algorithm": "ES384",
    },
}


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with running("openid_provider.mjs") as origin:
        yield origin
    transport.close()


@pytest.fixture(autouse=True)
def _plain_http(settings: Any) -> None:
    settings.SMART_INSECURE_HTTP_HOSTS = {"127.0.0.1"}


def register(
    origin: str, name: str, *, metadata: dict[str, Any] | None = None, **values: Any
) -> ClientRegistration:
    """This site's client of the type *name*, at both ends."""
    columns = TYPES[name]
    asked: dict[str, Any] = {
        "redirect_uris": [REDIRECT_URI],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": columns["token_endpoint_auth_method"],
        **(metadata or {}),
    }
    if columns["token_endpoint_auth_method"] == "private_key_jwt":
        algorithm = columns.get("signing_algorithm", "RS384")
        ensure_active_key(algorithm)
        asked["jwks"] = SigningKey.objects.as_jwks()
        asked["token_endpoint_auth_signing_alg"] = algorithm
    answer = requests.post(f"{origin}/reg", json=asked, timeout=60)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    return make_registration(
        **{
            **columns,
            "client_id": made["client_id"],
            "client_secret": made.get("client_secret", ""),
            "ehr_scope": f"launch {SCOPE}",
            "standalone_scope": f"launch/patient {SCOPE}",
            "server__base_url": f"{origin}/fhir",
            "server__authorization_parameters": CONSENT,
            **values,
        },
    )


def log_in(url: str, *, login: str = PATIENT) -> str:
    """The callback, after somebody logged in and approved."""
    session = requests.Session()
    page = go(session, "GET", url)
    page = submit(session, page, login=login, password="any")
    return submit(session, page).headers["Location"]


def begin(browser: Client, registration: ClientRegistration, kind: str) -> str:
    """The authorization request's URL."""
    if kind == "standalone":
        return start_login(browser)
    query = {"iss": registration.server.base_url, "launch": "a chart"}
    return str(browser.get("/smart/launch/", query)["Location"])


def launch(
    registration: ClientRegistration, kind: str = "standalone"
) -> tuple[Client, Launch]:
    browser = make_browser()
    callback = log_in(begin(browser, registration, kind))
    return browser, get_launch(get_callback(browser, callback))


@pytest.mark.parametrize("kind", ["ehr", "standalone"])
@pytest.mark.parametrize("name", TYPES)
def test_client_launches_reads_refreshes_and_revokes(origin, name, kind):
    browser, opened = launch(register(origin, name), kind)
    assert opened.status == Launch.Status.OPEN
    assert opened.identity is not None
    assert opened.identity.subject == PATIENT
    assert opened.identity.fhir_user == f"Patient/{PATIENT}"
    assert open_page(browser, opened) == 200
    grant = TokenGrant.objects.get()
    assert (grant.patient_id, grant.is_offline) == (PATIENT, True)
    fhir = fhir_client_for(grant=grant)
    assert fhir.read("Patient", PATIENT)["id"] == PATIENT

    used = grant.refresh_token
    assert refresh_grant(grant) is True
    grant.refresh_from_db()
    assert grant.refresh_token not in {"", used}  # rotated
    token = grant.access_token
    assert fhir_client_for(grant=grant).read("Patient", PATIENT)["id"] == PATIENT

    disconnect_grant(grant)
    assert revoke_pending() == 1
    assert open_page(browser, opened) != 200
    answer = requests.get(
        f"{origin}/fhir/Patient/{PATIENT}",
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("name", ["basic", "post", "RS384", "ES384"])
def test_token_is_introspected_by_its_client(origin, name):
    _, opened = launch(register(origin, name))
    assert opened.grant is not None
    answer = introspect_grant(opened.grant)
    assert (answer.active, answer.subject) == (True, PATIENT)


def test_offline_access_without_consent_is_not_granted(origin):
    _, opened = launch(register(origin, "none", server__authorization_parameters={}))
    assert opened.grant is not None
    assert not opened.grant.is_offline
    assert opened.grant.missing_scope == "offline_access"


def test_reused_refresh_token_ends_the_grant(origin):
    _, opened = launch(register(origin, "none"))
    grant = opened.grant
    assert grant is not None
    used = {"access_token": grant.access_token, "refresh_token": grant.refresh_token}
    assert refresh_grant(grant) is True
    # A copy of the database that is older than the refresh.
    grant.refresh_from_db()
    grant.set_tokens(**used)
    grant.save()
    with pytest.raises(ReauthorizationRequiredError):
        refresh_grant(grant)
    grant.refresh_from_db()
    assert grant.status == TokenGrant.Status.NEEDS_REAUTHORIZATION


def test_person_who_declines_is_told(origin):
    browser = make_browser()
    session = requests.Session()
    page = go(session, "GET", begin(browser, register(origin, "none"), "standalone"))
    uid = page.url.rpartition("/")[2]
    denied = go(session, "GET", f"{origin}/interaction/{uid}/abort")
    answer = get_callback(browser, denied.headers["Location"])
    assert (answer.status_code, get_code(answer)) == (403, "access_denied")


@pytest.mark.parametrize(
    ("name", "values", "error"),
    [
        ("basic", {"client_secret": "wrong"}, "invalid_client"),
        ("post", {"client_secret": "wrong"}, "invalid_client"),
        ("basic", {"token_endpoint_auth_method": "client_secret_post"}, None),
        ("RS384", {"signing_algorithm": "ES384"}, "invalid_client"),
    ],
    ids=["basic", "post", "the other method", "another algorithm"],
)
def test_wrong_credentials_are_refused(origin, name, values, error):
    ensure_active_key("ES384")
    registration = register(origin, name, **values)
    browser = make_browser()
    callback = log_in(begin(browser, registration, "standalone"))
    with listening(launch_failed) as failures:
        answer = get_callback(browser, callback)
    if error is None:  # it takes either
        assert get_launch(answer).grant is not None
        return
    assert (answer.status_code, get_code(answer)) == (400, "token_refused")
    assert failures[0]["error"].error == error


def test_credentials_that_are_not_form_encoded_are_named_by_the_doctor(origin):
    registration = register(origin, "basic", server__basic_credentials="raw")
    browser = make_browser()
    callback = log_in(begin(browser, registration, "standalone"))
    with listening(launch_failed) as failures:
        get_callback(browser, callback)
    assert failures[0]["error"].error == "invalid_request"
    codes = {each.code for each in examine([registration.server])}
    assert "basic_encoding_wrong" in codes


@pytest.mark.parametrize("name", ["none", "basic", "RS384"])
def test_context_in_a_verified_access_token(origin, name):
    registration = register(
        origin,
        name,
        metadata={"client_name": "jwt"},
        server__context_in_access_token=True,
    )
    _, opened = launch(registration)
    grant = opened.grant
    assert grant is not None
    assert grant.patient_id == PATIENT
    assert grant.access_token.count(".") == 2
    assert fhir_client_for(grant=grant).read("Patient", PATIENT)["id"] == PATIENT
    assert refresh_grant(grant) is True
    assert fhir_client_for(grant=grant).read("Patient", PATIENT)["id"] == PATIENT


def test_context_that_only_the_access_token_has_is_missing(origin):
    registration = register(origin, "none", metadata={"client_name": "jwt"})
    browser = make_browser()
    callback = log_in(begin(browser, registration, "standalone"))
    answer = get_callback(browser, callback)
    assert (answer.status_code, get_code(answer)) == (502, "patient_missing")


@pytest.mark.parametrize("name", ["basic", "RS384", "ES384"])
def test_backend_service_reads(origin, name):
    registration = register(
        origin,
        name,
        metadata={
            "grant_types": ["client_credentials"],
            "redirect_uris": [],
            "response_types": [],
        },
        ehr_scope="",
        standalone_scope="",
        redirect_uri="",
        system_scope="system/Patient.rs",
    )
    fhir = backend_client_for(registration)
    assert fhir.read("Patient", PATIENT)["id"] == PATIENT
    grant = TokenGrant.objects.get()
    disconnect_grant(grant)
    assert revoke_pending() == 1


@pytest.mark.parametrize("method", METHODS[:3])
def test_client_that_the_server_makes_itself(origin, method):
    registration, _remarks = register_dynamically(
        {
            "base_url": f"{origin}/fhir",
            "slug": "harbour",
            "site_url": SITE,
            "authorization_parameters": CONSENT,
            "basic_credentials": "form_encoded",
            "token_endpoint_auth_method": method,
            "ehr_scope": f"launch {SCOPE}",
            "standalone_scope": f"launch/patient {SCOPE}",
        }
    )
    _, opened = launch(registration)
    assert opened.grant is not None
    assert opened.grant.is_offline


def test_callback_that_names_another_issuer_is_refused(origin):
    browser = make_browser()
    callback = log_in(begin(browser, register(origin, "none"), "standalone"))
    assert "iss=" in callback
    answer = get_callback(browser, callback.replace("127.0.0.1", "127.0.0.2"))
    assert get_code(answer) == "issuer_mismatch"


@pytest.mark.parametrize("name", TYPES)
def test_doctor_finds_no_error(origin, name, settings):
    # A page of this site, which the doctor need not look up elsewhere.
    settings.SMART_LAUNCH_REDIRECT_URL = "/admin/"
    registration = register(origin, name)
    findings = examine([registration.server])
    mine = [each for each in findings if each.subject == registration.server.slug]
    assert [each.code for each in mine if each.severity is Severity.ERROR] == []


def test_sign_out_goes_on_to_the_server_and_comes_back(origin):
    registration = register(
        origin,
        "none",
        metadata={"post_logout_redirect_uris": [f"{SITE}/"]},
        server__rp_initiated_logout=True,
    )
    browser, _ = launch(registration)
    session = requests.Session()
    page = go(session, "GET", browser.post("/smart/logout/")["Location"])
    assert page.url.startswith(f"{origin}/session/end")
    assert submit(session, page, logout="yes").headers["Location"] == f"{SITE}/"
