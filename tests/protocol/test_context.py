"""Launch context."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import MalformedTokenResponseError
from django_smart.protocol.context import (
    MAX_CONTEXT_LENGTH,
    FHIRContextItem,
    LaunchContext,
    check_length,
    merge_parameters,
)
from tests.protocol.helpers import SEED, VECTORS

FHIR_CONTEXT = VECTORS["fhir_context"]


def read(**parameters):
    return LaunchContext.from_parameters(parameters)


@pytest.mark.compliance("RESP-11", "RESP-13")
def test_the_context_of_the_published_answer_is_read():
    context = LaunchContext.from_parameters(SEED["token_response"])
    assert context.patient == "87a339d0-8cae-418e-89c7-8651e6aab3c6"
    assert context.need_patient_banner is True
    assert context.smart_style_url == "https://smart.argo.run/smart-style.json"
    assert context.extra == {}
    assert context.deviations == ()


@pytest.mark.compliance("RESP-10", "RESP-14", "RESP-17", "TASK-04")
def test_what_is_not_known_is_kept_and_what_is_absent_is_none():
    context = read(
        access_token="secret",
        refresh_token="secret",
        id_token="secret",
        token_type="Bearer",
        expires_in=60,
        scope="openid",
        intent="reconcile",
        tenant="clinic-7",
        appContext="x=1",
        __custom={"a": 1},
    )
    assert context.intent == "reconcile"
    assert context.tenant == "clinic-7"
    assert context.extra == {"appContext": "x=1", "__custom": {"a": 1}}
    empty = read()
    assert empty == LaunchContext()
    assert empty.patient is empty.encounter is empty.need_patient_banner is None
    assert empty.intent is empty.tenant is empty.smart_style_url is None
    assert empty.fhir_context == ()


@pytest.mark.compliance("RESP-11", "RESP-12", "RESP-19")
@pytest.mark.parametrize("name", ["patient", "encounter"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("123", "123"),
        ("a.B-9", "a.B-9"),
        ("...", "..."),
        ("x" * 64, "x" * 64),
        ("{type}/123", "123"),
        ("", None),
        (None, None),
    ],
)
def test_patient_and_encounter_are_bare_ids(name, value, expected):
    if value:
        value = value.format(type=name.capitalize())
    assert getattr(read(**{name: value}), name) == expected


@pytest.mark.compliance("RESP-11", "RESP-12")
@pytest.mark.parametrize("name", ["patient", "encounter"])
@pytest.mark.parametrize(
    "value",
    [
        12.3,
        True,
        ["123"],
        {"reference": "Patient/123"},
        "x" * 65,
        ".",
        "..",
        "a/b",
        "../123",
        "Practitioner/123",
        "Patient/Patient/123",
        "https://ehr.example.org/fhir/Patient/123",
        "12 3",
        "123\n",
        "1_2",
        "é",
        "1?x=2",
    ],
)
def test_a_patient_or_encounter_that_is_no_id_is_refused_by_its_name(name, value):
    with pytest.raises(MalformedTokenResponseError, match=name) as caught:
        read(**{name: value})
    assert "123" not in str(caught.value)


@pytest.mark.compliance("RESP-13")
@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, True), (False, False), ("true", True), ("False", False), (None, None)],
)
def test_the_banner_is_a_boolean_or_absent(value, expected):
    context = read(need_patient_banner=value)
    assert context.need_patient_banner is expected
    codes = [each.code for each in context.deviations]
    named = {str: ["banner_not_boolean"], type(None): ["context_empty"]}
    assert codes == named.get(type(value), [])


@pytest.mark.compliance("RESP-13", "RESP-14", "RESP-15", "RESP-17")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("need_patient_banner", "yes"),
        ("need_patient_banner", 1),
        ("need_patient_banner", ""),
        ("intent", 7),
        ("tenant", ["x"]),
        ("smart_style_url", {}),
        ("smart_style_url", "http://ehr.example.org/style.json"),
        ("smart_style_url", "javascript:alert(1)"),
        ("fhirContext", {}),
        ("fhirContext", "List/1"),
    ],
)
def test_another_member_that_is_wrong_is_left_out_and_listed(name, value):
    context = read(patient="123", **{name: value})
    assert context == LaunchContext(patient="123")
    (deviation,) = context.deviations
    assert name in deviation.evidence


@pytest.mark.parametrize("name", ["intent", "tenant", "smart_style_url"])
@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_text_is_an_absent_one(name, value):
    context = read(**{name: value})
    assert getattr(context, name) is None
    (deviation,) = context.deviations
    assert deviation.code == "context_empty"


@pytest.mark.compliance("RESP-15")
def test_a_style_at_a_host_named_insecure_may_be_http():
    url = "http://localhost:8001/style.json"
    context = LaunchContext.from_parameters(
        {"smart_style_url": url}, insecure_hosts=frozenset({"localhost"})
    )
    assert context.smart_style_url == url


@pytest.mark.compliance("FCTX-01", "FCTX-02", "FCTX-03")
@pytest.mark.parametrize(
    "items",
    [*FHIR_CONTEXT["valid"], [{"reference": "Observation/1/_history/2"}]],
    ids=str,
)
def test_the_published_fhir_contexts_are_read(items):
    context = read(fhirContext=items)
    assert context.deviations == ()
    known = {"reference", "canonical", "identifier", "type", "role"}
    for item, published in zip(context.fhir_context, items, strict=True):
        assert item.identifier == published.get("identifier")
        assert item.extra == {
            name: value for name, value in published.items() if name not in known
        }
        assert item.reference == published.get("reference", "")
        assert item.canonical == published.get("canonical", "")
        assert item.type == published.get("type", "")
        assert item.role == published.get("role", "launch")


@pytest.mark.compliance("FCTX-01", "FCTX-04", "FCTX-05", "FCTX-06")
@pytest.mark.parametrize(
    ("item", "reason"),
    [
        *((items[0], "") for items in FHIR_CONTEXT["invalid_derived"]),
        ("List/1", "is not an object"),
        (None, "is not an object"),
        ({}, "has no reference, canonical or identifier"),
        ({"reference": 1}, "has a reference that is not a string"),
        ({"reference": None}, "has a reference that is not a string"),
        ({"canonical": ["x"]}, "has a canonical that is not a string"),
        ({"reference": "List/1", "type": 1}, "has a type that is not a string"),
        ({"reference": "List/1", "role": None}, "has a role that is not a string"),
        ({"identifier": "x"}, "has an identifier that is not an object"),
        ({"identifier": {}}, "has no reference, canonical or identifier"),
        (
            {"reference": "https://ehr.example.org/fhir/List/1"},
            "has a reference that is not relative",
        ),
        ({"reference": "List"}, "has a reference that is not relative"),
        ({"reference": "List/.."}, "has a reference that is not relative"),
        ({"reference": "list/1"}, "has a reference that is not relative"),
        *(
            ({"reference": f"List/{each}"}, "has a reference that is not relative")
            for each in ("../_history/1", "1/_history/..", "1/_history/", "1/2")
        ),
        (
            {"reference": "Patient/1/_history/2"},
            "names a Patient with the role launch",
        ),
        (
            {"reference": "List/1", "type": "not a type"},
            "has a type that is not a resource type",
        ),
        (
            {"identifier": {"value": "1"}, "type": "Patient"},
            "names a Patient with the role launch",
        ),
        (
            {"reference": "List/1", "role": "https://a.example/ x"},
            "has a role that is neither launch nor an absolute URI",
        ),
    ],
    ids=str,
)
def test_an_item_that_breaks_a_rule_is_dropped_and_the_others_stay(item, reason):
    context = read(fhirContext=[{"reference": "List/1"}, item, {"reference": "List/2"}])
    assert [kept.reference for kept in context.fhir_context] == ["List/1", "List/2"]
    (deviation,) = context.deviations
    assert deviation.code == "context_ignored"
    assert deviation.evidence.startswith(f"fhirContext[1] {reason}")
    assert reason == "" or deviation.evidence.endswith(reason)


@pytest.mark.compliance("FCTX-04", "FCTX-05", "FCTX-06")
def test_items_are_found_by_role_and_several_may_share_one():
    role = "https://example.org/role/current"
    context = read(
        fhirContext=[
            {"reference": "List/1"},
            {"reference": "List/2", "role": "launch"},
            {"reference": "Patient/3", "role": role, "note": "kept"},
            {"identifier": {"value": "9"}, "role": role},
        ]
    )
    assert [item.reference for item in context.items_with_role()] == [
        "List/1",
        "List/2",
    ]
    patient, other = context.items_with_role(role)
    assert patient.reference == "Patient/3"
    assert patient.extra == {"note": "kept"}
    assert other.identifier == {"value": "9"}
    assert context.items_with_role("https://example.org/none") == ()


def test_a_context_survives_a_json_column():
    parameters = {
        "patient": "Patient/1",
        "encounter": "2",
        "need_patient_banner": "false",
        "intent": "i",
        "tenant": "t",
        "smart_style_url": "https://ehr.example.org/style.json",
        "fhirContext": [
            {"reference": "List/1", "note": 1},
            {"canonical": "https://a.example/Measure/1|2", "type": "Measure"},
            {"identifier": {"value": "9"}, "role": "https://a.example/role"},
            "dropped",
        ],
        "other": [1],
    }
    context = read(**parameters)
    assert [item.extra for item in context.fhir_context] == [{"note": 1}, {}, {}]
    stored = json.loads(json.dumps(merge_parameters({}, parameters)))
    again = LaunchContext.from_parameters(stored)
    assert again == context
    assert again.deviations == context.deviations != ()
    evidence = [each.evidence for each in context.deviations]
    assert "fhirContext[3] is not an object" in evidence
    assert merge_parameters({}, {}) == {}


@pytest.mark.compliance("FHIR-06", "EHRL-09")
@pytest.mark.parametrize(
    ("old", "new", "another"),
    [
        ({"patient": "1"}, {"patient": "1"}, False),
        ({"patient": "1"}, {"patient": "Patient/1"}, False),
        ({"patient": "1"}, {}, False),
        ({}, {"patient": "1"}, False),
        ({"patient": "1"}, {"patient": "2"}, True),
        ({"patient": "a"}, {"patient": "A"}, True),
        ({"patient": "1", "encounter": "1"}, {"patient": "1", "encounter": "2"}, True),
    ],
)
def test_another_patient_or_encounter_is_noticed(old, new, another):
    assert read(**old).names_another(read(**new)) is another


@pytest.mark.compliance("REF-06", "RESP-10")
def test_a_later_answer_replaces_the_context_it_holds_and_nothing_else():
    older = {
        "scope": "launch",
        "expires_in": 60,
        "patient": "1",
        "need_patient_banner": True,
        "fhirContext": [{"reference": "List/1"}],
        "tenant": "t",
        "a": 1,
        "b": 1,
        "d": 1,
    }
    newer = {
        "scope": "other",
        "expires_in": 5,
        "patient": "Patient/1",
        "need_patient_banner": "false",
        "fhirContext": [{}],
        "smart_style_url": "http://localhost/style",
        "tenant": "",
        "a": None,
        "b": 2,
        "c": False,
        "d": "",
    }
    # As received, as in the first response.
    said = {"patient": "Patient/1", "need_patient_banner": "false"}
    merged = {**older, **said, "b": 2, "c": False}
    assert merge_parameters(older, newer) == merged
    assert read(**merged).patient == "1"
    assert read(**merged).need_patient_banner is False
    assert len(read(**merged).fhir_context) == 1
    assert merge_parameters(merged, newer) == merged
    assert merge_parameters(
        older, newer, insecure_hosts=frozenset({"localhost"})
    ) == merged | {"smart_style_url": "http://localhost/style"}
    assert merge_parameters(older, {}) == older
    with pytest.raises(MalformedTokenResponseError):
        merge_parameters(older, {"patient": [7]})


def test_a_context_does_not_grow_from_refresh_to_refresh_without_end():
    half = "x" * (MAX_CONTEXT_LENGTH // 2)
    merged = merge_parameters({"one": half}, {"two": half[:-100]})
    assert set(merged) == {"one", "two"}
    check_length(merged)
    with pytest.raises(MalformedTokenResponseError, match="65536"):
        check_length(merge_parameters(merged, {"three": half}))


@pytest.mark.compliance("SEC-01")
def test_no_repr_shows_patient_data():
    context = read(
        patient="secret",
        encounter="secret",
        fhirContext=[{"reference": "List/secret"}],
        need_patient_banner=True,
        intent="secret",
        tenant="secret",
        smart_style_url="https://secret.example.org/",
        other="secret",
    )
    assert repr(context) == "LaunchContext(deviations=())"


def test_a_bare_item_has_the_role_launch():
    assert FHIRContextItem(reference="List/1").role == "launch"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["reference", "canonical", "identifier", "type", "role", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "patient",
                "encounter",
                "fhirContext",
                "need_patient_banner",
                "intent",
                "tenant",
                "smart_style_url",
                "other",
            ]
        ),
        _JSON,
    )
)
def test_any_parameters_give_a_context_or_a_typed_error(parameters):
    with contextlib.suppress(MalformedTokenResponseError):
        context = LaunchContext.from_parameters(parameters)
        again = LaunchContext.from_parameters(merge_parameters({}, parameters))
        assert replace(again, extra={}) == replace(context, extra={})
        assert not context.names_another(context)
