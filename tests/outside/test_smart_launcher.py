"""
Launches from smart-on-fhir/smart-launcher-v2, where it runs.

``SMART_LAUNCHER`` is its address, such as ``http://localhost:8445``; its R4 server has
a patient with more than ten observations and an encounter, and a practitioner; the
first patient is the one.  Run it with ``NODE_ENV=production``: in development its pages
are at another port.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64encode
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import requests
from django.test import Client

from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.contrib.doctor import examine
from django_smart.diagnoses import Severity
from django_smart.exceptions import (
    FHIRUnauthorizedError,
    ReauthorizationRequiredError,
    TokenResponseError,
)
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import refresh_grant
from django_smart.models import ClientRegistration, Launch, SigningKey, TokenGrant
from django_smart.servers.presets import PRESETS
from django_smart.servers.signing_keys import create_signing_key, ensure_active_key
from django_smart.signals import launch_failed
from tests.ehr import get_callback, get_launch, listening, make_browser
from tests.factories import make_registration
from tests.known import BY_POST, CLIENT_ID, REDIRECT_URI, SITE
from tests.launch_urls import get_code, open_page
from tests.launches.forms import Form
from tests.outside.people import go

_ADDRESS = os.environ.get("SMART_LAUNCHER", "")

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.process,
    pytest.mark.skipif(not _ADDRESS, reason="SMART_LAUNCHER is not set"),
    pytest.mark.urls("tests.launch_urls"),
]

# The launcher splits Basic credentials at every colon.
SECRET = "s3cr/et+ %&="
SCOPE = "openid fhirUser patient/Patient.rs patient/Observation.rs offline_access"
LAUNCHES = [
    "provider-ehr",
    "patient-portal",
    "provider-standalone",
    "patient-standalone",
    "backend-service",
]
CLIENTS = ["public", "confidential-symmetric", "confidential-asymmetric"]
# What a launch fails with that the authorization or the token endpoint refuses.
_AUTHORIZE, _TOKEN = "authorization_refused", "token_refused"
# How this site authenticates, and what the launcher calls that.
TYPES: dict[str, tuple[str, dict[str, str]]] = {
    "public": ("public", {"token_endpoint_auth_method": "none"}),
    "secret": (
        "confidential-symmetric",
        {"token_endpoint_auth_method": "client_secret_basic"},
    ),
    "RS384": (
        "confidential-asymmetric",
        {"token_endpoint_auth_method": "private_key_jwt"},
    ),
    "ES384": (
        "confidential-asymmetric",
        {"token_endpoint_auth_method": "private_key_jwt", "signing_algorithm": "ES384"},
    ),
}


@pytest.fixture(autouse=True)
def _plain_http(settings: Any) -> None:
    settings.SMART_INSECURE_HTTP_HOSTS = {"localhost", "127.0.0.1"}


def find_id(resource_type: str) -> str:
    """Of somebody at the open server that the launcher stands before."""
    url = f"{_ADDRESS}/v/r4/fhir/{resource_type}?_count=1"
    entries = requests.get(url, timeout=60).json()["entry"]
    return str(entries[0]["resource"]["id"])


def encode(launch_type: str, client: str, **options: Any) -> str:
    """The launcher's own form of *options*."""
    values = {
        "patient": find_id("Patient"),
        "provider": find_id("Practitioner"),
        "encounter": "AUTO",
        "skip_login": 1,
        "skip_auth": 1,
        "scope": "",
        "redirect_uris": REDIRECT_URI,
        "client_id": CLIENT_ID,
        "client_secret": SECRET if client == "confidential-symmetric" else "",
        "auth_error": "",
        "jwks": "",
        "pkce": 2,  # always
        **options,
    }
    if client == "confidential-asymmetric" and "jwks" not in options:
        values["jwks"] = json.dumps(SigningKey.objects.as_jwks())
    order = [
        *("patient", "provider", "encounter", "skip_login", "skip_auth", "sim_ehr"),
        *("scope", "redirect_uris", "client_id", "client_secret", "auth_error"),
        *("jwks_url", "jwks"),
    ]
    encoded = json.dumps(
        [
            LAUNCHES.index(launch_type),
            *(values.get(name, "") for name in order),
            CLIENTS.index(client),
            values["pkce"],
            "",
        ]
    )
    return urlsafe_b64encode(encoded.encode()).decode().rstrip("=")


