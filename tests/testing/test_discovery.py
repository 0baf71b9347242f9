"""What the simulated EHR says about itself."""

from __future__ import annotations

import pytest

from tests.testing.app import App


@pytest.mark.compliance("DISC-01", "DISC-06", "DISC-07", "DISC-09")
def test_configuration_is_json_below_the_base_whatever_accept_says(app: App) -> None:
    response = app.get(
        ".well-known/smart-configuration", headers={"Accept": "text/html"}
    )
    assert response.headers["Content-Type"] == "application/json"
    document = response.json()
    assert {
        "authorization_endpoint",
        "token_endpoint",
        "grant_types_supported",
        "capabilities",
        "code_challenge_methods_supported",
        "issuer",
        "jwks_uri",
    } <= set(document)
    assert document["issuer"] == "https://ehr.example.org/v/r4/sim/abc"
    assert "sso-openid-connect" in document["capabilities"]
    assert document["authorization_response_iss_parameter_supported"] is True


@pytest.mark.compliance("DISC-08")
def test_configuration_offers_s256_and_not_plain(app: App) -> None:
    document = app.get(".well-known/smart-configuration").json()
    assert document["code_challenge_methods_supported"] == ["S256"]


@pytest.mark.compliance("IDT-02")
def test_issuer_serves_the_same_endpoints_and_the_key_set(app: App) -> None:
    smart = app.get(".well-known/smart-configuration").json()
    openid = app.get(f"{smart['issuer']}/.well-known/openid-configuration").json()
    assert openid["issuer"] == smart["issuer"]
    assert openid["jwks_uri"] == smart["jwks_uri"]
    assert openid["token_endpoint"] == smart["token_endpoint"]
    (key,) = app.get(openid["jwks_uri"]).json()["keys"]
    assert set(key) == {"kty", "n", "e", "kid", "use", "alg"}


def test_metadata_needs_no_token_and_names_the_endpoints(app: App) -> None:
    statement = app.get("metadata").json()
    (extension,) = statement["rest"][0]["security"]["extension"]
    uris = {one["url"]: one["valueUri"] for one in extension["extension"]}
    assert uris["authorize"] == app.ehr.authorization_endpoint
    assert uris["token"] == app.ehr.token_endpoint
    types = {one["type"] for one in statement["rest"][0]["resource"]}
    assert types == set(app.ehr.data)


def test_style_is_public(app: App) -> None:
    tokens = app.launch()
    style = app.get(tokens["smart_style_url"]).json()
    assert style["color_highlight"].startswith("#")


def test_unknown_address_is_404(app: App) -> None:
    assert app.get("https://ehr.example.org/nowhere").status_code == 404
    assert app.ehr.requests[-1].exchange == "unknown"


def test_issuer_and_base_url_can_be_at_the_root() -> None:
    from django_smart.testing import EHRSimulator

    ehr = EHRSimulator("https://ehr.example.org/fhir")
    assert ehr.issuer == "https://ehr.example.org"
    assert ehr.token_endpoint == "https://ehr.example.org/auth/token"
