"""The page on FHIR in templates, by the code that it shows."""

from __future__ import annotations

from types import SimpleNamespace

from django.template import engines

from tests.docs.blocks import read_blocks

PATIENT = {
    "id": "p",
    "name": [{"text": "Ada Byron"}],
    "birthDate": "1957-08",
    "deceasedDateTime": "2001-01-01",
    "address": [{"city": "Mounds", "state": "OK", "postalCode": "74047"}],
    "telecom": [{"system": "phone", "value": "555-0100"}],
}
CONDITION = {
    "code": {"text": "Asthma"},
    "onsetPeriod": {"start": "1990"},
    "verificationStatus": {"coding": [{"code": "refuted"}]},
}
RESULT = {
    "code": {"coding": [{"display": "HbA1c"}]},
    "valueQuantity": {"value": 7.5, "unit": "%", "comparator": ">="},
    "effectiveDateTime": "2021-03-04T14:30:00-05:00",
}


def test_templates_of_the_page_show_what_it_says():
    resources, _ = read_blocks("how-to/templates.rst", "Show FHIR data")
    (banner,) = read_blocks("how-to/templates.rst", "The patient banner")
    values = {"patient": PATIENT, "conditions": [CONDITION], "results": [RESULT]}
    page = engines["django"].from_string(resources.code).render(values)
    for text in (
        *("<h1>Ada Byron</h1>", "Born August 1957 (about 43 years)"),
        *("Asthma, refuted", "since 1990", "Mounds, OK 74047, 555-0100"),
        *("HbA1c: ≥ 7.5 %", "March 4, 2021, 2:30 p.m. (UTC-05:00)"),
    ):
        assert text in page
    request = SimpleNamespace(smart=None)
    page = engines["django"].from_string(banner.code).render({**values}, request)  # type: ignore[arg-type]  # has what the tag asks for
    assert ">Ada Byron</h2>" in page


def test_medication_of_an_order_is_shown_in_each_form():
    _, orders = read_blocks("how-to/templates.rst", "Show FHIR data")
    template = engines["django"].from_string(orders.code)
    for order, text in (
        ({"medicationCodeableConcept": {"text": "Metformin"}}, "Metformin"),
        ({"medicationReference": {"display": "Ramipril"}}, "Ramipril"),
        ({"medicationReference": {"reference": "#m"}}, "unknown medication"),
        ({}, "unknown medication"),
    ):
        assert f"<p>{text}</p>" in template.render({"orders": [order]})
