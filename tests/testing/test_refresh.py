"""Refresh: rotation, reuse, narrowing, ends; and client credentials."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.testing.app import (
    CLIENT_ID,
    CLIENT_SECRET,
    PATIENT,
    App,
    Clock,
    assertion_form,
    register,
)

OFFLINE = "launch/patient patient/Patient.rs patient/Observation.rs offline_access"


def error_of(response: requests.Response) -> str:
    assert response.status_code == 400, response.text
    return str(response.json()["error"])


@pytest.mark.compliance("REF-03", "REF-06", "REF-07")
def test_refresh_brings_new_tokens_and_the_context_again(app: App) -> None:
    first = app.launch(OFFLINE)
    second = app.refresh(first["refresh_token"]).json()
    assert second["access_token"] != first["access_token"]
    assert second["refresh_token"] != first["refresh_token"]
    assert second["patient"] == PATIENT
    assert second["scope"] == OFFLINE
    assert "id_token" not in second
    assert app.get(f"Patient/{PATIENT}", second).status_code == 200
    assert len(app.ehr.requests_to("refresh")) == 1
    assert app.ehr.reused_refresh_tokens == 0


@pytest.mark.compliance("REF-08", "SEC-06")
def test_reuse_of_a_refresh_token_ends_the_whole_grant(app: App) -> None:
    first = app.launch(OFFLINE)
    second = app.refresh(first["refresh_token"]).json()
    assert error_of(app.refresh(first["refresh_token"])) == "invalid_grant"
    assert app.ehr.reused_refresh_tokens == 1
    assert app.get(f"Patient/{PATIENT}", second).status_code == 401
    assert error_of(app.refresh(second["refresh_token"])) == "invalid_grant"


def test_without_rotation_the_token_stays(app: App) -> None:
    app.ehr.rotate_refresh_tokens = False
    first = app.launch(OFFLINE)
    for _ in range(2):
        again = app.refresh(first["refresh_token"]).json()
        assert again["refresh_token"] == first["refresh_token"]


def test_refresh_token_expires(app: App, clock: Clock) -> None:
    app.ehr.refresh_token_lifetime = 100
    tokens = app.launch(OFFLINE)
    clock.advance(100)
    assert error_of(app.refresh(tokens["refresh_token"])) == "invalid_grant"


@pytest.mark.compliance("REF-05")
def test_scope_may_shrink_and_never_grow(app: App) -> None:
    tokens = app.launch(OFFLINE)
    narrow = app.refresh(tokens["refresh_token"], scope="patient/Patient.r").json()
    assert narrow["scope"] == "patient/Patient.r"
    assert app.get(f"Patient/{PATIENT}", narrow).status_code == 200
    assert app.get("Observation", narrow).status_code == 403
    # The grant is as wide as before.
    wide = app.refresh(narrow["refresh_token"]).json()
    assert wide["scope"] == OFFLINE
    for scope in ("patient/Condition.rs", "patient/Patient.cruds", "a  b"):
        grown = app.refresh(wide["refresh_token"], scope=scope)
        assert error_of(grown) == "invalid_scope"
    assert app.refresh(wide["refresh_token"]).status_code == 200


@pytest.mark.compliance("REF-10")
def test_refresh_token_is_bound_to_its_client(app: App) -> None:
    tokens = app.launch(OFFLINE)
    app.ehr.register_client("other", client_secret="x")
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    response = app.session.post(app.ehr.token_endpoint, data=form, auth=("other", "x"))
    assert error_of(response) == "invalid_grant"
    assert (
        error_of(app.post_token({"grant_type": "refresh_token"})) == "invalid_request"
    )
    assert app.refresh(tokens["refresh_token"]).status_code == 200


@pytest.mark.compliance("REF-04")
@pytest.mark.parametrize("method", ["none", "client_secret_post", "private_key_jwt"])
def test_each_kind_of_client_launches_and_refreshes(app: App, method: str) -> None:
    app.client = register(app.ehr, auth_method=method)
    tokens = app.launch(OFFLINE)
    assert app.refresh(tokens["refresh_token"]).status_code == 200


def test_revoked_grant_is_dead(app: App) -> None:
    tokens = app.launch(OFFLINE)
    app.ehr.revoke_grant(tokens["refresh_token"])
    assert error_of(app.refresh(tokens["refresh_token"])) == "invalid_grant"
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 401
    app.ehr.revoke_grant(tokens["access_token"])
    with pytest.raises(ValueError, match="no grant"):
        app.ehr.revoke_grant("unknown")


@pytest.mark.compliance("RESP-05")
def test_access_tokens_end_by_time_and_on_demand(app: App, clock: Clock) -> None:
    tokens = app.launch(OFFLINE)
    clock.advance(3599)
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 200
    clock.advance(1)
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 401
    again = app.refresh(tokens["refresh_token"]).json()
    app.ehr.expire_access_tokens()
    assert app.get(f"Patient/{PATIENT}", again).status_code == 401
    assert app.refresh(again["refresh_token"]).status_code == 200


def ask_backend(app: App, scope: str | None) -> requests.Response:
    form = {"grant_type": "client_credentials", **assertion_form(app.ehr)}
    if scope is not None:
        form["scope"] = scope
    return app.session.post(app.ehr.token_endpoint, data=form)


@pytest.mark.compliance("BACK-03", "BACK-05", "BACK-06", "BACK-07")
def test_backend_service_gets_a_short_token(app: App) -> None:
    register(app.ehr, auth_method="private_key_jwt")
    tokens: dict[str, Any] = ask_backend(app, "system/Observation.rs").json()
    assert set(tokens) == {"access_token", "token_type", "expires_in", "scope"}
    assert tokens["expires_in"] == 300
    found = app.get("Observation?_count=0", tokens).json()
    assert found["total"] == len(app.ehr.data["Observation"])
    assert app.get("Patient", tokens).status_code == 403


@pytest.mark.parametrize("scope", [None, "patient/Observation.rs", "openid", "x"])
@pytest.mark.compliance("BACK-04", "BACK-10")
def test_backend_service_gets_system_scopes_only(app: App, scope: str | None) -> None:
    register(app.ehr, auth_method="private_key_jwt")
    assert error_of(ask_backend(app, scope)) == "invalid_scope"


def test_backend_service_gets_what_it_is_registered_for(app: App) -> None:
    register(app.ehr, auth_method="private_key_jwt", scope="system/Patient.rs")
    answer = ask_backend(app, "system/Patient.rs system/Observation.rs").json()
    assert answer["scope"] == "system/Patient.rs"
    assert error_of(ask_backend(app, "system/Observation.rs")) == "invalid_scope"


@pytest.mark.compliance("BACK-01")
def test_secret_is_not_enough_for_a_backend_service(app: App) -> None:
    form = {"grant_type": "client_credentials", "scope": "system/Patient.rs"}
    response = app.session.post(
        app.ehr.token_endpoint, data=form, auth=(CLIENT_ID, CLIENT_SECRET)
    )
    assert error_of(response) == "unauthorized_client"
