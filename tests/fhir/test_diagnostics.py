"""The EHR's own words in the text of an error, unless they may name a person."""

from __future__ import annotations

import pytest

from django_smart.exceptions import FHIRStatusError, MalformedFHIRResponseError
from tests.fhir.servers import BASE, bundle, respond


def outcome(text: str, **members: object) -> dict[str, object]:
    issue = {"severity": "error", "code": "invalid", "diagnostics": text, **members}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def refuse(grant, answer) -> str:
    query = "Observation?patient=p-1&name=smith&foo=x"
    grant.server.on(query, respond(answer, 400))
    with pytest.raises(FHIRStatusError) as caught:
        grant.client.search("Observation", patient="p-1", name="smith", foo="x")
    assert caught.value.issues == answer.get("issue", [])
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "Unknown search parameter 'foo' for resource type Observation",
        "The request needs a patient.",
        "Insufficient scope",
        "at least one of patient, name is required",
    ],
)
def test_text_of_the_ehr_is_in_the_error(grant, text):
    assert f"400 (invalid: {text})" in refuse(grant, outcome(text))


@pytest.mark.parametrize(
    "text",
    [
        *("Patient Jones is unknown", "JONES", "no access to p-1", "record 1234"),
        *("nobody is called smith", "Unknown value 'jones'", "Smith, unknown"),
        *(
            "mail a@example.org",
            "born 1957-08-03",
            "see /Patient/x",
            "Zoë",
            "",
            "x" * 301,
        ),
    ],
)
def test_text_that_may_name_somebody_is_left_out(grant, text):
    shown = refuse(grant, outcome(text))
    assert shown.endswith("returned status 400 (invalid)")


def test_text_of_the_details_and_the_place_are_told(grant):
    answer = outcome(
        "Jones", details={"text": "no status"}, expression=["Observation.value[x]"]
    )
    assert "(invalid: no status at Observation.value[x])" in refuse(grant, answer)


@pytest.mark.parametrize(
    "members",
    [
        {"code": 5, "diagnostics": None, "details": "x", "expression": "y"},
        {"code": "jones", "diagnostics": 5, "expression": ["Jones", "a.b = 'Jones'"]},
    ],
)
def test_odd_issue_adds_nothing(grant, members):
    assert refuse(grant, outcome("x", **members)).endswith("returned status 400")


@pytest.mark.parametrize("kind", ["read", "page", "later page", "write", "batch"])
def test_outcome_that_comes_with_200_is_in_the_error(grant, kind):
    said = outcome("no status of Jones", details={"text": "no status"})
    grant.server.on("Observation/o-1", respond(said))
    grant.server.on("Observation", respond(said if kind == "page" else bundle(said)))
    response = {"status": "200", "outcome": said}
    batch = {"type": "batch-response", "entry": [{"response": response}]}
    grant.server.on(BASE, respond({**bundle(), **batch}))
    resource = {"resourceType": "Observation", "id": "o-1"}
    error: Exception | None = None
    try:
        if kind == "read":
            grant.client.read("Observation", "o-1")
        elif kind == "write":
            grant.client.update(resource)
        elif kind == "batch":
            collected = grant.client.batch()
            collected.update(resource)
            [answer] = collected.send()
            error = answer.error
        else:
            list(grant.client.iterate("Observation"))
    except MalformedFHIRResponseError as exc:
        error = exc
    assert isinstance(error, MalformedFHIRResponseError)
    assert error.issues == said["issue"]
    assert "Jones" not in str(error)
    if kind in {"read", "page", "write"}:
        assert "(invalid: no status)" in str(error)
