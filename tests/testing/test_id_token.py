"""ID tokens."""

from __future__ import annotations

from typing import Any

import jwt
import pytest
import requests

from django_smart.testing import EHRSimulator
from tests.testing.app import CLIENT_ID, PATIENT, App, Clock, query_of

SCOPE = "launch/patient openid fhirUser profile"


def decode(app: App, id_token: str, algorithm: str = "RS256") -> dict[str, Any]:
    """Verify as a client does, by the published key set."""
    keys = app.get(app.ehr.jwks_uri).json()["keys"]
    kid = jwt.get_unverified_header(id_token)["kid"]
    (key,) = (one for one in keys if one["kid"] == kid)
    return jwt.decode(
        id_token,
        jwt.PyJWK.from_dict(key),
        algorithms=[algorithm],
        audience=CLIENT_ID,
        issuer=app.ehr.issuer,
        options={"verify_exp": False, "verify_iat": False},
    )


@pytest.mark.compliance("IDT-01", "IDT-06", "IDT-07", "IDT-08")
def test_claims_say_who_signed_in(app: App, clock: Clock) -> None:
    url = app.authorization_url(scope=SCOPE, nonce="n-1")
    tokens = app.exchange(query_of(app.ehr.authorize(url))["code"]).json()
    claims = decode(app, tokens["id_token"])
    user = next(iter(app.ehr.users.values()))
    assert claims == {
        "iss": app.ehr.issuer,
        "sub": user.subject,
        "aud": CLIENT_ID,
        "exp": int(clock.now) + 300,
        "iat": int(clock.now),
        "nonce": "n-1",
        "fhirUser": f"{app.ehr.base_url}/{user.reference}",
        "name": "Dr. Helena Brandvold",
        "given_name": "Helena",
        "family_name": "Brandvold",
    }


def test_only_granted_scopes_show(app: App) -> None:
    claims = decode(app, app.launch("launch/patient openid")["id_token"])
    assert set(claims) == {"iss", "sub", "aud", "exp", "iat"}


@pytest.mark.compliance("IDT-10")
def test_no_openid_no_id_token(app: App) -> None:
    assert "id_token" not in app.launch("launch/patient offline_access")


@pytest.mark.compliance("IDT-09")
def test_subject_is_stable_and_not_the_resource_id(app: App) -> None:
    first = decode(app, app.launch(SCOPE, user=f"Patient/{PATIENT}")["id_token"])
    second = decode(app, app.launch(SCOPE, user=f"Patient/{PATIENT}")["id_token"])
    other = decode(app, app.launch(SCOPE)["id_token"])
    assert first["sub"] == second["sub"] != other["sub"]
    assert PATIENT not in first["sub"]
    assert first["fhirUser"].endswith(f"/Patient/{PATIENT}")


@pytest.mark.compliance("IDT-06")
def test_rotated_key_is_published_beside_the_old_one(app: App) -> None:
    before = app.launch(SCOPE)["id_token"]
    app.ehr.rotate_signing_key()
    after = app.launch(SCOPE)["id_token"]
    kids = {jwt.get_unverified_header(one)["kid"] for one in (before, after)}
    assert len(kids) == 2
    decode(app, before)
    decode(app, after)
    app.ehr.rotate_signing_key()
    assert len(app.get(app.ehr.jwks_uri).json()["keys"]) == 2


@pytest.mark.parametrize("algorithm", ["RS384", "ES256", "ES384"])
def test_other_algorithms_can_be_chosen(algorithm: str) -> None:
    ehr = EHRSimulator(id_token_algorithm=algorithm)
    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        app = App(ehr, session)
        decode(app, app.launch(SCOPE)["id_token"], algorithm)


def test_unknown_algorithm_is_refused() -> None:
    ehr = EHRSimulator(id_token_algorithm="HS256")
    with pytest.raises(ValueError, match="HS256"):
        ehr.rotate_signing_key()
