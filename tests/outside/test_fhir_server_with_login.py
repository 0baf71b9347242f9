"""
Standalone launches at ysnr-dev/fhir-server, where it runs with authentication enabled.

``FHIR_SERVER_WITH_LOGIN`` is its address, such as ``http://localhost:3000``, and
``FHIR_SERVER_ADMIN_TOKEN`` registers clients there.  ``FHIR_SERVER_EMAIL`` and
``FHIR_SERVER_PASSWORD`` are of a person with more than ten observations; there is
another patient.  Its limits (``FHIR_RATE_...``, ``FHIR_AUTH_FAIL_MAX``) must be raised.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import requests
from django.test import Client

from django_smart.clients import backend_client_for, fhir_client_for
from django_smart.contrib.doctor import examine
from django_smart.diagnoses import Severity
from django_smart.exceptions import (
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    ReauthorizationRequiredError,
)
from django_smart.fhir import Token
from django_smart.grants.ending import disconnect_grant, revoke_pending
from django_smart.grants.introspection import introspect_grant
from django_smart.grants.refresh import refresh_grant
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Launch,
    SigningKey,
    TokenGrant,
)
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.signals import launch_failed
from tests.ehr import get_callback, get_launch, listening, make_browser, start_login
from tests.factories import end_wait, make_registration
from tests.known import REDIRECT_URI
from tests.launch_urls import get_code, open_page
from tests.outside.people import go, submit

_ADDRESS = os.environ.get("FHIR_SERVER_WITH_LOGIN", "")

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.process,
    pytest.mark.skipif(not _ADDRESS, reason="FHIR_SERVER_WITH_LOGIN is not set"),
    pytest.mark.urls("tests.launch_urls"),
]

# It knows neither launch/patient nor another scope of the launch context.
SCOPE = "openid fhirUser offline_access patient/Patient.rs patient/Observation.rs"
# Revocation and introspection want assertions for the token endpoint.
_AUDIENCE = {"server__assertion_audience": "token_endpoint"}
TYPES: dict[str, dict[str, str]] = {
    "none": {"token_endpoint_auth_method": "none"},
    "basic": {"token_endpoint_auth_method": "client_secret_basic"},
    "post": {"token_endpoint_auth_method": "client_secret_post"},
    "RS384": {"token_endpoint_auth_method": "private_key_jwt", **_AUDIENCE},
    "ES384": {
        "token_endpoint_auth_method": "private_key_jwt",
        "signing_algorithm": "ES384",
        **_AUDIENCE,
    },
}


@pytest.fixture(autouse=True)
def _plain_http(settings: Any) -> None:
    settings.SMART_INSECURE_HTTP_HOSTS = {"localhost", "127.0.0.1"}


def register(
    name: str, scope: str = SCOPE, *, server: FHIRServer | None = None, **values: Any
) -> ClientRegistration:
    """This site's client of the type *name*, at both ends."""
    columns = TYPES[name]
    asked: dict[str, Any] = {"name": "Growth chart", "scopes": scope.split()}
    if not scope.startswith("system/"):
        asked["redirect_uris"] = [REDIRECT_URI]
    if name == "none":
        asked["client_type"] = "public"
    if columns["token_endpoint_auth_method"] == "private_key_jwt":
        ensure_active_key(columns.get("signing_algorithm", "RS384"))
        asked["jwks"] = SigningKey.objects.as_jwks()
    answer = requests.post(
        f"{_ADDRESS}/admin/oauth_clients",
        json=asked,
        headers={"X-FHIR-Admin-Token": os.environ["FHIR_SERVER_ADMIN_TOKEN"]},
        timeout=60,
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    if server is None:
        values["server__base_url"] = _ADDRESS
    return make_registration(
        server,
        **{
            **columns,
            "client_id": made["client_id"],
            "client_secret": made.get("client_secret", ""),
            "ehr_scope": "",
            "standalone_scope": scope,
            **values,
        },
    )


def register_service(
    name: str, scope: str, server: FHIRServer | None = None
) -> ClientRegistration:
    values = {"standalone_scope": "", "redirect_uri": "", "system_scope": scope}
    return register(name, scope, server=server, **values)


def log_in(url: str, *, decision: str = "approve") -> str:
    """The callback, after the person logged in and decided."""
    session = requests.Session()
    page = go(session, "GET", url)
    email = os.environ["FHIR_SERVER_EMAIL"]
    password = os.environ["FHIR_SERVER_PASSWORD"]
    # Its forms forget response_type, and then refuse what lacks it (August 2026).
    forgotten = {"response_type": "code"}
    page = submit(session, page, email=email, password=password, **forgotten)
    return submit(session, page, decision=decision, **forgotten).headers["Location"]


def launch(registration: ClientRegistration) -> tuple[Client, Launch]:
    browser = make_browser()
    callback = log_in(start_login(browser))
    return browser, get_launch(get_callback(browser, callback))


def get(path: str, token: str) -> int:
    """The status of an answer to what this site's own checks have not seen."""
    headers = {"Authorization": f"Bearer {token}"}
    return requests.get(f"{_ADDRESS}/{path}", headers=headers, timeout=60).status_code


@pytest.mark.parametrize("name", TYPES)
def test_client_launches_reads_searches_refreshes_and_revokes(name):
    browser, opened = launch(register(name))
    assert opened.status == Launch.Status.OPEN
    grant = TokenGrant.objects.get()
    patient = grant.patient_id
    assert patient
    assert opened.identity is not None
    assert opened.identity.fhir_user == f"Patient/{patient}"
    assert open_page(browser, opened) == 200

    fhir = fhir_client_for(grant=grant)
    assert fhir.read("Patient", patient)["id"] == patient
    found = fhir.search("Observation", patient=f"Patient/{patient}", _count=10)
    assert len({each["id"] for each in found}) == found.total > 10

    used = grant.refresh_token
    assert refresh_grant(grant) is True
    grant.refresh_from_db()
    assert grant.refresh_token not in {"", used}  # rotated
    token = grant.access_token
    assert fhir_client_for(grant=grant).read("Patient", patient)["id"] == patient

    disconnect_grant(grant)
    assert revoke_pending() == 1
    assert open_page(browser, opened) != 200
    assert get(f"Patient/{patient}", token) == 401


def test_assertion_for_the_revocation_endpoint_is_refused_there():
    """So the tokens are kept until the operator has set assertion_audience."""
    registration = register("ES384", server__assertion_audience="endpoint")
    _, opened = launch(registration)
    assert opened.grant is not None
    disconnect_grant(opened.grant)
    assert revoke_pending() == 0
    FHIRServer.objects.update(quirks={"assertion_audience": "token_endpoint"})
    end_wait()
    assert revoke_pending() == 1


def test_person_who_declines_is_told():
    register("none")
    browser = make_browser()
    answer = get_callback(browser, log_in(start_login(browser), decision="deny"))
    assert (answer.status_code, get_code(answer)) == (403, "access_denied")


def test_scope_that_it_does_not_know_is_refused():
    registration = register("none")
    registration.standalone_scope = f"launch/patient {SCOPE}"
    registration.save()
    browser = make_browser()
    answer = go(requests.Session(), "GET", start_login(browser))
    with listening(launch_failed) as failures:
        page = get_callback(browser, answer.headers["Location"])
    assert get_code(page) == "authorization_refused"
    assert failures[0]["error"].error == "invalid_scope"


@pytest.mark.parametrize("name", ["basic", "post", "RS384"])
def test_wrong_credentials_are_refused(name):
    registration = register(name)
    if name == "RS384":
        SigningKey.objects.all().delete()
        ensure_active_key("RS384")
    else:
        registration.client_secret = "wrong"
        registration.save()
    browser = make_browser()
    callback = log_in(start_login(browser))
    with listening(launch_failed) as failures:
        answer = get_callback(browser, callback)
    assert get_code(answer) == "token_refused"
    assert failures[0]["error"].error == "invalid_client"


def test_reused_refresh_token_ends_the_grant():
    _, opened = launch(register("none"))
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


def test_record_of_somebody_else_is_not_there():
    _, opened = launch(register("none"))
    assert opened.grant is not None
    service = register_service("ES384", "system/Patient.rs", opened.registration.server)
    ids = {each["id"] for each in backend_client_for(service).search("Patient")}
    other = (ids - {opened.grant.patient_id}).pop()
    assert get(f"Patient/{other}", opened.grant.access_token) == 404


@pytest.mark.parametrize("name", ["basic", "post", "RS384"])
def test_token_is_introspected_by_its_client(name):
    _, opened = launch(register(name, server__introspection_mode="client"))
    assert opened.grant is not None
    answer = introspect_grant(opened.grant)
    assert answer.active
    assert answer.context.patient == opened.grant.patient_id


@pytest.mark.parametrize("name", ["basic", "post", "RS384", "ES384"])
def test_backend_service_writes_and_searches(name):
    fhir = backend_client_for(register_service(name, "system/*.cruds"))
    identifier = [{"system": "urn:example:mrn", "value": name}]
    created = fhir.create(
        {
            "resourceType": "Patient",
            "identifier": identifier,
            "name": [{"family": "Okonjo", "given": ["Ada"]}],
            "gender": "female",
            "birthDate": "1980-05-04",
        }
    )
    assert fhir.read("Patient", created["id"]) == created
    found = fhir.search("Patient", identifier=Token(name, "urn:example:mrn"))
    assert created["id"] in {each["id"] for each in found}
    updated = fhir.update({**created, "active": True}, if_match=created)
    with pytest.raises(FHIRPreconditionFailedError):
        fhir.update({**created, "active": False}, if_match=created)
    patch = [{"op": "replace", "path": "/birthDate", "value": "1981-01-01"}]
    assert fhir.patch("Patient", created["id"], patch)["birthDate"] == "1981-01-01"
    versions = [each["resource"] for each in fhir.history("Patient", created["id"])]
    assert [each["meta"]["versionId"] for each in versions] == ["3", "2", "1"]
    assert updated["active"] is True
    batch = fhir.batch()
    batch.read("Patient", created["id"])
    (answer,) = batch.send()
    read = answer.get()
    assert read is not None
    assert read["id"] == created["id"]
    fhir.delete("Patient", created["id"])
    with pytest.raises(FHIRNotFoundError):
        fhir.read("Patient", created["id"])


def test_service_that_may_only_read_is_refused_there():
    fhir = backend_client_for(register_service("ES384", "system/Patient.rs"))
    with pytest.raises(FHIRForbiddenError):
        fhir.create({"resourceType": "Patient", "gender": "female"})


@pytest.mark.parametrize("name", TYPES)
def test_doctor_finds_no_error(name):
    registration = register(name)
    findings = examine([registration.server])
    mine = [each for each in findings if each.subject == registration.server.slug]
    assert [each.code for each in mine if each.severity is Severity.ERROR] == []
