"""
The simulator is checked by clients that nobody here wrote.

``fhirclient`` is the SMART on FHIR client of Boston Children's Hospital, Authlib a
general OAuth client. Both speak to it over sockets.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import jwt
import pytest
import requests
from authlib.integrations.requests_client import OAuth2Session
from fhirclient.client import FHIRClient
from fhirclient.models.observation import Observation
from fhirclient.models.patient import Patient
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet

from django_smart.testing import EHRSimulator
from tests.testing.app import (
    CLIENT_ID,
    CLIENT_SECRET,
    PATIENT,
    REDIRECT_URI,
    register,
)

SCOPE = "patient/Patient.rs patient/Observation.rs openid fhirUser offline_access"


def smart_client(ehr: EHRSimulator, **settings: str) -> FHIRClient:
    return FHIRClient(
        settings={
            "app_id": CLIENT_ID,
            "app_secret": CLIENT_SECRET,
            "api_base": ehr.base_url,
            "redirect_uri": REDIRECT_URI,
            **settings,
        }
    )


@pytest.mark.compliance("AUTH-02", "TOK-02", "REF-03", "FHIR-01")
def test_fhirclient_launches_reads_and_refreshes() -> None:
    ehr = EHRSimulator("https://ehr.example.org/sim/fhir")
    register(ehr)
    with ehr.serve():
        client = smart_client(ehr, scope=f"launch/patient {SCOPE}")
        client.handle_callback(ehr.authorize(client.authorize_url, patient=PATIENT))
        try:
            assert client.patient_id == PATIENT
            assert client.human_name(client.patient.name[0]).endswith("Quillfeather")
            search = Observation.where({"code": "4548-4", "patient": PATIENT})
            found = list(search.perform_resources_iter(client.server))
            assert len(found) == 11
            assert client.reauthorize()
            assert Patient.read(PATIENT, client.server).birthDate.isostring
        finally:
            client.server.session.close()
    assert len(ehr.requests_to("refresh")) == 1
    # It asks /metadata for the endpoints, as apps did before there was discovery.
    assert ehr.requests_to("metadata")
    assert not ehr.requests_to("smart-configuration")


@pytest.mark.compliance("EHRL-03", "EHRL-04", "EHRL-05")
def test_fhirclient_is_launched_from_the_chart() -> None:
    ehr = EHRSimulator("https://ehr.example.org/sim/fhir")
    register(ehr)
    with ehr.serve():
        launch_id = ehr.create_launch(CLIENT_ID, patient=PATIENT)
        client = smart_client(ehr, launch_token=launch_id, scope=f"launch {SCOPE}")
        client.handle_callback(ehr.authorize(client.authorize_url))
        try:
            assert client.patient_id == PATIENT
        finally:
            client.server.session.close()


@pytest.mark.compliance("AUTH-04", "TOK-07", "REF-07", "IDT-01")
def test_authlib_launches_reads_and_refreshes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
    ehr = EHRSimulator("https://ehr.example.org/sim/fhir")
    register(ehr)
    with ehr.serve() as origin:
        found = requests.get(f"{ehr.base_url}/.well-known/smart-configuration").json()
        verifier = "a-code-verifier-of-at-least-forty-three-characters"
        with OAuth2Session(
            CLIENT_ID,
            CLIENT_SECRET,
            scope=f"launch/patient {SCOPE}",
            redirect_uri=REDIRECT_URI,
            code_challenge_method="S256",
            token_endpoint=found["token_endpoint"],
        ) as session:
            url, state = session.create_authorization_url(
                found["authorization_endpoint"],
                code_verifier=verifier,
                aud=ehr.base_url,
                nonce="n-1",
            )
            callback = ehr.authorize(url, patient=PATIENT)
            tokens = session.fetch_token(
                authorization_response=callback, state=state, code_verifier=verifier
            )
            assert tokens["patient"] == PATIENT
            keys = KeySet.import_key_set(requests.get(found["jwks_uri"]).json())
            claims = joserfc_jwt.decode(
                tokens["id_token"], keys, algorithms=["RS256"]
            ).claims
            joserfc_jwt.JWTClaimsRegistry(
                iss={"essential": True, "value": found["issuer"]},
                aud={"essential": True, "value": CLIENT_ID},
                nonce={"essential": True, "value": "n-1"},
                exp={"essential": True},
            ).validate(claims)
            assert urlsplit(claims["fhirUser"]).netloc == urlsplit(origin).netloc
            assert session.get(f"{ehr.base_url}/Patient/{PATIENT}").status_code == 200
            fresh = session.refresh_token(found["token_endpoint"])
            assert fresh["access_token"] != tokens["access_token"]
            assert session.get(f"{ehr.base_url}/Patient/{PATIENT}").status_code == 200
    assert [one.status for one in ehr.requests_to("fhir")] == [200, 200]


def test_pyjwt_finds_the_key_by_itself() -> None:
    ehr = EHRSimulator("https://ehr.example.org/sim/fhir")
    with ehr.serve():
        (key,) = jwt.PyJWKClient(ehr.jwks_uri).get_signing_keys()
        assert key.key_id == ehr.signing_keys[-1].kid
