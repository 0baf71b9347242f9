"""What the simulated EHR refuses to write, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.testing.app import PATIENT, App

SCOPE = "launch/patient patient/Observation.cruds patient/Patient.r"
FHIR_JSON = "application/fhir+json"
NEW = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"text": "made up"},
    "subject": {"reference": f"Patient/{PATIENT}"},
}


@pytest.fixture
def tokens(app: App) -> dict[str, Any]:
    return app.launch(SCOPE)


def send(
    app: App,
    tokens: dict[str, Any],
    method: str,
    path: str,
    body: Any = None,
    media_type: str = FHIR_JSON,
) -> requests.Response:
    headers = {} if body is None else {"Content-Type": media_type}
    return app.send(method, path, tokens, json=body, headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "Observation", [NEW], 400),
        ("POST", "Observation", {**NEW, "resourceType": "Patient"}, 400),
        ("POST", "Observation", {**NEW, "note": []}, 422),
        ("POST", "Gadget", {**NEW, "resourceType": "Gadget"}, 404),
        ("POST", "Patient", {"resourceType": "Patient", "active": True}, 403),
        ("PUT", "Observation/own-id", {**NEW, "id": "own-id"}, 405),
        ("PUT", "Observation/own-id", {**NEW, "id": "other-id"}, 400),
        ("PUT", "Observation", NEW, 412),
        ("PUT", "Observation?shoe-size=44", NEW, 400),
        ("PATCH", "Observation/no-such-id", {"resourceType": "Parameters"}, 404),
        ("DELETE", "Observation", None, 412),
        ("DELETE", f"Patient/{PATIENT}", None, 403),
        ("POST", "", {"resourceType": "Bundle", "type": "collection"}, 400),
        ("POST", "", NEW, 400),
        ("GET", "Observation/no-such-id/_history", None, 404),
        ("GET", "_history?_since=yesterday", None, 400),
        ("GET", "_history?_since=2020-01-01", None, 400),
        ("GET", "Observation?date=9999-12-31", None, 400),
        ("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": [{}]}, 400),
        ("GET", "Observation/$lastn?max=all", None, 400),
    ],
)
def test_wrong_request_is_refused_with_an_outcome(
    app: App,
    tokens: dict[str, Any],
    method: str,
    path: str,
    body: Any,
    status: int,
) -> None:
    response = send(app, tokens, method, path, body)
    assert response.status_code == status
    assert response.json()["resourceType"] == "OperationOutcome"


def test_other_media_type_is_refused(app: App, tokens: dict[str, Any]) -> None:
    wrong = send(app, tokens, "POST", "Observation", NEW, "application/json")
    assert wrong.status_code == 415
    right = send(app, tokens, "POST", "Observation", NEW)
    assert right.status_code == 201
    place = f"Observation/{right.json()['id']}"
    assert right.headers["Location"] == f"{app.ehr.base_url}/{place}/_history/1"
    assert right.headers["ETag"] == 'W/"1"'
    patch = [{"op": "remove", "path": "/status"}]
    assert send(app, tokens, "PATCH", place, patch).status_code == 400
    media_type = "application/json-patch+json"
    assert send(app, tokens, "PATCH", place, patch, media_type).status_code == 200


@pytest.mark.parametrize(
    ("operation", "status"),
    [
        ({"op": "move", "from": "/code", "path": "/method"}, 200),
        ({"op": "copy", "from": "/code/text", "path": "/language"}, 200),
        ({"op": "add", "path": "/a~1b", "value": 1}, 200),
        ({"op": "replace", "path": "/no", "value": 1}, 422),
        ({"op": "remove", "path": "/code/coding/7"}, 422),
        ({"op": "shout", "path": "/code"}, 422),
        ({"op": "add", "path": "code"}, 422),
        ({"op": "replace", "path": "/resourceType", "value": "Patient"}, 422),
        ({"op": "replace", "path": "/subject/reference", "value": "Patient/x"}, 403),
        ("x", 422),
    ],
)
def test_patch_has_to_fit(
    app: App, tokens: dict[str, Any], operation: Any, status: int
) -> None:
    created = send(app, tokens, "POST", "Observation", NEW).json()
    place = f"Observation/{created['id']}"
    media_type = "application/json-patch+json"
    response = send(app, tokens, "PATCH", place, [operation], media_type)
    assert response.status_code == status
    version = "2" if status == 200 else "1"
    held = send(app, tokens, "GET", place).json()
    assert held["meta"]["versionId"] == version
