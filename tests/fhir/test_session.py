"""The session for other libraries keeps the access token where it belongs."""

from __future__ import annotations

import io

import pytest
import requests

from django_smart.exceptions import (
    BearerBoundaryError,
    InsecureURLError,
    ReauthorizationRequiredError,
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from tests.fhir.servers import BASE, FHIR_JSON, Grant, respond

ELSEWHERE = "https://terminology.example.org/fhir/ValueSet"


@pytest.fixture
def session(grant):
    with grant.client.session as session:
        yield session


@pytest.mark.compliance("FHIR-01")
def test_session_adds_the_bearer_below_itself(grant, session):
    grant.server.on("Patient/1", respond({"a": 1}, content_encoding="gzip"))
    response = session.get(f"{BASE}/Patient/1")
    assert response.json() == {"a": 1}
    assert response.ok
    assert response.reason == "OK"
    assert response.encoding == "utf-8"
    assert response.headers == {
        "Content-Type": f"{FHIR_JSON}; charset=utf-8",
        "X-Request-Id": grant.server.request_ids[0],
    }
    [request] = grant.server.requests
    assert request.headers["Authorization"] == "Bearer token-1"
    assert request.headers["Accept"] == FHIR_JSON
    assert "User-Agent" not in request.headers
    assert "Authorization" not in response.request.headers
    assert grant.client.session is session


@pytest.mark.compliance("FHIR-04")
def test_session_refreshes_once_on_401(grant, session):
    grant.server.on("Patient/1", respond({}, 401), respond({"a": 1}))
    assert session.get(f"{BASE}/Patient/1").json() == {"a": 1}
    grant.server.on("Patient/1", respond({}, 401))
    assert session.get(f"{BASE}/Patient/1").status_code == 401
    assert grant.renewed_with == ["token-1", "token-2"]


@pytest.mark.compliance("FHIR-02")
def test_other_places_get_no_authorization_at_all(
    grant, session, tmp_path, monkeypatch
):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    grant.server.on(ELSEWHERE, respond({}))
    session.headers["Authorization"] = "Bearer mine"
    session.get(ELSEWHERE)
    session.get(ELSEWHERE, auth=("user", "password"))
    session.get(ELSEWHERE, headers={"authorization": "Bearer mine"})
    assert grant.server.bearers == [None] * 3
    assert all("authorization" not in r.headers for r in grant.server.requests)
    assert grant.exchanges == []


def test_own_authorization_is_replaced_within_the_boundary(grant, session):
    grant.server.on("Patient/1", respond({}))
    session.get(f"{BASE}/Patient/1", headers={"authorization": "Bearer mine"})
    [request] = grant.server.requests
    assert request.headers["Authorization"] == "Bearer token-1"
    assert "authorization" not in request.headers


@pytest.mark.compliance("FHIR-02", "FHIR-03")
@pytest.mark.parametrize(
    "location",
    [ELSEWHERE, "http://ehr.example.org/v/r4/sim/blob/fhir/x", "/elsewhere", "//x.y/"],
)
def test_redirect_out_of_the_boundary_is_refused(grant, session, location):
    grant.server.on("Patient/1", respond({}, 302, location=location))
    with pytest.raises(BearerBoundaryError):
        session.get(f"{BASE}/Patient/1")
    assert len(grant.server.requests) == 1


def test_redirect_within_the_boundary_is_followed_with_the_bearer(grant, session):
    grant.server.on("Patient/1", respond({}, 302, location=f"{BASE}/Patient/2"))
    grant.server.on("Patient/2", respond({"a": 2}))
    assert session.get(f"{BASE}/Patient/1").json() == {"a": 2}
    assert grant.server.bearers == ["Bearer token-1"] * 2


def test_redirect_from_elsewhere_to_elsewhere_is_followed_without_it(grant, session):
    other = f"{ELSEWHERE}/2"
    grant.server.on(ELSEWHERE, respond({}, 302, location=other))
    grant.server.on(other, respond({"a": 2}))
    assert session.get(ELSEWHERE).json() == {"a": 2}
    assert grant.server.bearers == [None, None]


def pieces():
    yield b"{"
    yield "}"


@pytest.mark.parametrize(
    "data", [b"{}", "{}", io.BytesIO(b"{}"), io.StringIO("{}"), pieces()]
)
def test_body_of_any_kind_is_sent_and_sent_again(grant, session, data):
    grant.server.on("Patient", respond({}, 401), respond({}, 201))
    assert session.post(f"{BASE}/Patient", data=data).status_code == 201
    assert [request.body for request in grant.server.requests] == [b"{}", b"{}"]
    for request in grant.server.requests:
        names = {name.lower() for name in request.headers}
        assert not names & {"content-length", "transfer-encoding"}


def test_body_of_another_kind_is_refused(grant, session):
    request = session.prepare_request(requests.Request("POST", f"{BASE}/Patient"))
    request.body = 5
    with pytest.raises(TypeError):
        session.send(request)
    assert grant.server.requests == []


def test_headers_in_bytes_are_text(grant, session):
    grant.server.on("Patient", respond({}))
    session.get(f"{BASE}/Patient", headers={"X-Name": b"caf\xe9"})
    assert grant.server.requests[0].headers["X-Name"] == "café"


def test_streamed_answer_is_read_piece_by_piece(grant, session):
    grant.server.on("Binary/1", respond(b"abcdef", media_type="text/plain"))
    with session.get(f"{BASE}/Binary/1", stream=True) as response:
        assert list(response.iter_content(4)) == [b"abcd", b"ef"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerUnreachableError, requests.ConnectionError),
        (ServerTimeoutError, requests.Timeout),
        (ResponseTooLargeError, requests.ConnectionError),
        (InsecureURLError, requests.exceptions.InvalidURL),
    ],
)
def test_libraries_meet_the_errors_they_know(error, expected):
    def send(request):
        raise error("what happened")

    expectation = pytest.raises(expected, match="what happened")
    with Grant(send=send).client.session as session, expectation as caught:
        session.get(f"{BASE}/Patient/1")
    assert isinstance(caught.value.__cause__, error)


def test_lost_grant_stays_our_own_error():
    def renew(token):
        raise ReauthorizationRequiredError("the grant has ended")

    grant = Grant(renew_access_token=renew)
    grant.server.on("Patient/1", respond({}, 401))
    with grant.client.session as session, pytest.raises(ReauthorizationRequiredError):
        session.get(f"{BASE}/Patient/1")


def test_use_of_the_session_is_told_of(grant, session):
    grant.server.on("Patient/1?x=y", respond({}))
    session.get(f"{BASE}/Patient/1", params={"x": "y"})
    [told] = grant.exchanges
    assert (told.interaction, told.resource_type) == ("get", "Patient")
