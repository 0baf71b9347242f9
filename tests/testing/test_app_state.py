"""What the simulated EHR refuses of app state."""

from __future__ import annotations

from typing import Any

import pytest

from tests.testing.app import OTHER_PATIENT, PATIENT, App

CODE: dict[str, Any] = {"system": "https://app.example.com", "code": "view"}
TOKEN = "https://app.example.com|view"


def make_basic(app: App, **changes: Any) -> dict[str, Any]:
    resource = {
        "resourceType": "Basic",
        "code": {"coding": [CODE]},
        "subject": {"reference": f"{app.ehr.base_url}/Patient/{PATIENT}"},
        "extension": [{"url": "https://app.example.com/x", "valueString": "y"}],
        **changes,
    }
    return {name: one for name, one in resource.items() if one is not None}


@pytest.fixture
def tokens(app: App) -> dict[str, Any]:
    return app.launch("user/Basic.cuds")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"id": "x"}, 400),
        ({"meta": {"versionId": "1"}}, 400),
        ({"resourceType": "Patient"}, 400),
        ({"code": {"coding": [CODE, CODE]}}, 422),
        ({"code": {}}, 422),
        ({"extension": [{"url": "x", "valueInteger": 1}]}, 422),
        ({"subject": {"reference": f"Patient/{PATIENT}"}}, 422),
        ({"subject": {"reference": "https://x.example/Patient/1"}}, 422),
        ({"extension": [{"url": "x", "valueString": "y" * 256 * 1024}]}, 413),
    ],
)
@pytest.mark.compliance("STATE-05", "STATE-06", "STATE-07", "STATE-08")
def test_creation_that_breaks_the_rules_is_refused(
    app: App, tokens: dict[str, Any], change: dict[str, Any], status: int
) -> None:
    assert (
        app.send("POST", "Basic", tokens, json=make_basic(app, **change)).status_code
        == status
    )
    assert app.send("POST", "Basic", tokens, json=make_basic(app)).status_code == 201


@pytest.mark.compliance("STATE-09", "STATE-10", "STATE-11", "STATE-12")
def test_change_needs_the_version_that_is_held(
    app: App, tokens: dict[str, Any]
) -> None:
    created = app.send("POST", "Basic", tokens, json=make_basic(app))
    resource, etag = created.json(), created.headers["ETag"]
    path, match = f"Basic/{resource['id']}", {"If-Match": created.headers["ETag"]}
    assert app.send("PUT", path, tokens, json=resource).status_code == 428
    wrong = {"If-Match": 'W/"9"'}
    for method in ("PUT", "DELETE"):
        answer = app.send(method, path, tokens, json=resource, headers=wrong)
        assert answer.status_code == 412
    for change, status in (({"id": "x"}, 400), ({"subject": None}, 422)):
        body = make_basic(app, **{"id": resource["id"], **change})
        answer = app.send("PUT", path, tokens, json=body, headers=match)
        assert answer.status_code == status
    answer = app.send("PUT", path, tokens, json=resource, headers=match)
    assert (answer.status_code, etag, answer.headers["ETag"]) == (200, 'W/"1"', 'W/"2"')
    match = {"If-Match": 'W/"2"'}
    assert app.send("DELETE", path, tokens, headers=match).status_code == 204
    assert app.send("DELETE", path, tokens, headers=match).status_code == 410
    assert app.send("DELETE", "Basic/x", tokens, headers=match).status_code == 404


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"code": TOKEN},
        {"code": "view", "subject:missing": "true"},
        {"subject:missing": "true"},
        {"code": TOKEN, "subject:missing": "true", "subject": "x"},
    ],
)
@pytest.mark.compliance("STATE-13")
def test_other_searches_are_refused(
    app: App, tokens: dict[str, Any], query: dict[str, str]
) -> None:
    assert app.send("GET", "Basic", tokens, params=query).status_code == 400
    query = {"code": TOKEN, "subject:missing": "true"}
    assert app.send("GET", "Basic", tokens, params=query).json()["total"] == 0


@pytest.mark.compliance("STATE-04", "STATE-16")
def test_scopes_say_whose_state_it_is(app: App) -> None:
    other = {"reference": f"{app.ehr.base_url}/Patient/{OTHER_PATIENT}"}
    tokens = app.launch("launch/patient patient/Basic.cuds")
    answers = [
        app.send("POST", "Basic", tokens, json=make_basic(app, **change)).status_code
        for change in ({}, {"subject": other}, {"subject": None})
    ]
    assert answers == [201, 403, 403]
    patient = app.launch("user/Basic.cuds", user=f"Patient/{PATIENT}")
    answers = [
        app.send("POST", "Basic", patient, json=make_basic(app, **change)).status_code
        for change in ({}, {"subject": other}, {"subject": None})
    ]
    assert answers == [201, 403, 201]
    reader = app.launch("launch/patient patient/*.rs")
    assert app.send("POST", "Basic", reader, json=make_basic(app)).status_code == 403
    assert app.send("POST", "Basic", json=make_basic(app)).status_code == 401
