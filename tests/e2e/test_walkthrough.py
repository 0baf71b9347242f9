"""
The specification's own walk-through, exact on the wire, and its two siblings.

Values: SMART App Launch 2.2, "Example App Launch for Symmetric Client Auth", from the
vectors (see tests/vectors/README.md for source and licence).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from django_smart import transport
from django_smart.clients import fhir_client_for
from django_smart.exceptions import NoGrantError
from django_smart.models import ClientRegistration, Identity, Launch, TokenGrant
from django_smart.testing import EHRSimulator
from tests.ehr import (
    CLIENT_ID,
    PATIENT,
    get_callback,
    get_launch,
    launch,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.factories import make_registration

pytestmark = pytest.mark.django_db

VECTORS = Path(__file__).parent.parent / "vectors" / "known-answers.json"
SEED: dict[str, Any] = json.loads(VECTORS.read_text())["seed_flow"]
BASE = SEED["fhir_base"]
ASKED = SEED["authorization_request"]["params"]
VERIFIER = SEED["token_request"]["symmetric"]["code_verifier"]
BASIC = SEED["token_request_headers_symmetric"]["Authorization"]


@pytest.fixture
def seed_ehr() -> Iterator[EHRSimulator]:
    """The EHR of the example, with the oddities the example shows."""
    ehr = EHRSimulator(base_url=BASE, echo_offline_access=False, page_path="/v/r4/fhir")
    ehr.register_client(
        SEED["client_id"],
        client_secret=SEED["client_secret"],
        redirect_uris=[SEED["redirect_uri"]],
    )
    with transport.mounted("https://smart.argo.run", ehr.adapter()):
        yield ehr


@pytest.fixture
def seed_registration(db: None) -> ClientRegistration:
    """This site at that EHR."""
    return make_registration(
        server__slug="smart-argo-run",
        server__base_url=BASE,
        server__bearer_boundary="origin",
        client_id=SEED["client_id"],
        client_secret=SEED["client_secret"],
        standalone_scope=ASKED["scope"],
        ehr_scope="",
        redirect_uri=SEED["redirect_uri"],
    )


@pytest.mark.urls("tests.e2e.urls")
@pytest.mark.compliance("SAL-03", "AUTH-02", "TOK-02", "TOK-07")
@pytest.mark.usefixtures("seed_registration")
def test_seed_walkthrough_is_exact_on_the_wire(
    seed_ehr: EHRSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = secrets.token_urlsafe
    monkeypatch.setattr(
        secrets, "token_urlsafe", lambda size: VERIFIER if size == 64 else choose(size)
    )
    browser = make_browser("sharp-lake-word.glitch.me")

    authorization = browser.get("/smart/login/?server=smart-argo-run")
    assert authorization.status_code == 302
    _check_authorization_request(authorization["Location"], seed_ehr)

    callback = get_callback(
        browser, seed_ehr.authorize(authorization["Location"], patient=PATIENT)
    )
    opened = get_launch(callback)
    _check_token_request(seed_ehr)
    _check_token_response(opened)

    client = fhir_client_for(grant=opened.grant)
    _check_search(client, seed_ehr)
    _check_refresh(opened, seed_ehr)
    assert seed_ehr.reused_refresh_tokens == 0


def _check_authorization_request(url: str, ehr: EHRSimulator) -> None:
    (discovery,) = ehr.requests
    assert (discovery.method, discovery.url) == (
        "GET",
        f"{BASE}/.well-known/smart-configuration",
    )
    assert discovery.headers["Accept"] == "application/json"
    state = dict(parse_qsl(urlsplit(url).query))["state"]
    # 43 base64url characters: 256 bits, where at least 122 are asked for.
    assert len(state) == 43
    printed = SEED["authorization_request"]["url"]
    assert url == printed.replace(ASKED["state"], state)


def _check_token_request(ehr: EHRSimulator) -> None:
    (request,) = ehr.requests_to("token")
    assert request.method == "POST"
    assert request.headers["Authorization"] == BASIC
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert request.headers["Accept"] == "application/json"
    (_, code), *rest = request.form
    assert rest == [
        ("grant_type", "authorization_code"),
        ("redirect_uri", SEED["redirect_uri"]),
        ("code_verifier", VERIFIER),
    ]
    body = (
        f"code={code}&grant_type=authorization_code"
        "&redirect_uri=https%3A%2F%2Fsharp-lake-word.glitch.me%2Fgraph.html"
        f"&code_verifier={VERIFIER}"
    )
    assert request.body == body.encode()


def _check_token_response(opened: Launch) -> None:
    """Stored as granted; nobody is signed in; the refresh token is kept."""
    expected = dict(SEED["token_response"])
    del expected["access_token"], expected["refresh_token"]
    assert opened.context == expected
    grant = opened.grant
    assert grant is not None
    assert grant.scope == SEED["token_response"]["scope"]
    assert "offline_access" not in grant.scope
    assert grant.refresh_token
    assert grant.is_offline
    assert (opened.user, grant.user, opened.identity) == (None, None, None)
    assert not get_user_model().objects.exists()


def _check_search(client: Any, ehr: EHRSimulator) -> None:
    ehr.clear_requests()
    result = client.search(
        "Observation",
        [
            ("code", "4548-4"),
            ("_sort:desc", "date"),
            ("_count", "10"),
            ("patient", PATIENT),
        ],
    )
    observations = list(result)
    first, *further = ehr.requests_to("fhir")
    assert first.url == SEED["fhir_request"]["url"]
    assert first.headers["Authorization"].startswith("Bearer ")
    # The next link: same origin, outside the base path, with the bearer too.
    assert further
    for page in further:
        assert page.url.startswith("https://smart.argo.run/v/r4/fhir?")
        assert page.headers["Authorization"] == first.headers["Authorization"]
    assert len(observations) > 10
    subjects = {each["subject"]["reference"] for each in observations}
    assert subjects == {f"Patient/{PATIENT}"}


def _check_refresh(opened: Launch, ehr: EHRSimulator) -> None:
    ehr.clear_requests()
    grant = opened.grant
    assert grant is not None
    used = grant.refresh_token
    TokenGrant.objects.filter(pk=grant.pk).update(expires_at=timezone.now())
    grant.refresh_from_db()
    fhir_client_for(grant=grant).read("Patient", PATIENT)
    (request,) = ehr.requests_to("token")
    assert request.form == [("grant_type", "refresh_token"), ("refresh_token", used)]
    assert request.headers["Authorization"] == BASIC
    grant.refresh_from_db()
    assert grant.refresh_token != used
    assert grant.expires_at > timezone.now() + timedelta(minutes=50)
    assert grant.patient_id == PATIENT


@pytest.mark.compliance("EHRL-02", "EHRL-03", "EHRL-04", "EHRL-05")
@pytest.mark.usefixtures("registration")
def test_ehr_launch_signs_in_the_user_of_the_identity(ehr: EHRSimulator) -> None:
    browser = make_browser()
    url = start_ehr_launch(browser, ehr)
    asked = dict(parse_qsl(urlsplit(url).query))
    assert asked["scope"].split()[0] == "launch"
    assert asked["aud"] == ehr.base_url
    assert asked["launch"]

    opened = get_launch(get_callback(browser, ehr.authorize(url)))

    identity = Identity.objects.get()
    assert identity.issuer == ehr.issuer
    assert opened.user == identity.user
    assert opened.fhir_user.startswith("Practitioner/")
    assert browser.session["_auth_user_id"] == str(identity.user.pk)
    assert not identity.user.has_usable_password()
    # A second launch finds the same user, and makes one outbound request.
    ehr.clear_requests()
    other = launch(make_browser(), ehr)
    assert other.user == opened.user
    assert [each.exchange for each in ehr.requests if each.method == "POST"] == [
        "token"
    ]
    assert [each.exchange for each in ehr.requests if each.method == "GET"] == [
        "authorize"
    ]


@pytest.mark.compliance("SAL-01", "SAL-02", "SAL-04")
@pytest.mark.usefixtures("registration")
def test_anonymous_standalone_launch_signs_in(ehr: EHRSimulator) -> None:
    browser = make_browser()
    response = browser.get("/smart/login/?server=harbour&next=/somewhere/%3Fa=1")
    asked = dict(parse_qsl(urlsplit(response["Location"]).query))
    assert "launch" not in asked
    assert "launch" not in asked["scope"].split()

    callback = get_callback(
        browser,
        ehr.authorize(response["Location"], user=f"Patient/{PATIENT}"),
    )

    opened = get_launch(callback)
    assert callback["Location"] == f"/~{opened.key}/somewhere/?a=1"
    assert opened.fhir_user == f"Patient/{PATIENT}"
    assert browser.session["_auth_user_id"] == str(opened.user_id)
    grant = fhir_client_for(opened.user, opened.registration.server)
    assert grant.read("Patient", PATIENT)["id"] == PATIENT


@pytest.mark.usefixtures("registration")
def test_signed_in_user_connects_by_a_button(ehr: EHRSimulator) -> None:
    browser = make_browser()
    user = get_user_model().objects.create_user("maria")
    browser.force_login(user)
    session_key = browser.session.session_key

    page = browser.get("/smart/login/?server=harbour")
    assert page.status_code == 200
    assert not ehr.requests
    callback = ehr.authorize(start_login(browser), user=f"Patient/{PATIENT}")
    opened = get_launch(get_callback(browser, callback))

    assert opened.user == user
    assert Identity.objects.get().user == user
    assert browser.session.session_key == session_key
    assert get_user_model().objects.count() == 1
    client = fhir_client_for(user, opened.registration.server)
    assert client.read("Patient", PATIENT)["id"] == PATIENT
    with pytest.raises(NoGrantError):
        fhir_client_for(user, opened.registration.server, patient_id="another")
    assert opened.registration.client_id == CLIENT_ID
