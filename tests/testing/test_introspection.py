"""Revocation (RFC 7009) and introspection (RFC 7662)."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.testing.app import CLIENT_ID, CLIENT_SECRET, PATIENT, App

SCOPE = "launch/patient patient/Patient.rs openid fhirUser offline_access"
AUTH = (CLIENT_ID, CLIENT_SECRET)


def revoke(app: App, form: dict[str, str], **options: Any) -> requests.Response:
    options.setdefault("auth", AUTH)
    return app.session.post(app.ehr.revocation_endpoint, data=form, **options)


def introspect(app: App, form: dict[str, str], **options: Any) -> requests.Response:
    options.setdefault("auth", AUTH)
    return app.session.post(app.ehr.introspection_endpoint, data=form, **options)


@pytest.mark.compliance("SEC-12")
def test_revoked_refresh_token_takes_its_grant_along(app: App) -> None:
    tokens = app.launch(SCOPE)
    assert revoke(app, {"token": tokens["refresh_token"]}).status_code == 200
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 401
    assert app.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"


def test_revoked_access_token_goes_alone(app: App) -> None:
    tokens = app.launch(SCOPE)
    form = {"token": tokens["access_token"], "token_type_hint": "access_token"}
    assert revoke(app, form).status_code == 200
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 401
    assert app.refresh(tokens["refresh_token"]).status_code == 200


def test_unknown_token_is_revoked_already(app: App) -> None:
    assert revoke(app, {"token": "unknown"}).status_code == 200


def test_revocation_is_for_the_client_of_the_token(app: App) -> None:
    tokens = app.launch(SCOPE)
    app.ehr.register_client("other", client_secret="x")
    form = {"token": tokens["refresh_token"]}
    assert revoke(app, form, auth=("other", "x")).status_code == 400
    assert revoke(app, form, auth=("other", "wrong")).status_code == 401
    assert revoke(app, {"other": "x"}).json()["error"] == "invalid_request"
    assert app.refresh(tokens["refresh_token"]).status_code == 200


@pytest.mark.compliance("INTRO-03")
def test_introspection_describes_a_live_token(app: App) -> None:
    tokens = app.launch(SCOPE)
    answer = introspect(app, {"token": tokens["access_token"]}).json()
    user = next(iter(app.ehr.users.values()))
    assert answer == {
        "active": True,
        "scope": SCOPE,
        "client_id": CLIENT_ID,
        "token_type": "Bearer",
        "iat": int(app.ehr.clock()),
        "exp": int(app.ehr.clock()) + 3600,
        "patient": PATIENT,
        "need_patient_banner": True,
        "smart_style_url": tokens["smart_style_url"],
        "iss": app.ehr.issuer,
        "sub": user.subject,
        "fhirUser": f"{app.ehr.base_url}/{user.reference}",
    }
    about_refresh = introspect(app, {"token": tokens["refresh_token"]}).json()
    assert about_refresh["active"] is True
    assert "token_type" not in about_refresh


@pytest.mark.compliance("INTRO-04")
def test_introspection_says_nothing_about_a_dead_token(app: App) -> None:
    tokens = app.launch(SCOPE)
    app.ehr.expire_access_tokens()
    for token in (tokens["access_token"], "unknown"):
        assert introspect(app, {"token": token}).json() == {"active": False}


@pytest.mark.compliance("INTRO-02")
def test_introspection_takes_a_bearer_token_of_the_same_client(app: App) -> None:
    tokens = app.launch(SCOPE)
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    form = {"token": tokens["access_token"]}
    answer = introspect(app, form, auth=None, headers=headers)
    assert answer.json()["active"] is True
    wrong = introspect(app, form, auth=None, headers={"Authorization": "Bearer x"})
    assert wrong.status_code == 401
    assert introspect(app, form, auth=None).status_code == 401
    assert introspect(app, {"other": "x"}).json()["error"] == "invalid_request"


def test_introspection_keeps_clients_apart(app: App) -> None:
    tokens = app.launch(SCOPE)
    app.ehr.register_client("other", client_secret="x")
    form = {"token": tokens["access_token"]}
    assert introspect(app, form, auth=("other", "x")).json() == {"active": False}


def test_no_identity_without_an_id_token(app: App) -> None:
    tokens = app.launch("launch/patient patient/Patient.rs")
    answer = introspect(app, {"token": tokens["access_token"]}).json()
    assert not {"iss", "sub", "fhirUser"} & set(answer)


def test_no_fhir_user_without_its_scope(app: App) -> None:
    tokens = app.launch("launch/patient openid")
    answer = introspect(app, {"token": tokens["access_token"]}).json()
    assert "sub" in answer
    assert "fhirUser" not in answer