def register(
    name: str, launch_type: str, *, values: dict[str, Any] | None = None, **options: Any
) -> tuple[ClientRegistration, str]:
    """This site's client of the type *name*, and the launch as the launcher has it."""
    client, columns = TYPES[name]
    if client == "confidential-asymmetric":
        ensure_active_key(columns.get("signing_algorithm", "RS384"))
    encoded = encode(launch_type, client, **options)
    is_ehr = launch_type in {"provider-ehr", "patient-portal"}
    path = "/v/r4/fhir" if is_ehr else f"/v/r4/sim/{encoded}/fhir"
    preset = PRESETS["smart_launcher"]
    registration = make_registration(
        **{
            **columns,
            "client_secret": SECRET if name == "secret" else "",
            "ehr_scope": f"launch {SCOPE}",
            "standalone_scope": f"launch/patient launch/encounter {SCOPE}",
            "server__base_url": f"{_ADDRESS}{path}",
            "server__preset": "smart_launcher",
            **{f"server__{column}": value for column, value in preset.items()},
            **(values or {}),
        },
    )
    return registration, encoded if is_ehr else ""


def begin(browser: Client, registration: ClientRegistration, launch_id: str) -> Any:
    """This site's first answer."""
    if not launch_id:
        return browser.post("/smart/login/", {"server": "harbour"})
    query = {"iss": registration.server.base_url, "launch": launch_id}
    return browser.get("/smart/launch/", query)


def authorize(started: Any, **choices: str) -> str:
    """The callback, after the pages where a person chooses or approves."""
    session = requests.Session()
    if started.status_code == 302:
        asked = dict(parse_qsl(urlsplit(started["Location"]).query))
        answer = go(session, "GET", started["Location"])
    else:  # a long request
        form = Form(started.content)
        asked = dict(form.inputs)
        answer = go(session, "POST", form.action, data=asked)
    # The pages themselves need not have been built.
    while (page := urlsplit(answer.url)).path in _PAGES:
        endpoint = asked["aud"].replace("/fhir", "/auth/authorize")
        chosen = {name: choices[name] for name in _PAGES[page.path] if name in choices}
        query = {**dict(parse_qsl(page.query)), **chosen}
        if page.path.endswith("-login"):
            query["login_success"] = "1"
        if page.path == "/authorize-app":
            query["auth_success"] = "1"
        answer = go(session, "GET", f"{endpoint}?{urlencode(query)}")
    assert answer.is_redirect, (answer.url, answer.status_code, answer.text)
    return answer.headers["Location"]


_PAGES = {
    "/provider-login": ["provider"],
    "/patient-login": ["patient"],
    "/select-patient": ["patient"],
    "/select-encounter": ["encounter"],
    "/authorize-app": [],
}


def launch(name: str, launch_type: str, **options: Any) -> tuple[Client, Launch]:
    """A whole launch."""
    browser = make_browser()
    started = begin(browser, *register(name, launch_type, **options))
    return browser, get_launch(get_callback(browser, authorize(started)))


def fail(name: str, launch_type: str, **options: Any) -> tuple[str, str]:
    """The code of the page that a launch ends at, and the server's error."""
    browser = make_browser()
    started = begin(browser, *register(name, launch_type, **options))
    with listening(launch_failed) as failures:
        answer = get_callback(browser, authorize(started))
    assert answer.status_code == 400
    assert not TokenGrant.objects.exists()
    return get_code(answer), failures[0]["error"].error


