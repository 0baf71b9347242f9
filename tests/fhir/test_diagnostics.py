"""What the EHR said in the text of an error: nothing that may name a person."""

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
    ("members", "said"),
    [
        ({}, " (invalid)"),
        (
            {"expression": ["Jones", "Observation.value[x]"]},
            " (invalid at Observation.value[x])",
        ),
        ({"expression": ["a.b = 'Jones'"]}, " (invalid)"),
        ({"code": 5, "diagnostics": None, "details": "x", "expression": "y"}, ""),
        ({"code": "Jones", "diagnostics": 5}, ""),
    ],
)
def test_error_names_the_code_and_the_place_and_no_text(grant, members, said):
    text = refuse(grant, outcome("Jones is unknown", **members))
    assert text.endswith(f"returned status 400{said}")


@pytest.mark.parametrize("kind", ["read", "page", "later page", "write", "batch"])
def test_outcome_that_comes_with_200_is_in_the_error(grant, kind):
    said = outcome("no status of Jones")
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
        assert "(invalid)" in str(error)
