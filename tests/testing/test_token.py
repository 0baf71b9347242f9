"""The token endpoint: the code exchange."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from django_smart.testing import EHRSimulator
from tests.testing.app import PATIENT, VERIFIER, App, Clock


def refused(response: requests.Response, error: str, status: int = 400) -> None:
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert response.headers["Cache-Control"] == "no-store"
    assert "access_token" not in response.text


@pytest.mark.compliance("RESP-01", "RESP-09", "RESP-11")
def test_code_brings_a_token_and_the_context(app: App) -> None:
    response = app.exchange(app.get_code())
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Pragma"] == "no-cache"
    tokens = response.json()
    access_token = tokens.pop("access_token")
    assert tokens == {
        "patient": PATIENT,
        "need_patient_banner": True,
        "smart_style_url": "https://ehr.example.org/smart-style.json",
        "token_type": "Bearer",
        "scope": "launch/patient patient/Patient.rs patient/Observation.rs",
        "expires_in": 3600,
    }
    assert app.ehr.patient_of(access_token) == PATIENT
    assert app.ehr.patient_of("unknown") is None


@pytest.mark.compliance("TOK-19")
@pytest.mark.parametrize(
    "verifier",
    [None, "short", "x" * 43, "x" * 129, VERIFIER[:-1]],
    ids=["none", "short", "another", "too long", "one letter less"],
)
def test_wrong_verifier_is_invalid_grant(app: App, verifier: str | None) -> None:
    code = app.get_code()
    refused(app.exchange(code, code_verifier=verifier), "invalid_grant")
    assert app.exchange(code).status_code == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grant_type": None}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"code": None}, "invalid_request"),
        ({"code": "unknown"}, "invalid_grant"),
        ({"redirect_uri": None}, "invalid_request"),
        ({"redirect_uri": "https://app.example.com/callback/"}, "invalid_grant"),
    ],
)
@pytest.mark.compliance("TOK-02", "TOK-18")
def test_wrong_exchange_is_refused(
    app: App, changes: dict[str, str | None], error: str
) -> None:
    refused(app.exchange(app.get_code(), **changes), error)


def test_code_lives_for_a_minute(app: App, clock: Clock) -> None:
    code = app.get_code()
    clock.advance(60)
    refused(app.exchange(code), "invalid_grant")


@pytest.mark.compliance("CALL-06")
def test_second_use_of_a_code_takes_everything_back(app: App) -> None:
    code = app.get_code(scope="launch/patient patient/Patient.rs offline_access")
    tokens = app.exchange(code).json()
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 200
    refused(app.exchange(code), "invalid_grant")
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 401
    refused(app.refresh(tokens["refresh_token"]), "invalid_grant")


def test_code_is_bound_to_its_client(app: App) -> None:
    code = app.get_code()
    app.ehr.register_client("other", client_secret="x")
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": "https://app.example.com/callback",
        "code_verifier": VERIFIER,
    }
    refused(app.post_token(form, auth=("other", "x")), "invalid_grant")


@pytest.mark.compliance("TOK-01")
def test_request_must_be_a_form_post(app: App) -> None:
    url = app.ehr.token_endpoint
    assert app.session.get(url).status_code == 405
    as_json = app.session.post(url, json={"grant_type": "authorization_code"})
    refused(as_json, "invalid_request")
    in_query = app.session.post(
        url, params={"code": "x"}, data={"grant_type": "authorization_code"}
    )
    refused(in_query, "invalid_request")


def test_repeated_parameter_is_refused(app: App) -> None:
    body = "grant_type=authorization_code&code=a&code=b"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = app.session.post(app.ehr.token_endpoint, data=body, headers=headers)
    refused(response, "invalid_request")
    assert "code" in response.json()["error_description"]


@pytest.mark.parametrize(
    ("scope", "comes"),
    [("offline_access", True), ("online_access", True), ("openid", False)],
)
@pytest.mark.compliance("REF-01", "REF-02")
def test_refresh_token_comes_for_access_scopes_only(
    app: App, scope: str, comes: bool
) -> None:
    tokens = app.launch(f"launch/patient {scope}")
    assert ("refresh_token" in tokens) == comes


@pytest.mark.compliance("REF-02")
def test_seed_server_does_not_echo_offline_access() -> None:
    ehr = EHRSimulator(echo_offline_access=False)
    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        app = App(ehr, session)
        tokens = app.launch("launch/patient offline_access")
        assert tokens["scope"] == "launch/patient"
        again = app.refresh(tokens["refresh_token"]).json()
        assert again["scope"] == "launch/patient offline_access"


def test_every_request_is_recorded(app: App) -> None:
    code = app.get_code()
    app.exchange(code)
    (recorded,) = app.ehr.requests_to("token")
    assert recorded.method == "POST"
    assert recorded.url == app.ehr.token_endpoint
    assert recorded.path == "/v/r4/sim/abc/auth/token"
    assert recorded.query == []
    assert recorded.form[0] == ("grant_type", "authorization_code")
    assert recorded.body.startswith(b"grant_type=authorization_code&")
    assert recorded.headers["content-TYPE"] == "application/x-www-form-urlencoded"
    assert recorded.status == 200
    assert recorded.client_id == app.client.client_id
    assert recorded.patient == PATIENT
    assert recorded.at == app.ehr.clock()
    seen: list[Any] = []
    app.ehr.on_request = seen.append
    app.get("metadata")
    assert seen == app.ehr.requests[-1:]
    app.ehr.clear_requests()
    assert app.ehr.requests == []