@pytest.mark.parametrize("launch_type", LAUNCHES[:4])
@pytest.mark.parametrize("name", TYPES)
def test_launch_reads_searches_and_refreshes(name, launch_type):
    patient = find_id("Patient")
    browser, opened = launch(name, launch_type)
    assert opened.status == Launch.Status.OPEN
    assert opened.user is not None
    assert opened.identity is not None
    who = "Patient" if launch_type.startswith("patient") else "Practitioner"
    assert opened.identity.fhir_user.endswith(f"{who}/{find_id(who)}")
    assert opened.context["encounter"]
    assert opened.context["need_patient_banner"] is True
    assert opened.context["smart_style_url"] == f"{_ADDRESS}/smart-style.json"
    assert open_page(browser, opened) == 200

    grant = TokenGrant.objects.get()
    assert (grant.patient_id, grant.is_offline) == (patient, True)
    fhir = fhir_client_for(grant=grant)
    assert fhir.read("Patient", patient)["id"] == patient
    found = fhir.search("Observation", patient=f"Patient/{patient}", _count=10)
    assert len({each["id"] for each in found}) == found.total > 10

    assert refresh_grant(grant) is True
    assert fhir_client_for(grant=grant).read("Patient", patient)["id"] == patient
    # There is no revocation endpoint: the tokens are only forgotten here.
    disconnect_grant(grant)
    revoke_pending()
    grant.refresh_from_db()
    assert (grant.status, grant.refresh_token) == (TokenGrant.Status.REVOKED, "")
    assert open_page(browser, opened) != 200


@pytest.mark.parametrize("launch_type", LAUNCHES[:4])
def test_authorization_request_by_post(launch_type):
    values = {"server__authorization_parameters": BY_POST}
    _, opened = launch("public", launch_type, values=values)
    assert opened.grant is not None
    assert opened.grant.patient_id == find_id("Patient")


@pytest.mark.parametrize("launch_type", LAUNCHES[:4])
def test_person_logs_in_chooses_and_approves(launch_type):
    options: dict[str, Any] = {
        "patient": "",
        "provider": "",
        "skip_login": 0,
        "skip_auth": 0,
    }
    browser = make_browser()
    started = begin(browser, *register("public", launch_type, **options))
    patient, provider = find_id("Patient"), find_id("Practitioner")
    callback = authorize(started, patient=patient, provider=provider)
    opened = get_launch(get_callback(browser, callback))
    assert opened.grant is not None
    assert opened.grant.patient_id == patient


@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_backend_service(algorithm):
    fhir = backend_client_for(register_service(algorithm))
    patient = find_id("Patient")
    assert fhir.read("Patient", patient)["id"] == patient


def register_service(algorithm: str, **options: Any) -> ClientRegistration:
    create_signing_key(algorithm)
    keys = json.dumps(SigningKey.objects.as_jwks())
    options = {"redirect_uris": "", "jwks": keys, **options}
    encoded = encode("backend-service", "confidential-asymmetric", **options)
    return make_registration(
        token_endpoint_auth_method="private_key_jwt",
        signing_algorithm=algorithm,
        client_secret="",
        ehr_scope="",
        standalone_scope="",
        redirect_uri="",
        system_scope="system/Patient.rs",
        server__base_url=f"{_ADDRESS}/v/r4/sim/{encoded}/fhir",
    )


# Errors that the launcher simulates


@pytest.mark.parametrize("launch_type", LAUNCHES[:4])
@pytest.mark.parametrize(
    ("name", "simulated", "code", "error"),
    [
        ("public", "auth_invalid_client_id", _AUTHORIZE, "invalid_client"),
        ("public", "auth_invalid_redirect_uri", _AUTHORIZE, "invalid_request"),
        ("public", "auth_invalid_scope", _AUTHORIZE, "invalid_scope"),
        ("secret", "auth_invalid_client_secret", _TOKEN, "invalid_client"),
        ("public", "token_invalid_token", _TOKEN, "invalid_client"),
        ("secret", "token_invalid_token", _TOKEN, "invalid_client"),
        ("RS384", "token_invalid_token", _TOKEN, "invalid_client"),
        ("RS384", "token_expired_registration_token", _TOKEN, "invalid_client"),
        ("RS384", "token_invalid_jti", _TOKEN, "invalid_client"),
    ],
)
def test_simulated_error_ends_the_launch(name, simulated, code, error, launch_type):
    assert fail(name, launch_type, auth_error=simulated) == (code, error)


