"""``/fhir/``: what is passed on, and what is not."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from django.test import RequestFactory

from django_smart.exceptions import (
    BearerBoundaryError,
    NoLaunchError,
    ReauthorizationRequiredError,
    RefreshBusyError,
    ServerTimeoutError,
    ServerUnreachableError,
    TokenResponseError,
    TokenServerError,
)
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from example_project.passthrough import fhir

PATIENT = {"resourceType": "Patient", "id": "p1"}
FOUND = {"resourceType": "Bundle", "type": "searchset"}
OTHER = {"resourceType": "Patient", "id": "p2"}


class Launch:
    """A launch whose FHIR server gives one prepared answer."""

    def __init__(self, answer, *, scope="patient/*.rs", patient_id="p1"):
        self.answer = answer
        self.scopes = ScopeSet.parse(scope)
        self.patient_id = patient_id
        self.asked: list[tuple[str, str]] = []
        self.fhir = SimpleNamespace(request=self._request, base_url="https://e.org/f")

    def _request(self, method, path, *, headers, body):
        assert (headers, body) == ({}, None)
        self.asked.append((method, path))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def json_answer(content, status=200, media_type="application/fhir+json"):
    return HTTPResponse(
        status_code=status,
        headers={"content-type": f"{media_type}; charset=utf-8"},
        body=json.dumps(content).encode(),
    )


def ask(launch, path, *, query="", method="GET"):
    request: Any = RequestFactory().generic(method, f"/fhir/{path}{query}")
    request.smart = launch
    response = fhir(request, path)
    assert response.headers["Content-Type"] == "application/fhir+json"
    assert response.headers["Cache-Control"] == "private, no-store"
    return response


def test_a_read_is_passed_on_byte_for_byte():
    answer = HTTPResponse(
        status_code=200,
        headers={"content-type": "application/fhir+json"},
        body=b'{"resourceType" : "Patient", "id": "p1", "x": 1.10}',
    )
    launch = Launch(answer)
    response = ask(launch, "Patient/p1")
    assert (response.status_code, response.content) == (200, answer.body)
    assert launch.asked == [("GET", "Patient/p1")]


def test_a_search_keeps_its_parameters_in_order():
    launch = Launch(json_answer(FOUND))
    query = "?code=4548-4&_sort%3Adesc=date&_count=10&patient=p1&flag="
    assert ask(launch, "Observation", query=query).status_code == 200
    assert launch.asked == [("GET", f"Observation{query}")]


def test_odd_characters_of_a_query_are_written_again():
    launch = Launch(json_answer(FOUND))
    ask(launch, "Patient", query="?name=a+b%2F..%2F%3F%23&x=\\%zz")
    sent = "Patient?name=a%20b%2F..%2F%3F%23&x=%5C%25zz&_id=p1"
    assert launch.asked == [("GET", sent)]


def test_a_search_may_have_no_parameters():
    launch = Launch(json_answer(FOUND))
    assert ask(launch, "Practitioner").status_code == 200
    assert launch.asked == [("GET", "Practitioner")]


def test_too_many_parameters_are_refused():
    launch = Launch(None)
    assert ask(launch, "Patient", query="?" + "a=1&" * 101).status_code == 400
    assert launch.asked == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(method):
    launch = Launch(None)
    response = ask(launch, "Patient/p1", method=method)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert launch.asked == []


@pytest.mark.parametrize(
    "path",
    [
        "patient/p1",
        "Patient/..",
        "Patient/a b",
        "Patient/p1/_history/1/2",
        "Patient/" + "x" * 65,
        "$ex port",
        "https://elsewhere.example.net/Patient/p1",
        "//elsewhere.example.net/Patient",
        "Patient\n",
        "Pati\u0435nt/p1",
    ],
)
def test_what_is_not_a_type_and_an_id_is_refused_before_a_request(path):
    launch = Launch(None)
    response = ask(launch, path)
    assert response.status_code == 400
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"
    assert launch.asked == []


@pytest.mark.parametrize("path", ["$export", "Patient/p1/$purge"])
def test_operations_that_are_not_listed_are_refused_before_a_request(path):
    launch = Launch(None)
    assert ask(launch, path).status_code == 403
    assert launch.asked == []


def test_without_a_launch_the_answer_is_403():
    response = ask(None, "Patient/p1")
    assert response.status_code == 403
    assert "no_launch" in json.loads(response.content)["issue"][0]["diagnostics"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 429])
def test_refusals_of_the_server_are_passed_on(status):
    outcome = {"resourceType": "OperationOutcome", "issue": []}
    response = ask(Launch(json_answer(outcome, status)), "Patient/p1")
    assert response.status_code == status
    assert json.loads(response.content) == outcome


def test_a_refusal_that_is_a_page_becomes_an_outcome():
    answer = HTTPResponse(
        status_code=404, headers={"content-type": "text/html"}, body=b"<script>"
    )
    response = ask(Launch(answer), "Patient/p1")
    assert response.status_code == 404
    assert b"<script>" not in response.content
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"


def test_retry_after_is_passed_on():
    answer = HTTPResponse(status_code=429, headers={"retry-after": "120"})
    assert ask(Launch(answer), "Patient").headers["Retry-After"] == "120"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (500, 502),
        (501, 502),
        (502, 502),
        (503, 503),
        (504, 504),
        (302, 502),
        (204, 502),
    ],
)
def test_faults_of_the_server_are_told_as_such(status, expected):
    answer = HTTPResponse(status_code=status)
    assert ask(Launch(answer), "Patient/p1").status_code == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerUnreachableError("x"), 503),
        (ServerTimeoutError("x"), 504),
        (BearerBoundaryError("x"), 502),
        (RefreshBusyError("x"), 503),
        (ReauthorizationRequiredError("x"), 403),
        (TokenServerError("x", status_code=500), 503),
        (TokenResponseError("x", error="invalid_client"), 502),
        (NoLaunchError("x"), 403),
    ],
)
def test_errors_of_the_package_become_outcomes(error, expected):
    response = ask(Launch(error), "Patient/p1")
    assert response.status_code == expected
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize(
    "answer",
    [
        json_answer(OTHER),
        json_answer({"resourceType": "Observation", "id": "p1"}),
        json_answer([PATIENT]),
        json_answer(PATIENT, media_type="text/html"),
        HTTPResponse(
            status_code=200,
            headers={"content-type": "application/fhir+json"},
            body=b'{"resourceType": "Patient"',
        ),
    ],
)
def test_an_answer_that_is_not_the_resource_is_a_bad_gateway(answer):
    assert ask(Launch(answer), "Patient/p1").status_code == 502


def test_an_answer_that_is_no_json_is_told_in_words():
    answer = HTTPResponse(
        status_code=200,
        headers={"content-type": "application/fhir+json"},
        body=b"{",
    )
    (issue,) = json.loads(ask(Launch(answer), "Patient/p1").content)["issue"]
    assert issue["diagnostics"].startswith("fhir_response_malformed: ")


def test_a_search_that_gives_no_bundle_is_a_bad_gateway():
    assert ask(Launch(json_answer(PATIENT)), "Patient").status_code == 502


def observation(**elements):
    return {"resourceType": "Observation", "id": "o1", **elements}


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (OTHER, 403),
        (PATIENT, 200),
        (observation(subject={"reference": "Patient/p2"}), 403),
        (observation(subject={"reference": "https://e.org/f/Patient/p2"}), 403),
        (observation(subject={"reference": "Patient/p2/_history/1"}), 403),
        (observation(subject={"reference": "Patient/p1"}), 200),
        (observation(subject={"reference": "https://e.org/f/Patient/p1"}), 200),
        (observation(subject={"reference": "https://x.org/f/Patient/p1"}), 403),
        (observation(subject={"reference": "Group/g1"}), 403),
        (observation(subject={"display": "somebody"}), 403),
        (observation(subject="somebody"), 403),
        (
            {
                "resourceType": "Coverage",
                "id": "c",
                "beneficiary": {"reference": "Patient/p2"},
            },
            403,
        ),
        ({"resourceType": "Practitioner", "id": "d1"}, 200),
    ],
)
def test_patient_scopes_never_show_another_patient(resource, expected):
    path = f"{resource['resourceType']}/{resource['id']}"
    response = ask(Launch(json_answer(resource)), path)
    assert response.status_code == expected
    assert (b"p2" in response.content) is False


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("patient/*.rs", 403),
        ("patient/*.rs user/Observation.rs", 403),
        ("patient/*.rs user/Patient.s", 403),
        ("launch openid", 403),
        ("patient/*.rs user/Patient.r", 200),
        ("user/*.read", 200),
    ],
)
def test_with_user_scopes_the_server_decides(scope, expected):
    launch = Launch(json_answer(OTHER), scope=scope)
    assert ask(launch, "Patient/p2").status_code == expected


@pytest.mark.parametrize(
    ("scope", "expected"), [("user/*.r", 200), ("patient/*.r", 403)]
)
def test_without_a_patient_in_context_user_scopes_decide(scope, expected):
    launch = Launch(json_answer(OTHER), scope=scope, patient_id=None)
    assert ask(launch, "Patient/p2").status_code == expected
