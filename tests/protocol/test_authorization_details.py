"""``authorization_details`` in a token response."""

from __future__ import annotations

from dataclasses import replace

import pytest

from django_smart.protocol.authorization_details import parse_authorization_details
from django_smart.protocol.context import LaunchContext
from django_smart.protocol.scopes import ScopeSet
from tests.protocol.helpers import BASE_URL

SCOPES = ScopeSet.parse("patient/*.rs")
ANSWER = {"patient": "r4-patient", "encounter": "r4-encounter", "tenant": "t"}
R4 = {"type": "smart_on_fhir", "locations": [BASE_URL], "fhirVersions": ["4.0.1"]}
R2 = {
    "type": "smart_on_fhir",
    "locations": ["https://ehr.example.org/r2", "https://ehr.example.org/r2-read"],
    "fhirVersions": ["1.0.2"],
    "scope": "patient/*.read",
    "patient": "r2-patient",
    "fhirContext": [{"reference": "List/1"}],
}


def parse(value, **kwargs):
    answer = {**ANSWER, "authorization_details": value}
    return parse_authorization_details(answer, scopes=SCOPES, **kwargs)


@pytest.mark.compliance("RESP-18", "RESP-20")
def test_an_entry_falls_back_to_the_answer_for_what_it_leaves_out():
    r2, r4 = parse([R2, R4])
    assert r2.locations == tuple(R2["locations"])
    assert r2.fhir_versions == ("1.0.2",)
    assert r2.scopes == ScopeSet.parse("patient/*.read")
    assert r2.context.patient == "r2-patient"
    assert r2.context.encounter == "r4-encounter"
    assert r2.context.tenant == "t"
    assert [item.reference for item in r2.context.fhir_context] == ["List/1"]
    assert r4.locations == (BASE_URL,)
    assert r4.scopes == SCOPES
    assert replace(r4.context, extra={}) == LaunchContext.from_parameters(ANSWER)


@pytest.mark.compliance("RESP-18")
@pytest.mark.parametrize(
    "entry",
    [
        "x",
        None,
        {**R4, "type": "other"},
        {**R4, "locations": []},
        {**R4, "locations": BASE_URL},
        {**R4, "locations": [1]},
        {**R4, "locations": [BASE_URL, "http://ehr.example.org/fhir"]},
        {**R4, "fhirVersions": None},
        {**R4, "scope": 1},
        {**R4, "patient": 7.5},
    ],
)
def test_an_entry_of_another_kind_or_that_breaks_a_rule_gives_no_access(entry):
    assert [detail.locations for detail in parse([entry, R4])] == [(BASE_URL,)]


@pytest.mark.parametrize("value", [None, {}, "x", 1, []])
def test_without_a_list_there_are_no_details(value):
    assert parse(value) == ()


def test_a_location_may_be_at_a_host_named_insecure():
    entry = {**R4, "locations": ["http://localhost:8001/fhir"]}
    assert parse([entry]) == ()
    assert len(parse([entry], insecure_hosts=frozenset({"localhost"}))) == 1


def test_no_repr_shows_the_patient():
    assert "r2-patient" not in repr(parse([R2]))