@pytest.mark.parametrize("launch_type", LAUNCHES[:4])
def test_simulated_end_of_the_refresh_token_ends_the_grant(launch_type):
    _, opened = launch("public", launch_type, auth_error="token_expired_refresh_token")
    grant = opened.grant
    assert grant is not None
    with pytest.raises(ReauthorizationRequiredError):
        refresh_grant(grant)
    grant.refresh_from_db()
    assert grant.status == TokenGrant.Status.NEEDS_REAUTHORIZATION


@pytest.mark.parametrize("error", ["request_invalid_token", "request_expired_token"])
@pytest.mark.parametrize("launch_type", LAUNCHES[:4])
def test_error_that_only_the_token_response_has_is_ignored(launch_type, error):
    """The launcher simulates these for backend services alone (below)."""
    _, opened = launch("public", launch_type, auth_error=error)
    assert opened.grant is not None
    patient = find_id("Patient")
    assert fhir_client_for(grant=opened.grant).read("Patient", patient)["id"] == patient


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("token_invalid_token", "invalid_client"),
        ("token_expired_registration_token", "invalid_client"),
        ("token_invalid_scope", "invalid_scope"),
        ("token_invalid_jti", "invalid_client"),
    ],
)
def test_simulated_error_refuses_the_backend_service(error, code):
    fhir = backend_client_for(register_service("ES384", auth_error=error))
    with pytest.raises(TokenResponseError) as caught:
        fhir.read("Patient", find_id("Patient"))
    assert caught.value.error == code


@pytest.mark.parametrize("error", ["request_invalid_token", "request_expired_token"])
def test_simulated_refusal_of_the_services_token_is_raised(error):
    fhir = backend_client_for(register_service("ES384", auth_error=error))
    with pytest.raises(FHIRUnauthorizedError):
        fhir.read("Patient", find_id("Patient"))


# What the launcher validates of a registration


@pytest.mark.parametrize("launch_type", ["provider-ehr", "patient-standalone"])
@pytest.mark.parametrize(
    ("name", "options", "code", "error"),
    [
        ("public", {"client_id": "another"}, _AUTHORIZE, "invalid_client"),
        ("public", {"redirect_uris": f"{SITE}/no/"}, _AUTHORIZE, "invalid_request"),
        ("public", {"scope": "openid fhirUser"}, _AUTHORIZE, "invalid_scope"),
        ("secret", {"client_secret": "another"}, _TOKEN, "invalid_client"),
        ("RS384", {"jwks": '{"keys": []}'}, _TOKEN, "invalid_client"),
    ],
    ids=["client id", "redirect URI", "scope", "secret", "keys"],
)
def test_wrong_registration_is_refused(name, options, code, error, launch_type):
    assert fail(name, launch_type, **options) == (code, error)


@pytest.mark.parametrize("launch_type", ["provider-ehr", "patient-standalone"])
def test_token_is_introspected_with_itself(launch_type):
    _, opened = launch("public", launch_type)
    assert opened.grant is not None
    answer = introspect_grant(opened.grant)
    assert answer.active
    assert answer.client_id == CLIENT_ID


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("launch_type", ["provider-ehr", "patient-standalone"])
def test_doctor_finds_no_error(name, launch_type):
    registration, _ = register(name, launch_type)
    findings = examine([registration.server])
    mine = [each for each in findings if each.subject == registration.server.slug]
    assert [each.code for each in mine if each.severity is Severity.ERROR] == []
