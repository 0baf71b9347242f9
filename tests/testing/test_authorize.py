"""The authorization endpoint: what is refused, and how the app hears of it."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.errors import AuthorizationPageError
from tests.testing.app import (
    CLIENT_ID,
    OTHER_PATIENT,
    PATIENT,
    REDIRECT_URI,
    App,
    Clock,
    query_of,
    register,
)


@pytest.mark.compliance("AUTH-02", "CALL-04")
def test_approval_sends_code_state_and_iss_to_the_redirect_uri(app: App) -> None:
    url = app.ehr.authorize(app.authorization_url())
    assert url.startswith(f"{REDIRECT_URI}?")
    answer = query_of(url)
    assert set(answer) == {"code", "state", "iss"}
    assert answer["state"] == "a-state-that-is-long-enough"
    assert answer["iss"] == app.ehr.issuer


def test_redirect_uri_keeps_its_query(app: App) -> None:
    redirect_uri = f"{REDIRECT_URI}?tenant=1"
    register(app.ehr, redirect_uris=[redirect_uri])
    url = app.ehr.authorize(app.authorization_url(redirect_uri=redirect_uri))
    assert url.startswith(f"{redirect_uri}&code=")


def test_denial_is_access_denied(app: App) -> None:
    answer = query_of(app.ehr.authorize(app.authorization_url(), approve=False))
    assert answer["error"] == "access_denied"
    assert answer["state"] == "a-state-that-is-long-enough"
    assert "code" not in answer


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "somebody-else"},
        {"client_id": None},
        {"redirect_uri": None},
        {"redirect_uri": f"{REDIRECT_URI}/"},
        {"redirect_uri": "https://evil.example.net/callback"},
    ],
)
@pytest.mark.compliance("REG-03")
def test_unknown_client_or_redirect_uri_is_never_redirected_to(
    app: App, changes: dict[str, str | None]
) -> None:
    url = app.authorization_url(**changes)
    with pytest.raises(AuthorizationPageError):
        app.ehr.authorize(url)
    response = app.session.get(url, allow_redirects=False)
    assert response.status_code == 400
    assert "Location" not in response.headers


@pytest.mark.parametrize("name", ["client_id", "redirect_uri"])
def test_repeated_client_or_redirect_uri_stays_on_a_page(app: App, name: str) -> None:
    value = app.authorization_params()[name]
    url = f"{app.authorization_url()}&{urlencode({name: value})}"
    with pytest.raises(AuthorizationPageError, match="more than once"):
        app.ehr.authorize(url)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"response_type": None}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"request": "a.b.c"}, "request_not_supported"),
        ({"request_uri": "https://x.example"}, "request_uri_not_supported"),
        ({"state": None}, "invalid_request"),
        ({"state": ""}, "invalid_request"),
        ({"aud": None}, "invalid_request"),
        ({"aud": "https://ehr.example.org/v/r4/sim/abc/fhir/"}, "invalid_request"),
        ({"aud": "https://ehr.example.org"}, "invalid_request"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "too-short"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"scope": None}, "invalid_scope"),
        ({"scope": "launch/patient  openid"}, "invalid_scope"),
        ({"scope": "launch/patient patient/Observation.dus"}, "invalid_scope"),
        ({"scope": "launch/patient patient/Observations.rs"}, "invalid_scope"),
        ({"scope": "launch/patient email"}, "invalid_scope"),
        ({"scope": "patient/Observation.rs"}, "invalid_scope"),
        ({"scope": "system/Observation.rs"}, "invalid_scope"),
        ({"scope": "fhirUser"}, "invalid_scope"),
        ({"scope": "launch openid"}, "invalid_request"),
        ({"launch": "abc"}, "invalid_request"),
    ],
)
@pytest.mark.compliance("AUTH-01", "AUTH-03", "AUTH-04", "SAL-04")
def test_wrong_request_is_answered_at_the_redirect_uri(
    app: App, changes: dict[str, str | None], error: str
) -> None:
    url = app.ehr.authorize(app.authorization_url(**changes))
    assert url.startswith(f"{REDIRECT_URI}?")
    answer = query_of(url)
    assert answer["error"] == error
    assert answer["error_description"]
    assert answer["iss"] == app.ehr.issuer
    assert "code" not in answer
    expected = app.authorization_params(**changes).get("state")
    assert answer.get("state") == (expected or None)


@pytest.mark.parametrize("name", ["scope", "aud", "state", "code_challenge"])
@pytest.mark.compliance("AUTH-02")
def test_repeated_parameter_is_refused(app: App, name: str) -> None:
    url = f"{app.authorization_url()}&{urlencode({name: 'again'})}"
    answer = query_of(app.ehr.authorize(url))
    assert answer["error"] == "invalid_request"
    assert name in answer["error_description"]
    # Which of two states is the app's cannot be known.
    assert ("state" in answer) == (name != "state")


@pytest.mark.compliance("AUTH-08")
def test_request_may_come_by_post(app: App) -> None:
    params = app.authorization_params()
    response = app.session.post(
        app.ehr.authorization_endpoint, data=params, allow_redirects=False
    )
    assert response.status_code == 303
    assert "/auth/consent/" in response.headers["Location"]
    wrong = app.session.post(
        app.ehr.authorization_endpoint,
        data={**params, "aud": "https://x.example"},
        allow_redirects=False,
    )
    assert wrong.status_code == 303
    assert query_of(wrong.headers["Location"])["error"] == "invalid_request"


@pytest.mark.compliance("EHRL-03", "EHRL-04")
def test_ehr_launch_takes_the_context_from_the_launch(app: App) -> None:
    url = app.ehr_launch_url(
        "launch patient/Patient.rs",
        patient=OTHER_PATIENT,
        encounter="visit-1",
        need_patient_banner=False,
        intent="reconcile",
        tenant="t-1",
        fhir_context=[{"reference": "ImagingStudy/1"}],
        smart_style_url="https://ehr.example.org/style/2.json",
    )
    code = query_of(app.ehr.authorize(url, patient=PATIENT))["code"]
    tokens = app.exchange(code).json()
    assert tokens["patient"] == OTHER_PATIENT
    assert tokens["encounter"] == "visit-1"
    assert tokens["need_patient_banner"] is False
    assert tokens["intent"] == "reconcile"
    assert tokens["tenant"] == "t-1"
    assert tokens["fhirContext"] == [{"reference": "ImagingStudy/1"}]
    assert tokens["smart_style_url"] == "https://ehr.example.org/style/2.json"


def test_launch_is_used_once(app: App) -> None:
    url = app.ehr_launch_url()
    assert "code" in query_of(app.ehr.authorize(url))
    again = query_of(app.ehr.authorize(url))
    assert again["error"] == "invalid_request"
    assert "used" in again["error_description"]


def test_denied_launch_can_be_tried_again(app: App) -> None:
    url = app.ehr_launch_url()
    assert query_of(app.ehr.authorize(url, approve=False))["error"] == "access_denied"
    assert "code" in query_of(app.ehr.authorize(url))


def test_launch_expires(app: App, clock: Clock) -> None:
    url = app.ehr_launch_url()
    clock.advance(600)
    assert "expired" in query_of(app.ehr.authorize(url))["error_description"]


def test_launch_belongs_to_one_client(app: App) -> None:
    app.ehr.register_client("other", client_secret="x", redirect_uris=[REDIRECT_URI])
    launch_id = app.ehr.create_launch("other", patient=PATIENT)
    url = app.authorization_url(scope="launch", launch=launch_id)
    assert "not known" in query_of(app.ehr.authorize(url))["error_description"]


def test_launch_needs_known_names(app: App) -> None:
    with pytest.raises(ValueError, match="client"):
        app.ehr.create_launch("nobody", patient=PATIENT)
    with pytest.raises(ValueError, match="patient"):
        app.ehr.create_launch(CLIENT_ID, patient="nobody")
    with pytest.raises(ValueError, match="user"):
        app.ehr.create_launch(CLIENT_ID, patient=PATIENT, user="Practitioner/0")
    register(app.ehr, launch_url=None)
    with pytest.raises(ValueError, match="launch URL"):
        app.ehr.launch_url(CLIENT_ID, "abc")


def test_standalone_patient_is_the_one_picked(app: App) -> None:
    assert app.launch(patient=OTHER_PATIENT)["patient"] == OTHER_PATIENT
    with pytest.raises(ValueError, match="no such patient"):
        app.launch(patient="nobody")
    with pytest.raises(ValueError, match="no such user"):
        app.launch(user="Practitioner/0")


def test_patient_who_signs_in_gets_their_own_record(app: App) -> None:
    tokens = app.launch(user=f"Patient/{OTHER_PATIENT}", patient=PATIENT)
    assert tokens["patient"] == OTHER_PATIENT


def test_standalone_encounter_is_left_out_if_there_was_none(
    ehr: EHRSimulator, app: App
) -> None:
    ehr.data["Patient"]["p1"] = {"resourceType": "Patient", "id": "p1"}
    scope = "launch/patient launch/encounter patient/Encounter.rs"
    assert "encounter" not in app.launch(scope, patient="p1")


def test_standalone_encounter_is_the_latest(app: App) -> None:
    tokens = app.launch("launch/patient launch/encounter patient/Encounter.rs")
    found = app.get(f"Encounter?patient={PATIENT}&_sort=-date&_count=1", tokens).json()
    assert tokens["encounter"] == found["entry"][0]["resource"]["id"]


def test_no_patient_without_a_launch_scope(app: App) -> None:
    tokens = app.launch("openid user/Patient.rs")
    assert "patient" not in tokens
    assert "need_patient_banner" not in tokens


def test_person_may_grant_less_and_never_more(app: App) -> None:
    tokens = app.launch(
        "launch/patient patient/Observation.cruds openid",
        scope="launch/patient patient/Observation.rs",
    )
    assert tokens["scope"] == "launch/patient patient/Observation.rs"
    assert "id_token" not in tokens
    with pytest.raises(ValueError, match="was not requested"):
        app.launch("launch/patient openid", scope="openid patient/Patient.rs")


def test_app_gets_no_more_than_it_is_registered_for(app: App) -> None:
    register(app.ehr, scope="launch/patient patient/Observation.rs")
    tokens = app.launch("launch/patient patient/Patient.rs patient/Observation.read")
    assert tokens["scope"] == "launch/patient patient/Observation.read"
    answer = query_of(app.ehr.authorize(app.authorization_url(scope="openid")))
    assert answer["error"] == "invalid_scope"
