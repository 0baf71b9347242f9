"""The JSON control API for other processes."""

from __future__ import annotations

import base64

import pytest
import requests

from django_smart.testing import EHRSimulator
from tests.testing.app import CLIENT_ID, PATIENT, App, query_of

CONTROL = "https://ehr.example.org/_control"


@pytest.fixture
def ehr() -> EHRSimulator:
    return EHRSimulator("https://ehr.example.org/sim/fhir", control=True)


def test_requests_can_be_read_and_cleared(app: App) -> None:
    app.launch()
    recorded = app.session.get(f"{CONTROL}/requests").json()
    assert [one["exchange"] for one in recorded] == ["authorize", "token"]
    token = recorded[-1]
    assert token["patient"] == PATIENT
    assert token["headers"]["Authorization"].startswith("Basic ")
    assert b"code_verifier=" in base64.b64decode(token["body"])
    app.session.post(f"{CONTROL}/clear")
    assert app.session.get(f"{CONTROL}/requests").json() == []


def test_tokens_can_be_expired(app: App) -> None:
    tokens = app.launch()
    assert app.session.post(f"{CONTROL}/expire").status_code == 200
    assert app.get(f"Patient/{PATIENT}", tokens).status_code == 401


def test_faults_can_be_set(app: App) -> None:
    url = f"{CONTROL}/faults"
    on = app.session.post(url, json={"faults": ["token_500"]})
    assert on.json() == {"faults": ["token_500"]}
    assert app.exchange(app.get_code()).status_code == 500
    bodies: list[object] = [{"faults": ["unknown"]}, {}, []]
    for wrong in bodies:
        assert app.session.post(url, json=wrong).status_code == 400
    assert app.session.post(url, json={"faults": []}).json() == {"faults": []}
    app.launch()


def test_launches_can_be_made(app: App) -> None:
    body = {"client_id": CLIENT_ID, "patient": PATIENT, "intent": "review"}
    made = app.session.post(f"{CONTROL}/launch", json=body).json()
    assert query_of(made["url"])["launch"] == made["launch"]
    url = app.authorization_url(scope="launch", launch=made["launch"])
    tokens = app.exchange(query_of(app.ehr.authorize(url))["code"]).json()
    assert tokens["intent"] == "review"
    without = app.session.post(f"{CONTROL}/launch", json={"client_id": CLIENT_ID})
    assert without.status_code == 200
    for wrong in ({}, {"client_id": "unknown"}, {**body, "shoe": 44}):
        assert app.session.post(f"{CONTROL}/launch", json=wrong).status_code == 400


def test_control_is_closed_by_default() -> None:
    ehr = EHRSimulator("https://ehr.example.org/fhir")
    with requests.Session() as session:
        session.mount("https://", ehr.adapter())
        assert session.get(f"{CONTROL}/requests").status_code == 404
