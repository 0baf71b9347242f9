"""Resources of any type, what a search brings along, and a server that checks less."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.ehr import CHECKS
from tests.testing.app import OTHER_PATIENT, PATIENT, App

MINE = {"reference": f"Patient/{PATIENT}"}
OTHERS = {"reference": f"Patient/{OTHER_PATIENT}"}
FHIR_JSON = "application/fhir+json"


def add(ehr: EHRSimulator, resource_type: str, id: str, **members: Any) -> None:  # noqa: A002
    meta = {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00Z"}
    resource = {"resourceType": resource_type, "id": id, "meta": meta, **members}
    ehr.data[resource_type][id] = resource


def ids(response: requests.Response, mode: str = "match") -> set[str]:
    assert response.status_code == 200, response.text
    return {
        one["resource"]["id"]
        for one in response.json().get("entry", [])
        if one["search"]["mode"] == mode
    }


def send(app: App, tokens: dict[str, Any], method: str, path: str, body: Any) -> int:
    media_type = "application/json-patch+json" if isinstance(body, list) else FHIR_JSON
    headers = {"Content-Type": media_type, "If-Match": 'W/"1"'}
    return app.send(method, path, tokens, json=body, headers=headers).status_code


@pytest.fixture
def clinician(app: App) -> dict[str, Any]:
    ehr = app.ehr
    add(ehr, "Location", "l1", name="Ward")
    add(ehr, "Device", "d1", patient=MINE, type={"coding": [{"code": "pump"}]})
    add(ehr, "Procedure", "p1", subject=MINE, location={"reference": "Location/l1"})
    add(
        ehr,
        "RiskAssessment",
        "r1",
        subject=MINE,
        prediction=[{"probabilityDecimal": 0.4}],
    )
    add(ehr, "Provenance", "v1", target=[{"reference": "Procedure/p1"}])
    return app.launch("user/*.rs")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("Device?patient=" + PATIENT, {"d1"}),
        ("Device?type=pump", {"d1"}),
        ("Location?name=ward", {"l1"}),
        ("Procedure?location=l1", {"p1"}),
        ("Procedure?location.name=ward", {"p1"}),
        ("Procedure?location:Location.name=harbour", set()),
        ("Procedure?subject:Patient.family=quill", {"p1"}),
        ("Location?_has:Procedure:location:patient=" + PATIENT, {"l1"}),
        ("Location?_has:Procedure:location:patient=" + OTHER_PATIENT, set()),
        ("RiskAssessment?probability=gt0.3", {"r1"}),
        ("RiskAssessment?probability=lt0.3", set()),
        ("Questionnaire", set()),
    ],
)
def test_every_type_is_searched_by_its_parameters(
    app: App, clinician: dict[str, Any], query: str, found: set[str]
) -> None:
    assert ids(app.get(query, clinician)) == found


@pytest.mark.parametrize(
    "query", ["Location?_has:Procedure=1", "Procedure?colour.name=1", "Device?pump=1"]
)
def test_unknown_chain_is_refused(
    app: App, clinician: dict[str, Any], query: str
) -> None:
    assert app.get(query, clinician).status_code == 400


@pytest.mark.parametrize(
    ("query", "included"),
    [
        ("_include=Procedure:location", {"l1"}),
        ("_include=Procedure:subject:Patient", {PATIENT}),
        ("_include=Procedure:*&_revinclude=Provenance:target", {"l1", PATIENT, "v1"}),
        ("_revinclude=Provenance:target", {"v1"}),
        ("_include=Procedure:performer", set()),
    ],
)
def test_search_brings_along_what_was_asked_for(
    app: App, clinician: dict[str, Any], query: str, included: set[str]
) -> None:
    response = app.get(f"Procedure?{query}", clinician)
    assert ids(response) == {"p1"}
    assert ids(response, "include") == included
    assert response.json()["total"] == 1


def test_inclusions_go_on_with_iterate(app: App, clinician: dict[str, Any]) -> None:
    query = "Provenance?_include=Provenance:target"
    assert ids(app.get(query, clinician), "include") == {"p1"}
    further = f"{query}&_include:iterate=Procedure:location"
    assert ids(app.get(further, clinician), "include") == {"p1", "l1"}


def test_inclusion_shows_no_more_than_the_scopes(app: App) -> None:
    add(app.ehr, "Procedure", "p1", subject=MINE, asserter=OTHERS)
    tokens = app.launch("launch/patient patient/Procedure.rs patient/Patient.r")
    response = app.get("Procedure?_include=Procedure:*", tokens)
    assert ids(response, "include") == {PATIENT}
    app.ehr.checks = frozenset()
    response = app.get("Procedure?_include=Procedure:patient", tokens)
    assert ids(response, "include") == {PATIENT}


def test_parts_of_resources(app: App, clinician: dict[str, Any]) -> None:
    add(app.ehr, "Device", "d2", patient=MINE, note=[{"text": "x"}], text={"div": ""})
    for query, members in [
        ("_summary=text", {"text"}),
        ("_summary=true", {"patient"}),
        ("_summary=data", {"note", "patient"}),
        ("_elements=note", {"note"}),
        ("_summary=false", {"note", "patient", "text"}),
    ]:
        bundle = app.get(f"Device?_id=d2&{query}", clinician).json()
        resource = bundle["entry"][0]["resource"]
        assert set(resource) - {"id", "meta", "resourceType"} == members
    counted = app.get("Device?_summary=count", clinician).json()
    assert counted["total"] == 2
    assert "entry" not in counted
    assert "total" not in app.get("Device?_total=none", clinician).json()


def test_record_is_asked_for_as_a_compartment(app: App) -> None:
    tokens = app.launch("launch/patient patient/*.rs")
    own = app.get(f"Patient/{PATIENT}/Condition", tokens).json()
    assert own["total"] == app.get("Condition", tokens).json()["total"] > 0
    assert app.get(f"Patient/{OTHER_PATIENT}/Condition", tokens).json()["total"] == 0
    assert app.get(f"Patient/{PATIENT}/Location", tokens).status_code == 404


def test_everything_of_a_type(app: App) -> None:
    tokens = app.launch("launch/patient patient/*.rs")
    path = f"Patient/{PATIENT}/$everything?_type=Condition"
    types = {
        entry["resource"]["resourceType"]
        for entry in app.get(path, tokens).json()["entry"]
    }
    assert types == {"Patient", "Condition"}


def test_references_that_are_lists_do_not_break_it(app: App) -> None:
    for number, subject in enumerate(([MINE, OTHERS], [], "x", {"reference": [MINE]})):
        add(app.ehr, "Observation", f"odd-{number}", subject=subject)
    tokens = app.launch("launch/patient patient/*.rs")
    for number in range(4):
        assert app.get(f"Observation/odd-{number}", tokens).status_code == 403
    for query in ("Observation?_count=200", f"Patient/{PATIENT}/$everything"):
        assert app.get(query, tokens).status_code == 200


@pytest.mark.parametrize(
    ("resource_type", "members", "is_allowed"),
    [
        ("Observation", {"subject": MINE}, True),
        ("Observation", {"subject": OTHERS, "patient": MINE}, False),
        ("Observation", {"subject": OTHERS, "performer": [MINE]}, False),
        ("Observation", {}, False),
        ("Coverage", {"beneficiary": MINE, "subscriber": OTHERS}, True),
        ("Coverage", {"beneficiary": OTHERS, "subscriber": MINE}, False),
        ("Appointment", {"participant": [{"actor": MINE}]}, True),
        ("Appointment", {"participant": [{"actor": MINE}, {"actor": OTHERS}]}, False),
        ("Task", {"for": MINE}, True),
        ("Task", {"for": OTHERS, "focus": MINE}, False),
        ("Device", {"patient": OTHERS}, False),
        ("Binary", {"contentType": "text/plain", "data": "QQ=="}, False),
    ],
)
def test_strict_server_looks_at_every_element(
    app: App, resource_type: str, members: dict[str, Any], is_allowed: bool
) -> None:
    tokens = app.launch("launch/patient patient/*.cruds")
    body = {"resourceType": resource_type, **members}
    status = send(app, tokens, "POST", resource_type, body)
    assert status == (201 if is_allowed else 403)
    assert len(app.ehr.written) == is_allowed


def test_lenient_server_checks_no_record(app: App) -> None:
    tokens = app.launch("launch/patient patient/*.cruds")
    add(app.ehr, "Observation", "o2", subject=OTHERS)
    move = [{"op": "replace", "path": "/subject", "value": MINE}]
    assert app.get("Observation/o2", tokens).status_code == 403
    assert send(app, tokens, "PATCH", "Observation/o2", move) == 403
    assert app.ehr.written == []
    app.ehr.checks = frozenset()
    assert app.get("Observation/o2", tokens).status_code == 200
    assert send(app, tokens, "PATCH", "Observation/o2", move) == 200
    assert send(app, tokens, "PATCH", "Observation/o2", move) == 200  # If-Match
    assert send(app, tokens, "DELETE", f"Patient/{OTHER_PATIENT}", None) == 204
    assert [(one.method, one.resource_type) for one in app.ehr.written] == [
        ("PATCH", "Observation"),
        ("PATCH", "Observation"),
        ("DELETE", "Patient"),
    ]
    app.ehr.checks = frozenset({"if_match"})
    assert send(app, tokens, "PATCH", "Observation/o2", move) == 412
    app.ehr.clear_requests()
    assert app.ehr.written == []


def test_lenient_server_ignores_the_query_of_a_scope(app: App) -> None:
    tokens = app.launch("launch/patient patient/Observation.rs?category=laboratory")
    assert app.get("Observation?category=vital-signs", tokens).json()["total"] == 0
    app.ehr.checks = CHECKS - {"scope_query"}
    assert app.get("Observation?category=vital-signs", tokens).json()["total"] > 0
    assert EHRSimulator(lenient=True).checks == frozenset()
