"""The script of the chart that reads vital signs, with an EHR that answers oddly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.chromium import chromium

__all__ = ["chromium"]

pytestmark = pytest.mark.browser

_SITE = "https://testserver"
_STATIC = Path(__file__).parents[2] / "example_project/static/example"
_SECTION = """
    <section id="vitals" data-fhir="/fhir/" data-patient="p1" hidden>
      <p role="status"></p><dl></dl>
    </section>
"""
_PATIENT = {"resourceType": "Patient", "id": "p1", "name": [{"text": "Ada Byron"}]}
FAILED = "could not be read"
NONE = "has no vital signs"


def observation(text: str = "Pulse", **values: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": text},
        "effectiveDateTime": "2026-03-04",
        "valueQuantity": {"value": 60, "unit": "/min"},
        **values,
    }


def outcome(severity: str, code: str = "processing") -> dict[str, Any]:
    issue = {"severity": severity, "code": code}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def bundle(*resources: dict[str, Any], **members: Any) -> dict[str, Any]:
    entries = [{"resource": resource} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries, **members}


def show(chromium: Browser, *answers: dict[str, Any]) -> tuple[str, list[str]]:
    """Return what the script says and shows if the search has these pages."""
    page = open_page(chromium, *answers)
    status = page.get_by_role("status").inner_text()
    return status, page.locator("dd .number").all_inner_texts()


def open_page(
    chromium: Browser,
    *answers: dict[str, Any],
    language: str = "en",
    texts: dict[str, str] | None = None,
) -> Page:
    pages = list(answers)

    def answer(route: Route) -> None:
        path = route.request.url.removeprefix(_SITE)
        if not path.startswith("/fhir/"):
            html = f'<!doctype html><html lang="{language}">{_SECTION}'
            route.fulfill(body=html, content_type="text/html; charset=utf-8")
            return
        resource = _PATIENT if "/Patient/" in path else pages.pop(0)
        if pages and resource is not _PATIENT:
            resource["link"] = [{"relation": "next", "url": f"{_SITE}/fhir/next"}]
        route.fulfill(body=json.dumps(resource), content_type="application/fhir+json")

    page = chromium.new_page()
    page.add_init_script(
        f"const texts = {json.dumps(texts or {})};"
        "window.gettext = (text) => texts[text] || text;"
    )
    page.route("**/*", answer)
    page.goto(_SITE)
    page.add_script_tag(
        path=_STATIC / "vendor/fhirclient-2.6.3/fhir-client.pure.min.js"
    )
    page.add_script_tag(path=_STATIC / "vitals.js")
    status = page.get_by_role("status")
    expect(status).not_to_be_empty()
    assert pages == []
    return page


def test_failure_is_not_shown_as_a_patient_without_vital_signs(
    chromium: Browser,
) -> None:
    for failure in (
        [outcome("error")],
        [bundle(outcome("fatal"))],
        [bundle(outcome("warning", "incomplete"))],
        [bundle(total=12)],
        [bundle() | {"entry": [{"fullUrl": "urn:uuid:1"}]}],
        [bundle(observation()), bundle(outcome("error", "timeout"))],
    ):
        status, values = show(chromium, *failure)
        assert (FAILED in status, values) == (True, []), failure


def test_patient_without_vital_signs_is_shown_as_that(chromium: Browser) -> None:
    for page in (
        bundle(),
        bundle(outcome("warning")),
        bundle(outcome("information", "incomplete"), total=0),
        bundle(observation(status="entered-in-error"), total=1),
    ):
        status, values = show(chromium, page)
        assert (NONE in status, values) == (True, []), page


def test_what_is_no_result_does_not_hide_the_latest_one(chromium: Browser) -> None:
    wrong = [
        observation(status=status, valueQuantity={"value": 999})
        for status in ("entered-in-error", "cancelled", "registered", "unknown")
    ]
    included = {"resourceType": "Device", "code": {"text": "Pulse"}}
    pages = bundle(outcome("warning"), included, *wrong), bundle(observation())
    assert show(chromium, *pages)[1] == ["60 /min"]


@pytest.mark.compliance("FHIR-07")
def test_withheld_vital_signs_are_not_called_none(chromium: Browser) -> None:
    withheld = outcome("warning", "suppressed")
    status, values = show(chromium, bundle(withheld))
    assert ("withholds" in status, NONE in status, values) == (True, False, [])
    status, values = show(chromium, bundle(observation(), withheld))
    assert ("withholds" in status, values) == (True, ["60 /min"])


def test_part_of_a_measurement_is_not_shown_as_the_whole(chromium: Browser) -> None:
    absent = {"code": {"text": "Systolic"}, "dataAbsentReason": {"text": "error"}}
    low = {
        "code": {"text": "Diastolic"},
        "valueQuantity": {"value": 84, "unit": "mmHg"},
    }
    flow = {"code": {"text": "Flow"}, "valueQuantity": {"value": 2, "unit": "L/min"}}
    page = bundle(
        observation("Pressure", valueQuantity=None, component=[absent, low]),
        observation(
            "Oxygen", valueQuantity={"value": 97, "unit": "%"}, component=[flow]
        ),
        observation("Nothing", valueQuantity=None, component=[absent]),
    )
    assert show(chromium, page)[1] == [
        "Systolic (error), Diastolic 84 mmHg",
        "97 %, Flow 2 L/min",
        "Systolic (error)",
    ]


def half(code: str, text: str, **quantity: Any) -> dict[str, Any]:
    coding = {"system": "http://loinc.org", "code": code}
    return {"code": {"text": text, "coding": [coding]}, "valueQuantity": quantity}


def test_systolic_comes_first_in_whatever_order_the_ehr_sends(
    chromium: Browser,
) -> None:
    high = half("8480-6", "Systolic", value=120, unit="mmHg")
    low = half("8462-4", "Diastolic", value=80, unit="mmHg")
    unknown = [{**part, "code": {"text": part["code"]["text"]}} for part in (low, high)]
    kilopascal = half("8480-6", "Systolic", value=16, unit="kPa")
    for parts, expected in (
        ([low, high], "120/80 mmHg"),
        ([high, low], "120/80 mmHg"),
        (unknown, "Diastolic 80 mmHg, Systolic 120 mmHg"),
        ([low, kilopascal], "Diastolic 80 mmHg, Systolic 16 kPa"),
        ([high, low, low], "Systolic 120 mmHg, Diastolic 80 mmHg, Diastolic 80 mmHg"),
    ):
        pressure = observation(valueQuantity=None, component=parts)
        assert show(chromium, bundle(pressure))[1] == [expected]


def test_date_is_no_more_exact_than_the_ehrs(chromium: Browser) -> None:
    dates = {
        "2021": "2021",
        "2021-03": "March 2021",
        "2021-03-04": "March 4, 2021",
        "2021-03-04T23:30:00-05:00": "March 4, 2021",
        "soon": "",
    }
    observations = [observation(date, effectiveDateTime=date) for date in dates]
    page = open_page(chromium, bundle(*observations))
    assert page.locator("dd .quiet").all_text_contents() == list(dates.values())


def test_date_is_in_the_language_of_the_page(chromium: Browser) -> None:
    measured = observation(effectiveDateTime="2021-03-04")
    page = open_page(chromium, bundle(measured), language="de")
    assert page.locator("dd .quiet").all_text_contents() == ["4. März 2021"]


def test_numbers_are_in_the_language_of_the_page_with_every_digit(
    chromium: Browser,
) -> None:
    numbers: dict[Any, str] = {
        36.85: "36,85",
        1234.5: "1234,5",
        12345678: "12345678",
        -0.0001234: "-0,0001234",
        1e-7: "1e-7",
        "7.10": "7,10",  # which is no number in FHIR, but some servers send it
    }
    values = [
        observation(f"{n}", valueQuantity={"value": n, "comparator": "<"})
        for n in numbers
    ]
    page = open_page(chromium, bundle(*values), language="de")
    shown = page.locator("dd .number").all_inner_texts()
    assert shown == [f"<{text}" for text in numbers.values()]
    assert show(chromium, bundle(*values))[1][0] == "<36.85"


def test_status_is_in_the_language_of_the_page(chromium: Browser) -> None:
    texts = {
        "preliminary": "vorläufig",
        "amended": "geändert",
        "corrected": "korrigiert",
    }
    statuses = {**texts, "other": "other"}
    found = bundle(*[observation(each, status=each) for each in statuses])
    page = open_page(chromium, found, language="de", texts=texts)
    shown = page.locator("dd .number").all_inner_texts()
    assert shown == [f"60 /min, {text}" for text in statuses.values()]


def test_older_value_is_not_the_latest_if_the_newest_is_no_number(
    chromium: Browser,
) -> None:
    old = observation(effectiveDateTime="2015-05-01")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dataAbsentReason": {"text": "refused"}}, "(refused)"),
        ({"valueString": "weak"}, "weak"),
        ({"valueCodeableConcept": {"text": "Regular"}}, "Regular"),
        ({"valueRange": {"low": {"value": 60}}}, "(not shown here)"),
    ]
    for members, expected in cases:
        newest = observation(valueQuantity=None, **members)
        assert show(chromium, bundle(newest, old))[1] == [expected]
