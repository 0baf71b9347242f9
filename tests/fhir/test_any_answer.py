"""Any bytes and any JSON from a FHIR API: a resource or a typed error."""

from __future__ import annotations

import contextlib
import json

from hypothesis import example, given
from hypothesis import strategies as st

from django_smart.exceptions import FHIRError
from django_smart.fhir.messages import (
    process_bundle_response,
    process_read_response,
    process_resource_response,
    resolve_url,
)
from django_smart.fhir.search import SearchStream
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.urls import is_within_base

BASE_URL = "https://ehr.example.org/fhir"
_TEXT = st.text(max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["resource", "relation", "url", "search", "mode", "id", "severity"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)
_NAMES = ["resourceType", "type", "id", "total", "entry", "link", "issue"]
_RESOURCES = st.dictionaries(
    st.sampled_from(_NAMES),
    _JSON | st.sampled_from(["Bundle", "searchset", "Patient", "OperationOutcome"]),
)
_FAILURE = {"resourceType": "OperationOutcome", "issue": [{"severity": []}]}
_STATUSES = st.sampled_from([200, 201, 204, 302, 400, 401, 404, 410, 429, 500, 503])


def _answer(body: bytes, status: int) -> HTTPResponse:
    return HTTPResponse(
        status_code=status,
        headers={"content-type": "application/fhir+json"},
        body=body,
    )


@given(st.binary(max_size=60), _STATUSES)
def test_any_bytes_give_a_typed_error(body, status):
    answer = _answer(body, status)
    with contextlib.suppress(FHIRError):
        process_read_response(answer, resource_type="Patient", id="1")
    with contextlib.suppress(FHIRError):
        process_bundle_response(answer, type="searchset", what="test")


@example({"resourceType": ""}, 200)
@given(_RESOURCES | _JSON, _STATUSES)
def test_any_json_gives_what_was_asked_for_or_a_typed_error(value, status):
    answer = _answer(json.dumps(value).encode(), status)
    with contextlib.suppress(FHIRError):
        assert process_resource_response(answer, what="test")["resourceType"] != ""
    with contextlib.suppress(FHIRError):
        read = process_read_response(answer, resource_type="Patient", id="1")
        assert (read["resourceType"], read["id"]) == ("Patient", "1")


@example({"entry": [{"resource": _FAILURE, "search": {"mode": "outcome"}}]})
@given(_RESOURCES)
def test_any_bundle_ends(members):
    bundle = {**members, "resourceType": "Bundle", "type": "searchset"}

    def fetch(url: str) -> dict[str, object]:
        # The same page for ever: a link to anywhere is followed once.
        answer = _answer(json.dumps(bundle).encode(), 200)
        return process_bundle_response(answer, type="searchset", what="test")

    stream: SearchStream[object] = SearchStream(
        fetch, url=f"{BASE_URL}/Patient", resource_type="Patient"
    )
    with contextlib.suppress(FHIRError):
        for resource in stream:
            assert isinstance(resource, dict)
    with contextlib.suppress(FHIRError):
        result = stream.load(limit=5)
        assert isinstance(result.total, int)
        assert isinstance(result.outcomes, list)


@given(st.text("htps:/@.?#%\\ \t\nexampl2fF", max_size=30))
def test_any_reference_is_resolved_to_one_line_or_to_nothing(reference):
    url = resolve_url(f"{BASE_URL}/Patient", reference)
    assert "#" not in url
    if is_within_base(url, BASE_URL):
        assert url.startswith(BASE_URL)
