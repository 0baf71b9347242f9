"""Reading, and where the access token goes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRRequestError,
    FHIRStatusError,
    FHIRUnauthorizedError,
    FHIRUnavailableError,
    MalformedFHIRResponseError,
    ServerUnreachableError,
)
from django_smart.fhir import FHIRClient, FHIRExchange
from django_smart.transport import connections
from tests.fhir.servers import BASE, Grant, bundle, respond

PATIENT = {"resourceType": "Patient", "id": "p-1", "gender": "other"}
ORIGIN = "https://ehr.example.org"


def fetch(grant: Grant, path_or_url: str) -> Any:
    return json.loads(grant.client.request("GET", path_or_url).body)


@pytest.mark.compliance("FHIR-01")
def test_read_brings_the_resource_with_the_bearer_in_the_header_alone(grant):
    grant.server.on("Patient/p-1", respond(PATIENT))
    assert grant.client.read("Patient", "p-1") == PATIENT
    [request] = grant.server.requests
    assert (request.method, request.body) == ("GET", None)
    assert request.headers == {
        "Accept": "application/fhir+json",
        "Authorization": "Bearer token-1",
    }
    assert "token" not in request.url


def test_trailing_slash_of_the_base_makes_no_difference():
    grant = Grant(base_url=f"{BASE}/")
    grant.server.on("Patient/p-1", respond(PATIENT))
    assert grant.client.read("Patient", "p-1") == PATIENT


@pytest.mark.compliance("FHIR-08")
def test_type_of_any_fhir_version_is_read(grant):
    for name in ("MedicationOrder", "NutritionIntake"):
        grant.server.on(f"{name}/1", respond({"resourceType": name, "id": "1"}))
        assert grant.client.read(name, "1")["resourceType"] == name


@pytest.mark.parametrize(
    "resource_type",
    [
        "patient",
        "",
        "Patient/..",
        "../x",
        "Pat1ent",
        "P" * 65,
        "Patient?",
        "Ä",
        5,
        None,
    ],
)
def test_wrong_type_is_refused_before_a_request(grant, resource_type):
    with pytest.raises(FHIRRequestError):
        grant.client.read(resource_type, "1")
    with pytest.raises(FHIRRequestError):
        grant.client.search(resource_type)
    assert grant.server.requests == []


@pytest.mark.parametrize(
    "resource_id",
    ["", ".", "..", "../x", "a/b", "a?b", "a b", "a\n", "%2e", "x" * 65, "ä", 1, None],
)
def test_wrong_id_is_refused_before_a_request(grant, resource_id):
    with pytest.raises(FHIRRequestError):
        grant.client.read("Patient", resource_id)
    assert grant.server.requests == []


@pytest.mark.parametrize("resource_id", ["x" * 64, "a.b", "..."])
def test_odd_id_that_is_fhirs_is_read(grant, resource_id):
    resource = {"resourceType": "Patient", "id": resource_id}
    grant.server.on(f"Patient/{resource_id}", respond(resource))
    assert grant.client.read("Patient", resource_id) == resource


@pytest.mark.parametrize(
    "other",
    [
        {**PATIENT, "id": "p-2"},
        {**PATIENT, "resourceType": "Practitioner"},
        {"resourceType": "Patient"},
        {**PATIENT, "id": ["p-1"]},
        bundle(PATIENT),
    ],
)
def test_another_resource_than_was_asked_for_is_refused(grant, other):
    grant.server.on("Patient/p-1", respond(other))
    with pytest.raises(MalformedFHIRResponseError) as caught:
        grant.client.read("Patient", "p-1")
    assert "p-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", "application/fhir+json"),
        (b"{", "application/fhir+json"),
        (b"[]", "application/fhir+json"),
        (b"null", "application/fhir+json"),
        (b'"text"', "application/fhir+json"),
        (b'{"id": "p-1"}', "application/fhir+json"),
        (b'{"resourceType": 1, "id": "p-1"}', "application/fhir+json"),
        (b'{"resourceType": "Patient", "id": NaN}', "application/fhir+json"),
        (b'{"resourceType": "Pati\xff"}', "application/fhir+json"),
        (b"[" * 200_000, "application/fhir+json"),
        (b"1" * 10_000, "application/fhir+json"),
        (b"<Patient/>", "application/fhir+xml"),
        (b"<html>", "text/html"),
        (b'{"resourceType": "Patient", "id": "p-1"}', "text/plain"),
        (b'{"resourceType": "Patient", "id": "p-1"}', ""),
    ],
)
def test_answer_that_is_no_fhir_json_is_refused(grant, body, media_type):
    grant.server.on("Patient/p-1", respond(body, media_type=media_type))
    with pytest.raises(MalformedFHIRResponseError) as caught:
        grant.client.read("Patient", "p-1")
    assert (caught.value.status_code, caught.value.media_type) == (200, media_type)


@pytest.mark.parametrize(
    "media_type", ["application/json", "application/json+fhir", "Application/FHIR+JSON"]
)
def test_other_names_of_fhir_json_are_taken(grant, media_type):
    grant.server.on("Patient/p-1", respond(PATIENT, media_type=media_type))
    assert grant.client.read("Patient", "p-1") == PATIENT


def test_byte_order_mark_is_skipped(grant):
    body = b'\xef\xbb\xbf{"resourceType": "Patient", "id": "p-1"}'
    grant.server.on("Patient/p-1", respond(body))
    assert grant.client.read("Patient", "p-1")["id"] == "p-1"


@pytest.mark.parametrize("status", [204, 206, 300, 304])
def test_status_that_brings_no_resource_is_refused(grant, status):
    grant.server.on("Patient/p-1", respond(PATIENT, status))
    with pytest.raises(MalformedFHIRResponseError) as caught:
        grant.client.read("Patient", "p-1")
    assert caught.value.status_code == status


@pytest.mark.compliance("FHIR-04", "FHIR-07")
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, FHIRStatusError),
        (401, FHIRUnauthorizedError),
        (403, FHIRForbiddenError),
        (404, FHIRNotFoundError),
        (410, FHIRNotFoundError),
        (418, FHIRStatusError),
        (422, FHIRStatusError),
        (429, FHIRUnavailableError),
        (500, FHIRUnavailableError),
        (502, FHIRUnavailableError),
        (503, FHIRUnavailableError),
    ],
)
def test_refusal_has_a_class_and_the_issues_of_the_server(grant, status, error):
    issue = {"severity": "error", "code": "forbidden", "diagnostics": "p-1 is secret"}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue, "odd"]}
    grant.server.on("Patient/p-1", respond(outcome, status, retry_after="30"))
    with pytest.raises(FHIRStatusError) as caught:
        grant.client.read("Patient", "p-1")
    assert type(caught.value) is error
    assert caught.value.status_code == status
    assert caught.value.issues == [issue]
    assert caught.value.media_type == "application/fhir+json"
    assert caught.value.retry_after == 30
    text = str(caught.value)
    assert text == f"the read of Patient returned status {status} (forbidden)"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b'{"resourceType": "Patient"}',
        b'{"resourceType": "OperationOutcome"}',
        b'{"resourceType": "OperationOutcome", "issue": {"code": "x"}}',
    ],
)
def test_refusal_without_an_outcome_has_no_issues(grant, body):
    grant.server.on("Patient/p-1", respond(body, 404, media_type="text/html"))
    with pytest.raises(FHIRNotFoundError) as caught:
        grant.client.read("Patient", "p-1")
    assert (caught.value.issues, caught.value.media_type) == ([], "text/html")


# One refresh on 401


@pytest.mark.compliance("FHIR-04")
def test_expired_token_is_renewed_once_and_the_request_sent_again(grant):
    grant.server.on("Patient/p-1", respond({}, 401), respond(PATIENT))
    assert grant.client.read("Patient", "p-1") == PATIENT
    assert grant.server.bearers == ["Bearer token-1", "Bearer token-2"]
    assert grant.renewed_with == ["token-1"]


@pytest.mark.compliance("FHIR-04")
def test_second_401_is_an_error_and_no_second_refresh(grant):
    grant.server.on("Patient/p-1", respond({}, 401))
    with pytest.raises(FHIRUnauthorizedError):
        grant.client.read("Patient", "p-1")
    assert len(grant.server.requests) == 2
    assert grant.renewed_with == ["token-1"]


def test_token_that_stays_the_same_is_not_sent_again():
    grant = Grant(renew_access_token=lambda token: token)
    grant.server.on("Patient/p-1", respond({}, 401))
    with pytest.raises(FHIRUnauthorizedError):
        grant.client.read("Patient", "p-1")
    assert len(grant.server.requests) == 1


@pytest.mark.compliance("FHIR-04")
def test_403_is_no_reason_to_refresh(grant):
    grant.server.on("Patient/p-1", respond({}, 403))
    with pytest.raises(FHIRForbiddenError):
        grant.client.read("Patient", "p-1")
    assert grant.renewed_with == []


def test_failed_refresh_is_the_callers_error():
    def renew(token):
        raise ServerUnreachableError("no token endpoint")

    grant = Grant(renew_access_token=renew)
    grant.server.on("Patient/p-1", respond({}, 401))
    with pytest.raises(ServerUnreachableError):
        grant.client.read("Patient", "p-1")
    assert grant.exchanges[0].status_code == 401


# Servers that are busy


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("headers", "pause"),
    [({}, 0.5), ({"retry_after": "0"}, 0), ({"retry_after": "5"}, 5)],
)
def test_busy_server_is_asked_once_more(grant, status, headers, pause):
    busy = respond({}, status, **headers)
    grant.server.on("Patient/p-1", busy, respond(PATIENT))
    assert grant.client.read("Patient", "p-1") == PATIENT
    assert grant.pauses == [pause]


@pytest.mark.parametrize(
    "value", ["6", "3600", "-1", "Wed, 25 Nov 2026 10:00:00 GMT", ""]
)
def test_long_or_odd_retry_after_is_left_to_the_caller(grant, value):
    grant.server.on("Patient/p-1", respond({}, 503, retry_after=value))
    with pytest.raises(FHIRUnavailableError):
        grant.client.read("Patient", "p-1")
    assert (grant.pauses, len(grant.server.requests)) == ([], 1)


def test_second_try_is_within_the_limit_of_the_call():
    left = []

    def send(request):
        left.append(connections.get_time_left())
        return grant.server(request)

    grant = Grant(send=send, call_limit=8)
    grant.server.on("Patient/p-1", respond({}, 503, retry_after="5"), respond(PATIENT))
    assert grant.client.read("Patient", "p-1") == PATIENT
    # The first is limited by the transport alone.
    assert left[0] == float("inf")
    assert 0 < left[1] <= 3
    assert connections.get_time_left() == float("inf")


def test_wait_that_leaves_no_time_is_left_to_the_caller():
    grant = Grant(call_limit=5)
    grant.server.on("Patient/p-1", respond({}, 503, retry_after="5"), respond(PATIENT))
    with pytest.raises(FHIRUnavailableError):
        grant.client.read("Patient", "p-1")
    assert (grant.pauses, len(grant.server.requests)) == ([], 1)


def test_server_that_stays_busy_is_asked_twice_in_all(grant):
    grant.server.on("Patient/p-1", respond({}, 429))
    with pytest.raises(FHIRUnavailableError):
        grant.client.read("Patient", "p-1")
    assert len(grant.server.requests) == 2


def test_write_is_not_sent_again_to_a_busy_server(grant):
    grant.server.on("Patient", respond({}, 503))
    assert grant.client.request("POST", "Patient", body=b"{}").status_code == 503
    assert len(grant.server.requests) == 1


def test_no_answer_is_no_reason_to_ask_again(grant):
    with pytest.raises(ServerUnreachableError):
        grant.client.read("Patient", "gone")
    assert len(grant.server.requests) == 1


# The boundary


OUTSIDE = [
    "https://other.example.org/v/r4/sim/blob/fhir/Patient/p-1",
    "http://ehr.example.org/v/r4/sim/blob/fhir/Patient/p-1",
    "https://ehr.example.org:444/v/r4/sim/blob/fhir/Patient/p-1",
    "https://ehr.example.org@other.example.org/v/r4/sim/blob/fhir/Patient/p-1",
    "https://user@ehr.example.org/v/r4/sim/blob/fhir/Patient/p-1",
    "https://ehr.example.org.other.example/v/r4/sim/blob/fhir/Patient/p-1",
]
BELOW_ORIGIN = [
    f"{ORIGIN}/v/r4/sim/blob/fhirx/Patient/p-1",
    f"{ORIGIN}/v/r4/sim/blob/Patient/p-1",
    f"{ORIGIN}/v/r4/sim/BLOB/fhir/Patient/p-1",
    f"{ORIGIN}/",
    f"{BASE}/../auth/token",
    f"{BASE}/%2e%2e/auth/token",
    f"{BASE}/Patient/%252e%252e/%2E./x",
]


@pytest.mark.compliance("FHIR-02", "FHIR-03")
@pytest.mark.parametrize("url", [*OUTSIDE, *BELOW_ORIGIN])
def test_absolute_url_outside_of_the_base_is_refused_before_a_request(grant, url):
    with pytest.raises(BearerBoundaryError) as caught:
        fetch(grant, url)
    assert grant.server.requests == []
    assert "p-1" not in str(caught.value)
    assert grant.exchanges == []


@pytest.mark.compliance("FHIR-02")
@pytest.mark.parametrize("url", OUTSIDE)
def test_absolute_url_outside_of_the_origin_is_refused_before_a_request(url):
    grant = Grant(boundary="origin")
    with pytest.raises(BearerBoundaryError):
        fetch(grant, url)
    assert grant.server.requests == []


@pytest.mark.parametrize("url", [f"{BASE}/Patient/p-1", f"{BASE}?page=2", BASE])
def test_absolute_url_within_the_base_is_asked_with_the_bearer(grant, url):
    grant.server.on(url, respond(PATIENT))
    assert fetch(grant, url) == PATIENT
    assert grant.server.bearers == ["Bearer token-1"]


def test_url_within_the_origin_is_asked_where_the_boundary_says_so():
    grant = Grant(boundary="origin")
    grant.server.on(f"{ORIGIN}/pages?id=2", respond(PATIENT))
    assert fetch(grant, f"{ORIGIN}/pages?id=2") == PATIENT


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("Patient/p-1", f"{BASE}/Patient/p-1"),
        ("/Patient/p-1", f"{BASE}/Patient/p-1"),
        (
            "Patient/p-1/$everything?_count=5",
            f"{BASE}/Patient/p-1/$everything?_count=5",
        ),
        ("?_type=Patient", f"{BASE}?_type=Patient"),
        ("", BASE),
        ("Observation?code=http://loinc.org%7C1", None),
    ],
)
def test_path_is_taken_as_below_the_base(grant, path, url):
    assert grant.client.build_url(path) == (url or f"{BASE}/{path}")


@pytest.mark.compliance("FHIR-02")
@pytest.mark.parametrize("boundary", ["base", "origin"])
@pytest.mark.parametrize(
    "path",
    [
        "//other.example.org/Patient/p-1",
        "../auth/token",
        "Patient/../../x",
        "Patient/%2e%2e/%2e%2e/x",
        "urn:uuid:1",
        "ftp://ehr.example.org/x",
        "javascript:alert(1)",
        "Patient/p 1",
        "Patient/p-1#x",
        "Patient\\..\\x",
        "Patient/p\n1",
        "Patient/ä",
    ],
)
def test_path_that_leads_elsewhere_is_refused(boundary, path):
    grant = Grant(boundary=boundary)
    with pytest.raises(FHIRRequestError):
        fetch(grant, path)
    assert grant.server.requests == []


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["p-2", f"{BASE}/Patient/p-2#top"])
def test_redirect_within_the_boundary_is_followed(grant, status, location):
    moved = {**PATIENT, "id": "p-2"}
    grant.server.on("Patient/p-1", respond({}, status, location=location))
    grant.server.on("Patient/p-2", respond(moved))
    assert fetch(grant, "Patient/p-1") == moved
    assert grant.server.bearers == ["Bearer token-1"] * 2


@pytest.mark.compliance("FHIR-02", "FHIR-03")
@pytest.mark.parametrize(
    "location", [*OUTSIDE, *BELOW_ORIGIN, "//other.example/x", "http://[x/", "data:,x"]
)
def test_redirect_out_of_the_boundary_is_refused(grant, location):
    grant.server.on("Patient/p-1", respond({}, 302, location=location))
    with pytest.raises(BearerBoundaryError):
        grant.client.read("Patient", "p-1")
    with pytest.raises(BearerBoundaryError):
        grant.client.request("GET", "Patient/p-1")
    assert set(grant.server.urls) == {f"{BASE}/Patient/p-1"}


def test_redirects_end_after_three(grant):
    grant.server.on("Patient/p-1", respond({}, 302, location="p-1"))
    with pytest.raises(MalformedFHIRResponseError) as caught:
        grant.client.read("Patient", "p-1")
    assert caught.value.status_code == 302
    assert len(grant.server.requests) == 4


def test_redirect_without_a_location_is_no_resource(grant):
    grant.server.on("Patient/p-1", respond({}, 302))
    with pytest.raises(MalformedFHIRResponseError):
        grant.client.read("Patient", "p-1")


def test_redirect_of_a_write_is_returned(grant):
    grant.server.on("Patient", respond({}, 307, location=f"{BASE}/Patient2"))
    assert grant.client.request("POST", "Patient", body=b"{}").status_code == 307
    assert len(grant.server.requests) == 1


# Raw requests


@pytest.mark.parametrize("status", [200, 404, 422, 500])
def test_raw_request_returns_the_answer_as_it_is(grant, status):
    grant.server.on(
        "Patient?name=x", respond(b"<html>", status, media_type="text/html")
    )
    response = grant.client.request("GET", "Patient?name=x")
    assert (response.status_code, response.body) == (status, b"<html>")


def test_raw_request_takes_headers_but_no_other_authorization(grant):
    grant.server.on("Patient", respond({}, 201))
    headers = {
        "accept": "application/json",
        "authorization": "Basic x",
        "Content-Type": "application/fhir+json",
    }
    grant.client.request("POST", "Patient", headers=headers, body=b"{}")
    [request] = grant.server.requests
    assert (request.method, request.body) == ("POST", b"{}")
    assert request.headers == {
        "accept": "application/json",
        "Content-Type": "application/fhir+json",
        "Authorization": "Bearer token-1",
    }


@pytest.mark.parametrize("method", ["", "get", "GET ", "GET\r\nX: y", "G" * 17])
def test_odd_method_is_refused(grant, method):
    with pytest.raises(FHIRRequestError):
        grant.client.request(method, "Patient")


# What is told of it


def test_each_request_is_told_of_without_ids_or_queries(grant):
    grant.server.on("Patient/p-1", respond({}, 401), respond(PATIENT))
    grant.server.on("Observation?patient=p-1", respond(bundle()))
    grant.server.on("metadata", respond(PATIENT))
    grant.server.on("Patient/p-1/$everything", respond(bundle()))
    grant.client.read("Patient", "p-1")
    list(grant.client.search("Observation", patient="p-1"))
    fetch(grant, "metadata")
    grant.client.request("GET", "Patient/p-1/$everything")
    assert [
        (told.interaction, told.resource_type, told.status_code)
        for told in grant.exchanges
    ] == [
        ("read", "Patient", 200),
        ("search", "Observation", 200),
        ("get", "", 200),
        ("get", "Patient", 200),
    ]
    assert all(0 <= told.duration < 5 for told in grant.exchanges)
    assert "p-1" not in repr(grant.exchanges)


def test_request_without_an_answer_is_told_of(grant):
    with pytest.raises(ServerUnreachableError):
        grant.client.read("Patient", "gone")
    [told] = grant.exchanges
    assert isinstance(told, FHIRExchange)
    assert (told.interaction, told.status_code) == ("read", None)


def test_type_is_not_guessed_outside_of_the_base():
    grant = Grant(boundary="origin")
    grant.server.on(f"{ORIGIN}/Pages/1", respond(PATIENT))
    fetch(grant, f"{ORIGIN}/Pages/1")
    assert grant.exchanges[0].resource_type == ""


def test_nobody_needs_to_be_told():
    grant = Grant(on_request=None)
    grant.server.on("Patient/p-1", respond(PATIENT))
    assert grant.client.read("Patient", "p-1") == PATIENT


def test_repr_shows_the_origin_alone(grant):
    grant = Grant(patient_id="p-1")
    assert repr(grant.client) == "<FHIRClient: https://ehr.example.org>"
    assert repr(grant.client.session) == f"<FHIRSession of {grant.client!r}>"
    grant.server.on("Observation?patient=p-1", respond(bundle()))
    result = grant.client.search("Observation", patient="p-1")
    assert repr(result) == "<SearchResult: Observation>"
    assert isinstance(grant.client, FHIRClient)
    assert grant.client.patient_id == "p-1"
