"""Any JSON to and from a FHIR API at the patient boundary: a typed error, or none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from django_smart.exceptions import SMARTError
from django_smart.fhir.allow_list import AllowList
from django_smart.fhir.compartment import Record
from django_smart.fhir.guard import RecordGuard, RecordRules
from django_smart.fhir.interactions import parse_interaction
from django_smart.fhir.record_check import record_check
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from tests.fhir.servers import BASE, bundle, respond

OWN = {"reference": "Patient/p1", "type": "Patient"}
CODES = [{"coding": [{"system": "x", "code": "laboratory"}]}]
OBSERVATION = {
    "resourceType": "Observation",
    "id": "o1",
    "meta": {"versionId": "1"},
    "subject": OWN,
    "category": CODES,
    "contained": [{"resourceType": "Device", "patient": OWN}],
}
TARGET = [{"reference": "Observation/o1"}]
PROVENANCE = {"resourceType": "Provenance", "id": "v1", "target": TARGET}
ISSUES = {"resourceType": "OperationOutcome", "issue": [{"severity": "error"}]}
PARTS = [{"name": "x", "resource": OBSERVATION}, {"name": "y", "valueString": "z"}]
PARAMETERS = {
    "resourceType": "Parameters",
    "parameter": [{"name": "operation", "part": PARTS}],
}
STEPS = [
    {"op": "add", "path": "/note", "value": [{"text": "x"}]},
    {"op": "copy", "path": "/status", "from": "/note/0/text"},
    {"op": "remove", "path": "/note"},
]
BINARY = {"resourceType": "Binary", "data": "W10="}
ANSWER = bundle(
    entry=[
        {"fullUrl": "urn:uuid:1", "resource": OBSERVATION},
        {"resource": PROVENANCE, "request": {"method": "PUT", "url": "Patient/p1"}},
        {"response": {"status": "200", "location": "x", "outcome": ISSUES}},
    ]
)
BATCH = {
    "resourceType": "Bundle",
    "type": "batch",
    "entry": [
        {"fullUrl": "urn:uuid:1", "request": {"method": method, "url": url}, **more}
        for method, url, more in (
            ("GET", "Observation?code=1", {}),
            ("PATCH", "Observation/o1", {"resource": BINARY}),
            ("POST", "Observation", {"resource": OBSERVATION}),
        )
    ],
}
SCOPES = ["patient/*.cruds", "patient/*.rs?category=x user/Observation.rs?category=x"]
ODD: tuple[Any, ...] = (None, 1, "", "Patient/p2", "/a", [], {}, ["x"], [{}], [[1]])


def spoil(*values: Any) -> Iterator[Any]:
    """Each of *values* with each thing in it as any other JSON, one at a time."""
    for value in values:
        for number, _ in enumerate(_list_places([value])):
            for odd in ODD:
                holder = deepcopy([value])
                within, name = list(_list_places(holder))[number]
                within[name] = deepcopy(odd)
                yield holder[0]


def _list_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each list or object within *value*, with each index or name in it."""
    if isinstance(value, dict | list):
        for name in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, name
            yield from _list_places(value[name])


def _build_record(scope: str) -> Record:
    return Record(
        patient_id="p1",
        base_url=BASE,
        scopes=ScopeSet.parse(scope),
        is_for_script=True,
    )


def _build_guard(scope: str, answer: object = None, **rules: bool) -> RecordGuard:
    record = _build_record(scope)

    def fetch(asked: object) -> HTTPResponse:
        return respond(answer)

    return RecordGuard(record=record, fetch=fetch, rules=RecordRules(**rules))


ALLOW_LIST = AllowList(
    record=_build_record(SCOPES[0]),
    methods={"GET", "POST", "PATCH"},
    batch={"batch", "transaction"},
)


def prepare(guard: RecordGuard, method: str, path: str, body: Any = None) -> None:
    with contextlib.suppress(SMARTError):
        asked = parse_interaction(method, path, body=body)
        with contextlib.suppress(SMARTError):
            ALLOW_LIST.check(asked)
        guard.prepare(asked)


@pytest.mark.parametrize("scope", SCOPES)
def test_any_answer_is_checked(scope):
    guard = _build_guard(scope)
    asked = parse_interaction("GET", "Observation/o1")
    for answer in spoil(ANSWER, {**ANSWER, "type": "document"}, PARAMETERS):
        with contextlib.suppress(SMARTError):
            guard.check(asked, respond(answer))
        with contextlib.suppress(SMARTError):
            record_check(answer, guard.record)


@pytest.mark.parametrize("path", ["", "Observation/$validate"])
def test_any_body_is_checked(path):
    guard = _build_guard(SCOPES[0], OBSERVATION)
    for body in spoil(BATCH, OBSERVATION, PARAMETERS):
        prepare(guard, "POST", path, body)


@pytest.mark.parametrize("path", ["Observation/o1", "Observation?code=1"])
def test_any_target_is_checked(path):
    for answer in spoil(OBSERVATION, ANSWER, bundle(OBSERVATION)):
        prepare(_build_guard(SCOPES[0], answer), "DELETE", path)


@pytest.mark.parametrize("scope", ["patient/*.cruds", "patient/*.cud"])
def test_any_patch_is_checked(scope):
    guard = _build_guard(scope, OBSERVATION, may_write_unread=True)
    for patch in spoil(STEPS, PARAMETERS):
        prepare(guard, "PATCH", "Observation/o1", patch)
