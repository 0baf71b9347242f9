"""Apps that register themselves at the simulated EHR."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testing.app import (
    REDIRECT_URI,
    STANDALONE_SCOPE,
    VERIFIER,
    App,
    jwk,
    query_of,
)


@pytest.mark.compliance("REG-06")
def test_app_is_registered_and_can_launch(app: App) -> None:
    response = app.register_itself()
    assert response.status_code == 201
    assert response.headers["Cache-Control"] == "no-store"
    answer = response.json()
    assert answer["redirect_uris"] == [REDIRECT_URI]
    assert answer["token_endpoint_auth_method"] == "client_secret_basic"
    assert answer["client_secret_expires_at"] == 0
    app.client = app.ehr.clients[answer["client_id"]]
    assert (app.client.name, app.client.scope) == ("Growth chart", STANDALONE_SCOPE)
    code = query_of(app.ehr.authorize(app.authorization_url()))["code"]
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": REDIRECT_URI,
        "code_verifier": VERIFIER,
    }
    credentials = (answer["client_id"], answer["client_secret"])
    assert app.post_token(form, auth=credentials).status_code == 200


@pytest.mark.parametrize(
    ("values", "secret"),
    [
        ({"token_endpoint_auth_method": "none"}, False),
        ({"token_endpoint_auth_method": "client_secret_post"}, True),
        (
            {
                "token_endpoint_auth_method": "private_key_jwt",
                "jwks": {"keys": [jwk()]},
            },
            False,
        ),
        (
            {
                "token_endpoint_auth_method": "private_key_jwt",
                "jwks_uri": "https://app.example.com/jwks.json",
                "grant_types": ["client_credentials"],
                "response_types": [],
                "redirect_uris": None,
                "scope": "system/*.rs",
            },
            False,
        ),
    ],
)
def test_each_method_is_registered(
    app: App, values: dict[str, Any], secret: bool
) -> None:
    response = app.register_itself(**values)
    assert response.status_code == 201, response.text
    assert ("client_secret" in response.json()) is secret


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"redirect_uris": None}, "invalid_redirect_uri"),
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({"redirect_uris": REDIRECT_URI}, "invalid_redirect_uri"),
        ({"redirect_uris": ["/callback"]}, "invalid_redirect_uri"),
        ({"redirect_uris": [f"{REDIRECT_URI}#x"]}, "invalid_redirect_uri"),
        ({"token_endpoint_auth_method": "tls"}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ({"jwks": {"keys": []}}, "invalid_client_metadata"),
        (
            {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "x"},
            "invalid_client_metadata",
        ),
        ({"initiate_login_uri": "/launch"}, "invalid_client_metadata"),
        ({"grant_types": ["password"]}, "invalid_client_metadata"),
        ({"grant_types": "authorization_code"}, "invalid_client_metadata"),
        ({"response_types": ["token"]}, "invalid_client_metadata"),
        ({"scope": ["openid"]}, "invalid_client_metadata"),
        ({"scope": "patient/Patient.sr"}, "invalid_client_metadata"),
        ({"client_name": 1}, "invalid_client_metadata"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(
    app: App, values: dict[str, Any], error: str
) -> None:
    before = dict(app.ehr.clients)
    response = app.register_itself(**values)
    assert (response.status_code, response.json()["error"]) == (400, error)
    assert app.ehr.clients == before


@pytest.mark.parametrize(
    "options",
    [
        {"data": "{", "headers": {"Content-Type": "application/json"}},
        {"json": []},
        {"json": {"redirect_uris": None}},
        {"data": {"redirect_uris": REDIRECT_URI}},
    ],
)
def test_anything_but_a_json_object_is_refused(
    app: App, options: dict[str, Any]
) -> None:
    response = app.session.post(app.ehr.registration_endpoint, **options)
    assert response.status_code == 400
    assert response.json()["error"] == "invalid_client_metadata"


def test_initial_access_token_is_asked_for(app: App) -> None:
    app.ehr.initial_access_token = "an-initial-token"
    assert app.register_itself().status_code == 401
    app.session.headers["Authorization"] = "Bearer another-token"
    assert app.register_itself().status_code == 401
    app.session.headers["Authorization"] = "Bearer an-initial-token"
    assert app.register_itself().status_code == 201
