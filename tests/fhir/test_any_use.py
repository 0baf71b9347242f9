"""Any answer, with any headers, to whatever a client does: a value or a typed error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from django_smart.contrib.app_state import AppStateClient
from django_smart.exceptions import SMARTError
from django_smart.fhir import FHIRClient
from django_smart.fhir.messages import resolve_url
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.urls import is_within_base
from django_smart.transport import ResponseStream
from tests.fhir.servers import BASE, FHIR_JSON, Carrier, Tokens

_NEW = {"resourceType": "Observation", "status": "final"}
_WORDS = [
    "Bundle",
    "batch-response",
    "searchset",
    "Patient",
    "1",
    "200 OK",
    f"{BASE}/x",
]
_NAMES = (
    *("resourceType", "type", "id", "entry", "response", "status", "location", "etag"),
    *("outcome", "issue", "resource", "output", "error", "url", "transactionTime"),
    *("count", "link", "relation", "extension", "valueString", "identifier", "meta"),
    *("name", "given", "family", "contained", "code", "subject", "content", "data"),
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(_WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4)
    ),
    max_leaves=12,
)
_RESOURCES = st.dictionaries(
    st.sampled_from(["resourceType", "type", "id", "total", "entry", "link", "issue"]),
    _JSON | st.sampled_from(["Bundle", "searchset", "Patient", "OperationOutcome"]),
)
_BUNDLES = _RESOURCES.map(
    lambda members: {**members, "resourceType": "Bundle", "type": "searchset"}
)
_FAILURE = {"resourceType": "OperationOutcome", "issue": [{"severity": []}]}
_FAILED = {
    "resourceType": "Bundle",
    "type": "searchset",
    "entry": [{"resource": _FAILURE, "search": {"mode": "outcome"}}],
}
_HEADER = st.text(max_size=12) | st.sampled_from(
    [
        f"{BASE}/Observation/1/_history/2",
        "https://[::1",
        "//elsewhere",
        'W/"3"',
        "9" * 400,
        "Wed, 21 Oct 2099 07:28:00",
        "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
        "application/fhir+ndjson",
    ]
)
_HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("content-location", "content-type", "etag", "last-modified", "location"),
            *("retry-after", "x-progress", "x-request-id"),
        ]
    ),
    _HEADER,
)
_STATUSES = st.sampled_from(
    [200, 201, 202, 204, 206, 302, 304, 400, 401, 404, 409, 412, 422, 429, 500, 503]
)


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _batch(fhir: FHIRClient) -> None:
    batch = fhir.batch()
    batch.read("Patient", "1")
    batch.create(_NEW)
    for answer in batch.send():
        answer.get()


def _transaction(fhir: FHIRClient) -> None:
    transaction = fhir.transaction()
    transaction.update({**_NEW, "id": "1"})
    transaction.send()


def _go_on(fhir: FHIRClient) -> None:
    export = fhir.resume_export({"status_url": f"{BASE}/status"})
    if export.poll() is None:
        list(export)


def _keep_app_state(fhir: FHIRClient) -> None:
    AppStateClient(
        fhir, fhir_base_url=BASE, system="https://app.example.org", max_size=10_000
    ).search("settings", subject="Patient/1")


def _read(fhir: FHIRClient) -> None:
    read = fhir.read("Patient", "1")
    assert (read["resourceType"], read["id"]) == ("Patient", "1")


def _search(fhir: FHIRClient) -> None:
    result = fhir.search("Observation", _count=2, limit=5)
    assert isinstance(result.total, int)
    assert isinstance(result.outcomes, list)


_USES: tuple[Callable[[FHIRClient], object], ...] = (
    _keep_app_state,
    _batch,
    lambda fhir: fhir.capabilities(),
    lambda fhir: fhir.create(_NEW),
    lambda fhir: fhir.delete("Observation", "1"),
    lambda fhir: fhir.export(types=["Observation"]),
    _go_on,
    lambda fhir: list(fhir.history("Patient", "1")),
    lambda fhir: fhir.operation("everything", "Patient", "1"),
    lambda fhir: fhir.resolve({"reference": "Patient/1"}),
    _read,
    _search,
    lambda fhir: list(fhir.iterate("Observation")),
    _transaction,
    lambda fhir: fhir.update({**_NEW, "id": "1"}),
    lambda fhir: fhir.vread("Patient", "1", "2"),
)


def _connect(answer: HTTPResponse) -> FHIRClient:
    """A client of a server that gives this one answer, up to a limit."""
    left = [30]

    def send(request: HTTPRequest) -> HTTPResponse:
        left[0] -= 1
        assert left[0] >= 0, "a client that goes on for ever"
        return replace(answer, url=request.url)

    @contextmanager
    def open_stream(request: HTTPRequest) -> Any:
        send(request)
        yield ResponseStream(head=replace(answer, body=b""), chunks=iter([answer.body]))

    return FHIRClient(
        base_url=BASE,
        tokens=Tokens(),
        transport=Carrier(send, open_stream),
        sleep=lambda seconds: None,
    )


def _use(body: bytes, status: int, headers: dict[str, str]) -> None:
    answer = HTTPResponse(
        status_code=status, headers={"content-type": FHIR_JSON, **headers}, body=body
    )
    for use in _USES:
        with contextlib.suppress(SMARTError):
            use(_connect(answer))


@given(st.binary(max_size=60) | _JSON.map(_dump), _STATUSES, _HEADERS)
@example(b"{}", 202, {"retry-after": "Wed, 21 Oct 2099 07:28:00"})
@example(b"{}", 202, {"retry-after": "9" * 400})
@example(b"{}", 201, {"location": "https://[::1"})
def test_any_answer_is_a_value_or_a_typed_error(body, status, headers):
    _use(body, status, headers)


@given(_RESOURCES | _BUNDLES, _STATUSES, _HEADERS)
@example({"resourceType": ""}, 200, {})
@example(_FAILED, 200, {})
def test_any_resource_is_a_value_or_a_typed_error(value, status, headers):
    _use(_dump(value), status, headers)


@given(st.text("htps:/@.?#%\\ \t\nexampl2fF", max_size=30))
def test_any_reference_is_resolved_to_one_line_or_to_nothing(reference):
    url = resolve_url(f"{BASE}/Patient", reference)
    assert "#" not in url
    if is_within_base(url, BASE):
        assert url.startswith(BASE)
