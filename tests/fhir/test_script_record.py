"""What a script sends and receives names no other patient."""

from __future__ import annotations

import time
from typing import Any

import pytest

from django_smart.exceptions import ForeignPatientError
from django_smart.fhir.record_check import record_check
from django_smart.fhir.script_record import ScriptRecord
from django_smart.protocol.scopes import ScopeSet
from tests.fhir.servers import BASE, bundle

OBSERVATION = {
    "resourceType": "Observation",
    "id": "o1",
    "subject": {"reference": "Patient/p1"},
}


def make_record(**options: Any) -> ScriptRecord:
    scopes = ScopeSet.parse("patient/*.rs")
    return ScriptRecord(patient_id="p1", base_url=BASE, scopes=scopes, **options)


def refuses(resource: Any, record: ScriptRecord) -> bool:
    try:
        record_check(resource, record)
    except ForeignPatientError:
        return True
    return False


@pytest.mark.parametrize(
    ("element", "value"),
    [
        ("performer", [{"reference": "Patient/p2"}]),
        ("performer", [{"reference": f"{BASE}/Patient/p2"}]),
        ("performer", [{"reference": "p2", "type": "Patient"}]),
        ("performer", [{"identifier": {"value": "1"}}]),
        ("focus", [{"reference": "urn:uuid:1"}]),
        ("extension", [{"url": "x", "valueUri": "Patient/p2"}]),
        ("note", [{"authorReference": {"reference": "Patient/p2"}}]),
    ],
)
def test_other_patient_is_named_only_where_the_view_lists_it(element, value):
    named = {**OBSERVATION, element: value}
    assert refuses(named, make_record())
    assert refuses({**OBSERVATION, "contained": [named]}, make_record())
    listed = {"Observation.performer", "Observation.subject"}
    is_listed = element == "performer"
    assert refuses(named, make_record(other_patients=listed)) is not is_listed
    another = {**named, "subject": {"reference": "Patient/p2"}}
    assert refuses(another, make_record(other_patients=listed))


def test_entry_may_name_another_one_that_is_no_patient():
    told = {**OBSERVATION, "focus": [{"reference": "urn:uuid:1"}]}
    for kind, is_refused in (("Practitioner", False), ("Patient", True)):
        other = {"fullUrl": "urn:uuid:1", "resource": {"resourceType": kind, "id": "x"}}
        found = bundle(entry=[{"resource": told}, other])
        assert refuses(found, make_record()) is is_refused


def test_check_takes_no_longer_than_what_is_checked():
    entries = [
        {
            "fullUrl": f"urn:uuid:{number}",
            "resource": {**OBSERVATION, "focus": [{"reference": f"urn:uuid:{number}"}]},
        }
        for number in range(10_000)
    ]
    started = time.process_time()
    assert not refuses(bundle(entry=entries), make_record())
    assert time.process_time() - started < 10
