"""What operations return, alone or in ``Parameters``."""

from __future__ import annotations

from typing import Any

import pytest

from django_smart.exceptions import MalformedFHIRResponseError
from django_smart.fhir import get_output, get_outputs
from tests.fhir.servers import respond

VALUE_SET = {"resourceType": "ValueSet", "id": "v"}


def parameters(*items: Any) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": list(items)}


def test_only_resource_is_found_in_both_forms():
    wrapped = parameters({"name": "return", "resource": VALUE_SET})
    assert get_output(VALUE_SET) == get_output(wrapped) == VALUE_SET
    assert get_output(VALUE_SET, "result") is None


def test_values_are_found_by_their_names():
    part = {"name": "value", "valueCode": "x"}
    answer = parameters(
        {"name": "result", "valueBoolean": False},
        {"name": "match", "part": [part]},
        {"name": "match", "part": []},
        {"name": "message"},
        "odd",
    )
    assert get_output(answer, "result") is False
    first, second = get_outputs(answer, "match")
    assert get_output(first, "value") == "x"
    assert get_outputs(second, "value") == []
    assert get_output(answer, "message") is None
    assert get_output({"resourceType": "Parameters", "parameter": {}}) is None


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_outcome_with_an_error_is_no_result(grant, severity):
    issue = {"severity": severity, "code": "too-costly"}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    for name in ("lastn", "validate"):
        grant.server.on(f"Observation/${name}", respond(outcome))
    if severity == "error":
        with pytest.raises(MalformedFHIRResponseError) as caught:
            grant.client.operation("lastn", "Observation")
        assert caught.value.issues == [issue]
    else:
        assert grant.client.operation("lastn", "Observation") == outcome
    # Its result says whether the resource is valid.
    assert grant.client.operation("$validate", "Observation") == outcome
