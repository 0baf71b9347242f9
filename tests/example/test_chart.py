"""What the pages are given of a launch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from django_smart.exceptions import (
    FHIRForbiddenError,
    FHIRUnavailableError,
    MalformedFHIRResponseError,
    ReauthorizationRequiredError,
    ReplacedPatientError,
    ServerTimeoutError,
)
from example_project import chart
from example_project.problems import describe


def pages(count, error=None, outcomes=()):
    for start in range(0, count, 10):
        observations = [
            {
                "resourceType": "Observation",
                "id": str(number),
                "status": "final",
                "effectiveDateTime": f"{2000 + number % 20}",
                "valueQuantity": {"value": 7, "unit": "%"},
            }
            for number in range(start, min(start + 10, count))
        ]
        yield SimpleNamespace(resources=observations, outcomes=list(outcomes))
    if error is not None:
        raise error


def smart(*, patient_id="p1", patient=None, results=()):
    def read(resource_type, resource_id):
        assert (resource_type, resource_id) == ("Patient", patient_id)
        if isinstance(patient, Exception):
            raise patient
        return patient

    def iterate(resource_type, parameters):
        assert resource_type == "Observation"
        assert parameters[-1] == ("patient", patient_id)
        return SimpleNamespace(pages=lambda: iter(results))

    return SimpleNamespace(
        patient_id=patient_id, fhir=SimpleNamespace(read=read, iterate=iterate)
    )


def test_the_patient_is_put_in_words():
    resource = {
        "id": "p1",
        "name": [{"given": ["Ada"], "family": "Byron"}],
        "birthDate": "1957-08-03",
        "communication": [
            {"language": {"text": "Danish"}},
            {"language": {"text": "English"}, "preferred": True},
            {},
        ],
        "generalPractitioner": [{"display": "Dr. No"}, {"reference": "x"}],
    }
    facts, problem = chart.load_facts(smart(patient=resource))
    assert problem is None
    assert facts is not None
    assert (facts.name, facts.birth_date) == ("Ada Byron", "1957-08-03")
    assert facts.resource is resource
    assert facts.rows == [
        ("Language", ["English", "Danish"]),
        ("General practitioner", ["Dr. No"]),
    ]


def test_a_patient_with_nothing_known_is_shown_as_that():
    assert chart.read_facts({}) == chart.Facts(resource={}, name="Without a name")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FHIRForbiddenError("", status_code=403), "has not allowed"),
        (ServerTimeoutError(""), "too long"),
        (FHIRUnavailableError("", status_code=503), "cannot be reached"),
        (ReauthorizationRequiredError(""), "has ended"),
        (MalformedFHIRResponseError(""), "cannot use"),
        (ReplacedPatientError(""), "another patient"),
    ],
)
def test_a_failure_becomes_a_message(error, words):
    facts, problem = chart.load_facts(smart(patient=error))
    assert facts is None
    assert problem is not None
    assert words in problem.reason
    assert problem.code == error.code


def test_the_message_shows_nothing_the_server_said():
    error = FHIRForbiddenError(
        "secret", status_code=403, issues=[{"diagnostics": "secret"}]
    )
    assert "secret" not in repr(describe(error, "results"))


def test_without_a_patient_nothing_is_asked():
    context = smart(patient_id=None)
    assert chart.load_facts(context)[0] is None
    series, problem = chart.load_results(context)
    assert series.results == []
    assert problem is not None
    assert problem.code == "no_patient"


def test_results_of_all_pages_are_loaded():
    series, problem = chart.load_results(smart(results=pages(11)))
    assert (len(series.results), series.is_complete, problem) == (11, True, None)


def test_results_before_a_failure_are_kept():
    error = FHIRUnavailableError("", status_code=503)
    series, problem = chart.load_results(smart(results=pages(10, error)))
    assert (len(series.results), series.is_complete) == (10, False)
    assert problem is not None
    assert problem.what == "older results"


def test_result_that_two_pages_contain_is_shown_once():
    series, _ = chart.load_results(smart(results=[*pages(10), *pages(11)]))
    assert len(series.results) == 11


@pytest.mark.compliance("FHIR-07")
@pytest.mark.parametrize(
    ("code", "is_withheld"), [("suppressed", True), ("informational", False)]
)
def test_withheld_results_are_noted(code, is_withheld):
    outcome = {"issue": [None, {"severity": "warning", "code": code}]}
    for outcomes in ([outcome], [{}, outcome]):
        series, _ = chart.load_results(smart(results=pages(1, outcomes=outcomes)))
        assert series.is_withheld is is_withheld


def test_a_search_without_end_ends():
    series, problem = chart.load_results(smart(results=pages(5000)))
    assert (len(series.results), series.is_complete, problem) == (500, False, None)
