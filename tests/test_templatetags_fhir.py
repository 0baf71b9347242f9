"""``{% load fhir %}``: FHIR's data types in words, whatever a server sends."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest
from django.template import engines
from django.utils import timezone, translation
from hypothesis import given
from hypothesis import strategies as st

from django_smart.fhir.json import Number
from django_smart.templatetags import fhir

FILTERS = [
    fhir.address,
    fhir.age,
    fhir.contact_point,
    fhir.fhir_status,
    fhir.fhir_value,
    fhir.codeable_concept,
    fhir.fhir_date,
    fhir.fhir_datetime,
    fhir.human_name,
    fhir.period,
    fhir.quantity,
]
_MEMBERS = [
    *("use", "text", "given", "family", "name", "period", "start", "end", "value"),
    *("unit", "comparator", "code", "coding", "display", "userSelected"),
    *("valueQuantity", "_valueString", "valueRange", "valueRatio", "component", "low"),
    *("dataAbsentReason", "extension", "modifierExtension", "status", "line", "rank"),
    *("clinicalStatus", "city", "telecom", "address", "numerator", "resourceType"),
]
# At the edges of what a datetime can hold, too.
DATES = st.builds(
    "{}-{}T{}{}".format,
    st.sampled_from(["0001", "2021", "9999"]),
    st.sampled_from(["01-01", "12-31", "02-30"]),
    st.sampled_from(["00:00:00", "23:59:59", "24:00:00", "12:00:00.1234567", ""]),
    st.sampled_from(["", "Z", "+14:00", "-12:00", "+23:59", "+24:00"]),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | DATES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_MEMBERS), inner, max_size=4)
    ),
    max_leaves=12,
)


def render(source: str, value: Any) -> str:
    template = engines["django"].from_string("{% load fhir %}{{ value|" + source + "}}")
    return template.render({"value": value})


NAMES = [
    {"use": "old", "family": "Before"},
    {"use": "official", "given": ["Ada", "M."], "family": "Byron"},
]


ABSENT = {
    "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
    "valueCode": "not-asked",
}


@pytest.mark.parametrize(
    "value", [NAMES, NAMES[1], {"resourceType": "Patient", "name": NAMES}]
)
def test_name_is_that_in_use(value):
    assert render("human_name", value) == "Ada M. Byron"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": " Type 2 \n diabetes "}, "Type 2 diabetes"),
        ({"coding": [{"code": "E11"}, {"display": "Diabetes"}]}, "Diabetes"),
        (
            {
                "coding": [
                    {"display": "by a machine"},
                    {"display": "by a person", "userSelected": True},
                ]
            },
            "by a person",
        ),
        ({"coding": [{"code": "E11"}]}, "E11"),
        ({"code": "AMB", "display": "ambulatory"}, "ambulatory"),
        ([{"text": "a"}, {}, {"text": "b"}], "a, b"),
        ("E11", ""),
    ],
)
def test_concept_is_its_text_or_a_display_or_a_code(value, expected):
    assert render("codeable_concept", value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"value": 6.5, "unit": "%"}, "6.5 %"),
        ({"value": 7, "comparator": "<=", "code": "mmol/L"}, "≤ 7 mmol/L"),
        ({"value": 0, "unit": "g"}, "0 g"),
        ({"value": -0.25}, "-0.25"),
        ({"value": 1e-07, "unit": "mol"}, "0.0000001 mol"),
        ({"value": 12000.0, "unit": "/µL"}, "12000.0 /µL"),
        ({"value": Decimal("7.20"), "unit": "g"}, "7.20 g"),
        ({"value": "7", "unit": "g"}, "7 g"),
        ({"value": 7, "comparator": "<", "unit": "%"}, "< 7 %"),
        ({"value": 100, "comparator": "ad", "unit": "mL"}, "ad 100 mL"),
        ({"value": 12.5, "currency": "EUR"}, "12.5 EUR"),
        ({"unit": "%", "_value": {"extension": [ABSENT]}}, "not asked"),
        ({"value": True, "unit": "g"}, ""),
        ({"value": float("inf"), "unit": "g"}, ""),
        ({"unit": "g"}, ""),
        (7, ""),
    ],
)
def test_quantity_keeps_its_digits(value, expected):
    assert fhir.quantity(value) == expected


@pytest.mark.parametrize(
    "literal",
    [
        *("1e-999999999", "1e999999999", "1e-51", "-2E+51"),
        *("1e-9999999999999999999", "1e9999999999999999999"),
    ],
)
def test_number_far_from_one_keeps_its_exponent(literal):
    assert fhir.quantity({"value": Number(literal), "unit": "mol"}) == f"{literal} mol"
    assert fhir.fhir_value({"valueDecimal": Number(literal)}) == literal


def test_number_closer_to_one_is_written_out():
    assert fhir.quantity({"value": Number("1e-3")}) == "0.001"
    assert fhir.quantity({"value": Number("1e50")}) == f"1{'0' * 50}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1957", "1957"),
        ("1957-08", "August 1957"),
        ("1957-08-03", "3 Aug 1957"),
        ("2021-10-06T23:52:52.847-04:00", "6 Oct 2021"),
        (datetime.date(1957, 8, 3), "3 Aug 1957"),
        ("soon", ""),
    ],
)
def test_date_is_as_precise_as_it_was_written(value, expected):
    with translation.override("en-gb"):
        assert render("fhir_date", value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1957-08", "August 1957"),
        ("2021-10-06T13:52:00+02:00", "6 Oct 2021, 1:52 p.m."),
        ("2021-10-06T13:52:00-04:00", "6 Oct 2021, 1:52 p.m. (UTC-04:00)"),
        ("2021-10-06T13:52:00Z", "6 Oct 2021, 1:52 p.m. (UTC)"),
        ("2021-10-06T13:52:00", "6 Oct 2021, 1:52 p.m."),
    ],
)
def test_time_is_told_with_its_zone_if_that_is_another_one(value, expected):
    with translation.override("en-gb"), timezone.override("Europe/Copenhagen"):
        assert fhir.fhir_datetime(value) == expected


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("9999-12-31T23:59:59Z", "31 Dec 9999, 11:59 p.m."),
        ("9999-12-31T23:59:59-14:00", "31 Dec 9999, 11:59 p.m. (UTC-14:00)"),
        ("0001-01-01T00:00:00Z", "1 Jan 0001, midnight"),
        ("0001-01-01T00:00:00+14:00", "1 Jan 0001, midnight (UTC+14:00)"),
    ],
)
def test_first_and_last_moment_are_told_in_every_zone(value, expected, zone):
    if value.endswith("Z") and zone != "UTC":
        expected += " (UTC)"
    with translation.override("en-gb"), timezone.override(zone):
        assert fhir.fhir_datetime(value) == expected
        assert fhir.period({"start": value, "end": value}) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"start": "2021-03-04", "end": "2021-04"}, "4 Mar 2021 – April 2021"),
        ({"start": "2021-03-04", "end": "2021-03-04"}, "4 Mar 2021"),
        (
            {"start": "2021-03-04T10:00:00Z", "end": "2021-03-04T11:30:00Z"},
            "4 Mar 2021, 10 a.m. – 11:30 a.m.",
        ),
        ({"start": "2021"}, "since 2021"),
        ({"end": "2021"}, "until 2021"),
        ({"start": "x"}, ""),
        ("2021", ""),
    ],
)
def test_period_says_from_when_until_when(value, expected):
    with translation.override("en-gb"):
        assert fhir.period(value) == expected


@pytest.mark.parametrize(
    ("language", "value", "expected"),
    [
        ("de", {"start": "2021-03"}, "seit März 2021"),
        ("de", {"end": "2021-03-04"}, "bis 4. März 2021"),
        ("es", {"start": "2021"}, "desde 2021"),
        ("es", {"start": "2021-03"}, "desde marzo de 2021"),
        ("es", {"end": "2021-03-04"}, "hasta el 4 de marzo de 2021"),
        ("fr", {"start": "2021-03"}, "depuis mars 2021"),
        ("fr", {"end": "2021"}, "jusqu’en 2021"),
        ("fr", {"end": "2021-03-04"}, "jusqu’au 4 mars 2021"),
    ],
)
def test_month_and_year_have_no_article(language, value, expected):
    with translation.override(language):
        assert fhir.period(value) == expected


PERCENT = {"value": 7.1, "unit": "%"}
PRESSURE = [
    {"code": {"text": "Systolic"}, "valueQuantity": {"value": 120, "unit": "mmHg"}},
    {"code": {"text": "Diastolic"}, "dataAbsentReason": {"text": "not measured"}},
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"status": "final", "valueQuantity": PERCENT}, "7.1 %"),
        (
            {"status": "preliminary", "valueQuantity": {**PERCENT, "comparator": "<"}},
            "< 7.1 % (preliminary)",
        ),
        (
            {"status": "entered-in-error", "valueQuantity": PERCENT},
            "7.1 % (entered in error)",
        ),
        ({"status": "amended", "valueString": "positive"}, "positive (amended)"),
        ({"valueString": "2021"}, "2021"),
        ({"valueDateTime": "2021-03-04"}, "March 4, 2021"),
        ({"valueCodeableConcept": {"text": "Negative"}}, "Negative"),
        ({"valueInteger": 3}, "3"),
        ({"valueBoolean": False}, "no"),
        ({"valueRange": {"low": PERCENT}}, "≥ 7.1 %"),
        ({"valueRange": {"low": PERCENT, "high": {"value": 9}}}, "7.1 % – 9"),
        (
            {"valueRatio": {"numerator": {"value": 1}, "denominator": {"value": 128}}},
            "1:128",
        ),
        ({"valuePeriod": {"start": "2021"}}, "since 2021"),
        ({"valueReference": {"reference": "Media/1"}}, "Media/1"),
        ({"valueAttachment": {"contentType": "image/png"}}, "image/png"),
        ({"valueSampledData": {"period": 10}}, "a value of type SampledData"),
        ({"valueNewType": {"x": 1}}, "a value of type NewType"),
        ({"dataAbsentReason": {"coding": [{"code": "unknown"}]}}, "unknown"),
        ({"_valueQuantity": {"extension": [ABSENT]}}, "not asked"),
        ({"valueQuantity": {"extension": [ABSENT]}}, "not asked"),
        ({"component": PRESSURE}, "Systolic: 120 mmHg; Diastolic: not measured"),
        (
            {"component": PRESSURE, "status": "entered-in-error"},
            "Systolic: 120 mmHg; Diastolic: not measured (entered in error)",
        ),
        ({"status": "cancelled"}, "(cancelled)"),
        ({}, ""),
    ],
)
def test_result_is_shown_with_all_that_it_must_not_be_read_without(value, expected):
    assert fhir.fhir_value({"resourceType": "Observation", **value}) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(PERCENT, "7.1 %"), ({"text": "Mild"}, "Mild"), ("x", "x"), (None, ""), (7, "7")],
)
def test_value_itself_is_shown_as_what_it_is(value, expected):
    assert fhir.fhir_value(value) == expected


def test_unknown_modifier_is_visible():
    odd = {"modifierExtension": [{"url": "urn:not"}], "valueQuantity": PERCENT}
    for value in ({"resourceType": "Observation", **odd}, {"component": [odd]}):
        assert "modified by an extension" in fhir.fhir_value(value)
    assert "modified by an extension" in fhir.fhir_status(odd)


def local(code: str, **members: str) -> dict[str, str]:
    return {"system": "urn:local", "code": code, **members}


def hl7(code: str) -> dict[str, str]:
    system = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
    return {"system": system, "code": code}


def verification(*codings: dict[str, str], **members: str) -> dict[str, Any]:
    return {"verificationStatus": {"coding": list(codings), **members}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"status": "entered-in-error"}, "entered in error"),
        ({"status": "on-hold", "doNotPerform": True}, "on hold, do not perform"),
        (
            {
                "clinicalStatus": {"coding": [{"code": "active"}]},
                "verificationStatus": {"coding": [{"code": "entered-in-error"}]},
            },
            "active, entered in error",
        ),
        ({"clinicalStatus": "active"}, "active"),
        (verification(local("30"), hl7("entered-in-error")), "entered in error"),
        (verification(local("active"), hl7("entered-in-error")), "entered in error"),
        (verification(hl7("confirmed"), local("refuted")), "refuted"),
        (verification(local("A", display="Aktiv"), hl7("refuted")), "refuted"),
        (verification(local("30"), hl7("differential")), "differential"),
        (verification(local("active"), hl7("confirmed")), "confirmed"),
        (verification(local("active"), text="Entered in Error"), "entered in error"),
        (verification(local("30", display="Bestätigt")), "Bestätigt"),
        ({}, ""),
        ("active", ""),
    ],
)
def test_status_is_told_in_words(value, expected):
    assert fhir.fhir_status(value) == expected


@pytest.mark.parametrize("language", ["de", "es", "fr"])
def test_statuses_are_in_the_language_of_the_page(language):
    codes = [
        *("aborted", "active", "amended", "cancelled", "completed", "confirmed"),
        *("corrected", "draft", "finished", "in-progress", "inactive", "not-taken"),
        *("on-hold", "planned", "registered", "resolved", "revoked", "stopped"),
    ]
    with translation.override(language):
        for code in codes:
            words = code.replace("-", " ")
            condition = {"clinicalStatus": {"coding": [{"code": code}]}}
            for value in (condition, {"status": code, "doNotPerform": True}):
                assert words not in fhir.fhir_status(value).split(", ")
        assert fhir.fhir_value({"status": "final", "valueString": "x"}) == "x"


MEADOW = {"line": ["49 Meadow St"], "city": "Mounds", "state": "OK"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({**MEADOW, "postalCode": "74047"}, "49 Meadow St, Mounds, OK 74047"),
        (
            {**MEADOW, "postalCode": "74047-1234", "country": "US"},
            "49 Meadow St, Mounds, OK 74047-1234, US",
        ),
        (
            {"line": ["Hauptstr. 5"], "city": "Berlin", "postalCode": "10115"},
            "Hauptstr. 5, 10115 Berlin",
        ),
        (
            {"city": "London", "postalCode": "SW1A 1AA", "country": "United Kingdom"},
            "London, SW1A 1AA, United Kingdom",
        ),
        ({"text": "Somewhere\n2"}, "Somewhere 2"),
        ([{"use": "old", "city": "A"}, {"city": "B"}], "B"),
        ([{"city": "A", "period": {"end": "2001"}}, {"city": "B"}], "B"),
        ({"resourceType": "Patient", "address": [{}, {"city": "B"}]}, "B"),
        ({"resourceType": "Location", "address": {"city": "B"}}, "B"),
        ({}, ""),
        ("Berlin", ""),
    ],
)
def test_address_is_in_the_order_of_its_country(value, expected):
    assert fhir.address(value) == expected


POINTS = [
    {"system": "phone", "value": "old", "use": "old", "rank": 1},
    {"system": "email", "value": "a@example.org"},
    {"system": "phone", "value": "555-0101"},
    {"system": "phone", "value": "555-0100", "rank": 2},
]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("contact_point", "555-0100"),
        ("contact_point:'email'", "a@example.org"),
        ("contact_point:'fax'", ""),
    ],
)
def test_contact_point_is_the_one_to_use(source, expected):
    assert render(source, {"telecom": POINTS}) == expected
    assert render(source, POINTS) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"birthDate": "1957-08-03", "deceasedDateTime": "1999-08-02"}, "41 years"),
        ({"birthDate": "2020-01-05", "deceasedDateTime": "2020-06-01"}, "4 months"),
        ({"birthDate": "1957", "deceasedDateTime": "1999-08-02"}, "about 42 years"),
        ({"birthDate": "1957", "deceasedBoolean": True}, ""),
        ({"birthDate": "1957", "deceasedDateTime": "March 1999"}, ""),
        ({"birthDate": "1957", "_deceasedDateTime": {"extension": [{}]}}, ""),
        ({"birthDate": "2999-01-01"}, ""),
        ("soon", ""),
    ],
)
def test_age_is_told_in_words(value, expected):
    assert fhir.age(value) == expected


def test_age_of_the_living_is_that_of_today():
    born = timezone.localdate() - datetime.timedelta(days=366 * 30)
    assert fhir.age(born.isoformat()) == fhir.age({"birthDate": born}) == "30 years"


def test_words_are_those_of_the_active_language():
    with translation.override("de"):
        assert fhir.fhir_date("1957-08") == "August 1957"
        assert fhir.fhir_date("2021-10-06") == "6. Oktober 2021"
        assert fhir.quantity({"value": 6.5, "unit": "%"}) == "6,5 %"


def test_everything_is_escaped():
    value = {"text": "<script>", "value": 1, "unit": "<b>"}
    assert render("codeable_concept", value) == "&lt;script&gt;"
    assert render("human_name", [value]) == "&lt;script&gt;"
    assert render("quantity", value) == "1 &lt;b&gt;"


@given(JSON, st.sampled_from(["Asia/Tokyo", "America/New_York"]))
def test_odd_values_are_left_out_and_never_an_error(value, zone):
    with timezone.override(zone):
        for each in FILTERS:
            assert isinstance(each(value), str)
