"""``FHIRProxyView``: what goes on to the server, and what comes back to the script."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.exceptions import DisallowedHost
from django.middleware.csrf import get_token
from django.test import RequestFactory

from django_smart.exceptions import (
    BearerBoundaryError,
    CredentialsError,
    GrantError,
    ReauthorizationRequiredError,
    ServerTimeoutError,
    ServerUnreachableError,
    TokenResponseError,
    TokenServerError,
)
from django_smart.launches.request_state import get_request_state
from django_smart.protocol.scopes import ScopeSet
from django_smart.views import FHIRProxyView
from tests.fhir.servers import BASE, TOKEN, Grant, bundle, respond

PROXY = "https://app.example.org/~key/fhir/"
PATIENT = {"resourceType": "Patient", "id": "p1"}
OBSERVATION = {
    "resourceType": "Observation",
    "id": "o1",
    "subject": {"reference": "Patient/p1"},
}
# A search that names no patient is sent with that of the launch.
SEARCH = "Observation?patient=p1"
JSON_PATCH = "application/json-patch+json"
WRITES = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ALL: dict[str, Any] = {"methods": WRITES, "batch": True}


class Proxy:
    """The view, a launch for it, and a FHIR server behind it."""

    def __init__(self, *, boundary: str = "base", **attributes: Any) -> None:
        self.grant = Grant(boundary=boundary)
        self.server = self.grant.server
        self.view = FHIRProxyView.as_view(**attributes)
        self.key = "key"
        self.smart: Any = SimpleNamespace(
            fhir=self.grant.client,
            patient_id="p1",
            scopes=ScopeSet.parse("patient/*.cruds"),
            launch=SimpleNamespace(key="launch-1"),
        )

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        has_token: bool = True,
        content_type: str = "application/fhir+json",
        **headers: str,
    ) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request: Any = RequestFactory(enforce_csrf_checks=True).generic(
            method,
            f"/~key/fhir/{path}",
            b"" if body is None else data,
            content_type,
            secure=True,
            headers={
                "Host": "app.example.org",
                "Referer": "https://app.example.org/",
                **{name.replace("_", "-"): text for name, text in headers.items()},
            },
        )
        request._dont_enforce_csrf_checks = False
        if has_token:
            token = get_token(request)
            request.COOKIES["csrftoken"] = request.META["CSRF_COOKIE"]
            request.META["HTTP_X_CSRFTOKEN"] = token
        request.smart = self.smart
        state: Any = get_request_state(request)
        state.context = self.smart
        state.prefix = SimpleNamespace(key=self.key) if self.key else None
        response = self.view(request, path=path.partition("?")[0])
        assert response.headers["Cache-Control"] == "private, no-store"
        assert "sandbox" in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        return response


@pytest.fixture(autouse=True)
def _host(settings):
    settings.ALLOWED_HOSTS = ["app.example.org", "testserver"]


MALFORMED = "fhir_response_malformed"

# Where it answers


def test_answers_under_the_launchs_prefix_alone(settings):
    proxy = Proxy()
    proxy.server.on("Patient/p1", respond(PATIENT))
    assert proxy("GET", "Patient/p1").status_code == 200
    proxy.key = None  # type: ignore[assignment]
    assert proxy("GET", "Patient/p1").status_code == 403
    settings.SMART_LAUNCH_PREFIX = ""  # a site that turned prefixes off
    assert proxy("GET", "Patient/p1").status_code == 200
    proxy.smart = None
    response = proxy("GET", "Patient/p1")
    assert response.status_code == 403
    assert b"no_launch" in response.content
    assert len(proxy.server.requests) == 2


@pytest.mark.parametrize(
    "path",
    [
        *("patient/p1", "Patient/..", "Patient/a b", "Patient/p1/_history/1/2"),
        *("Patient/p1/A/B/C", "Patient/1/2"),
        *("Patient/" + "x" * 65, "$ex port", "Patient\n", "Pati\u0435nt/p1"),
        *("https://elsewhere.example.net/Patient/p1", "//elsewhere.example.net/x"),
        "Patient?" + "a=1&" * 101,
    ],
)
def test_path_that_is_no_interaction_is_refused_before_a_request(path):
    proxy = Proxy()
    response = proxy("GET", path)
    assert response.status_code == 400
    assert json.loads(response.content)["issue"][0]["code"] == "invalid"
    assert proxy.server.requests == []


def test_read_keeps_digits_and_one_meaning():
    proxy = Proxy()
    body = b'{"resourceType" : "Patient", "id": "p1", "x": 1.10}'
    proxy.server.on("Patient/p1", respond(body))
    assert proxy("GET", "Patient/p1").content == body.replace(b" ", b"")


def test_odd_characters_of_a_query_are_written_again():
    proxy = Proxy()
    sent = "Patient?name=a%20b%2F..%2F%3F%23&given=%5C%25zz&family%3Aexact=&_id=p1"
    proxy.server.on(sent, respond(bundle()))
    query = "name=a+b%2F..%2F%3F%23&given=\\%zz&family%3Aexact="
    assert proxy("GET", f"Patient?{query}").status_code == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 429])
def test_refusal_of_the_server_is_passed_on(status):
    proxy = Proxy()
    outcome = {"resourceType": "OperationOutcome", "issue": [{"code": "invalid"}]}
    for answer in (respond(outcome, status), respond(b"<p>", status, media_type="x/y")):
        proxy.server.on("Patient/p1", answer)
        response = proxy("GET", "Patient/p1")
        assert response.status_code == status
        passed_on = json.loads(response.content)
        assert passed_on["resourceType"] == "OperationOutcome"
        assert (passed_on == outcome) is (answer.body != b"<p>")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(500, 502), (501, 502), (503, 503), (504, 504), (302, 502), (204, 502)],
)
def test_fault_of_the_server_is_told_as_such(status, expected):
    proxy = Proxy()
    proxy.server.on("Patient/p1", respond(b"", status))
    assert proxy("GET", "Patient/p1").status_code == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ServerUnreachableError("x"), 503),
        (ServerTimeoutError("x"), 504),
        (BearerBoundaryError("x"), 502),
        (GrantError("x", code="refresh_busy"), 503),
        (ReauthorizationRequiredError("x"), 403),
        (TokenServerError("x", status_code=500), 503),
        (TokenResponseError("x", error="invalid_client"), 502),
    ],
)
def test_error_of_the_package_becomes_an_outcome(error, expected):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    proxy = Proxy()
    proxy.smart.fhir = SimpleNamespace(send_unchecked=fail, base_url=BASE)
    response = proxy("GET", "Patient/p1")
    assert response.status_code == expected
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"


def test_reason_why_credentials_are_unusable_is_for_the_log_alone(caplog):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise CredentialsError("The secret file /run/secrets/ehr cannot be read.")

    proxy = Proxy()
    proxy.smart.fhir = SimpleNamespace(send_unchecked=fail, base_url=BASE)
    response = proxy("GET", "Patient/p1")
    assert response.status_code == 503
    assert b"credentials_unusable" in response.content
    assert b"/run/secrets" not in response.content
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "/run/secrets/ehr" in record.getMessage()


@pytest.mark.parametrize(
    ("path", "answer", "code"),
    [
        ("Patient/p1", respond({**PATIENT, "id": "p2"}), "patient_replaced"),
        ("Patient/p1", respond({**PATIENT, "resourceType": "Media"}), MALFORMED),
        ("Patient/p1", respond([PATIENT]), MALFORMED),
        ("Patient/p1", respond(PATIENT, media_type="text/html"), MALFORMED),
        ("Patient/p1", respond(b'{"resourceType": "Patient"'), MALFORMED),
        ("Practitioner", respond(PATIENT), MALFORMED),
    ],
)
def test_answer_that_is_not_what_was_asked_for_is_a_bad_gateway(path, answer, code):
    proxy = Proxy()
    proxy.server.on(path, answer)
    response = proxy("GET", path)
    assert response.status_code == 502
    assert f"{code}: ".encode() in response.content


@pytest.mark.parametrize(
    ("scope", "patient_id", "expected"),
    [
        ("patient/*.rs user/Patient.s", "p1", 403),
        ("launch openid", "p1", 403),
        ("patient/*.rs user/Patient.r", "p1", 200),
        ("user/*.r", None, 200),
        ("patient/*.r", None, 403),
    ],
)
def test_server_decides_about_what_user_scopes_cover(scope, patient_id, expected):
    proxy = Proxy()
    proxy.smart.scopes = ScopeSet.parse(scope)
    proxy.smart.patient_id = patient_id
    proxy.server.on("Patient/p2", respond({"resourceType": "Patient", "id": "p2"}))
    assert proxy("GET", "Patient/p2").status_code == expected


def test_what_no_scope_allows_is_refused_before_a_request():
    proxy = Proxy(**ALL)
    proxy.smart.scopes = ScopeSet.parse("patient/Observation.rs")
    request = {"method": "POST", "url": "Observation"}
    entry = {"request": request, "resource": OBSERVATION}
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    for response in (
        proxy("GET", "Patient/p1"),
        proxy("POST", "Observation", OBSERVATION),
        proxy("POST", "", batch),
    ):
        assert response.status_code == 403
        assert b"requires the scope" in response.content
    assert proxy.server.requests == []


# Types


def test_types_that_are_not_listed_are_refused_before_a_request():
    proxy = Proxy(resource_types={"Observation"})
    proxy.server.on("Observation/o1", respond(OBSERVATION))
    assert proxy("GET", "Observation/o1").status_code == 200
    assert proxy("GET", "Patient/p1").status_code == 403
    assert proxy("GET", "Patient").status_code == 403
    assert len(proxy.server.requests) == 1


def test_types_that_are_not_listed_do_not_come_by_inclusion_either():
    proxy = Proxy(resource_types={"Observation"})
    outcome = {"resourceType": "OperationOutcome", "issue": []}
    proxy.server.on(SEARCH, respond(bundle(OBSERVATION, outcome)))
    included = respond(bundle(OBSERVATION, PATIENT))
    include = "_include=Observation%3Asubject"
    proxy.server.on(f"Observation?{include}&patient=p1", included)
    assert proxy("GET", "Observation").status_code == 200
    response = proxy("GET", f"Observation?{include}")
    assert response.status_code == 403
    assert b"p1" not in response.content


@pytest.mark.parametrize("path", ["Observation/$lastn?max=1", "Observation/$validate"])
def test_types_that_are_not_listed_do_not_come_within_others(path):
    proxy = Proxy(resource_types={"Observation"}, methods=WRITES)
    inner = {"name": "y", "resource": PATIENT}
    outer = {"name": "x", "part": [inner]}
    hidden = [
        PATIENT,
        {"resourceType": "Parameters", "parameter": [inner]},
        {"resourceType": "Parameters", "parameter": [outer]},
        bundle({"resourceType": "Parameters", "parameter": [outer]}),
        bundle(bundle(OBSERVATION, PATIENT)),
    ]
    url = f"{path}&patient=p1" if "?" in path else path
    for listed in (OBSERVATION, bundle(OBSERVATION), bundle(bundle(OBSERVATION))):
        proxy.server.on(url, respond(listed))
        assert proxy("GET", path).status_code == 200
    for other in hidden:
        proxy.server.on(url, respond(other))
        assert proxy("GET", path).status_code == 403


def test_included_resource_that_cannot_be_checked_is_left_out():
    proxy = Proxy()
    found = bundle({**OBSERVATION, "valueDecimal": "@"})
    device = {"resourceType": "Device", "id": "pump"}
    include = "_include=Observation%3Adevice"
    found["entry"].append({"resource": device, "search": {"mode": "include"}})
    body = json.dumps(found).replace('"@"', "7.10").encode()
    proxy.server.on(f"Observation?{include}&patient=p1", respond(body))
    response = proxy("GET", f"Observation?{include}")
    assert response.status_code == 200
    assert b"pump" not in response.content
    assert b"7.10" in response.content
    [_, entry] = json.loads(response.content)["entry"]
    assert entry["search"] == {"mode": "outcome"}
    assert "1 Device" in entry["resource"]["issue"][0]["diagnostics"]


@pytest.mark.parametrize("odd", [[], {}])
def test_links_of_a_bundle_with_an_odd_type_are_not_signed(odd):
    proxy = Proxy()
    path = "Observation/$lastn?patient=p1"
    answer = bundle(OBSERVATION, type=odd, next_url=f"{BASE}?page=2")
    proxy.server.on(path, respond(answer))
    response = proxy("GET", path)
    assert response.status_code == 200
    assert b"_page" not in response.content
    proxy.server.on(path, respond({**OBSERVATION, "resourceType": odd}))
    assert proxy("GET", path).status_code == 502


# Headers


def test_only_headers_that_mean_something_are_passed_on():
    proxy = Proxy()
    answer = respond(
        PATIENT,
        etag='W/"3"',
        last_modified="Tue, 03 Mar 2026 10:00:00 GMT",
        set_cookie="ehr=1",
        connection="keep-alive, X-Own",
        x_own="1",
        transfer_encoding="chunked",
        www_authenticate="Basic",
        access_control_allow_origin="*",
    )
    proxy.server.on("Patient/p1", answer)
    response = proxy(
        "GET",
        "Patient/p1",
        Authorization="Basic mine",
        Cookie="sessionid=1",
        If_None_Match='W/"2"',
        X_Forwarded_For="10.0.0.1",
        TE="trailers",
    )
    assert set(response.headers) == {
        *("Cache-Control", "Content-Security-Policy", "Content-Type", "ETag"),
        *("Cross-Origin-Resource-Policy", "Last-Modified", "X-Content-Type-Options"),
    }
    [request] = proxy.server.requests
    assert set(request.headers) == {"Accept", "Authorization"}
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"


def test_read_is_sent_without_conditions():
    proxy = Proxy(methods=WRITES)
    proxy.server.on("Observation/o1", respond(OBSERVATION))
    conditions: Any = {"If_Match": 'W/"2"', "If_None_Exist": "identifier=1"}
    reads: Any = {**conditions, "If_None_Match": 'W/"2"', "If_Modified_Since": "x"}
    assert proxy("GET", "Observation/o1", **reads).status_code == 200
    assert set(proxy.server.requests[-1].headers) == {"Accept", "Authorization"}
    # The version is not known here, so the script's condition is sent.
    answer = proxy("PUT", "Observation/o1", OBSERVATION, **conditions)
    assert answer.status_code == 200
    assert proxy.server.requests[-1].headers["If-Match"] == 'W/"2"'
    assert "If-None-Exist" not in proxy.server.requests[-1].headers


def test_answer_is_not_asked_for_later():
    proxy = Proxy(methods=WRITES)
    proxy.server.on("Observation", respond(OBSERVATION, 201))
    prefer = "return=minimal; respond-async, handling=strict"
    assert proxy("POST", "Observation", OBSERVATION, Prefer=prefer).status_code == 201
    sent = proxy.server.requests[0].headers["Prefer"]
    assert sent == "return=minimal; handling=strict"


@pytest.mark.parametrize(
    ("value", "passed_on"),
    [("30", "30"), ("9" * 400, "86400"), ("soon", None)],
)
def test_time_to_wait_is_passed_on_as_a_number(value, passed_on):
    proxy = Proxy()
    proxy.server.on("Patient/p1", respond(b"", 429, retry_after=value))
    response = proxy("GET", "Patient/p1")
    assert response.status_code == 429
    assert response.headers.get("Retry-After") == passed_on


# Addresses


def test_addresses_of_a_bundle_lead_to_the_proxy():
    proxy = Proxy()
    resource = {**OBSERVATION, "derivedFrom": [{"reference": f"{BASE}/Observation/o0"}]}
    found = {
        "resourceType": "Bundle",
        "type": "searchset",
        "link": [
            {"relation": "self", "url": f"{BASE}/Observation?code=1"},
            {"relation": "next", "url": f"{BASE}?page=2"},
            {"relation": "last", "url": "?page=3"},
            {"relation": "other", "url": "https://elsewhere.example.org/x"},
        ],
        "entry": [
            {
                "fullUrl": f"{BASE}/Observation/o1",
                "resource": resource,
                "response": {"status": "201", "location": f"{BASE}/Observation/o1"},
            },
            {"fullUrl": "urn:uuid:1"},
        ],
    }
    proxy.server.on(f"{SEARCH}&code=1", respond(found))
    answer = json.loads(proxy("GET", f"{SEARCH}&code=1").content)
    assert answer["link"][0]["url"] == f"{PROXY}Observation?code=1"
    assert answer["link"][1]["url"].startswith(f"{PROXY}_page?url=")
    assert answer["link"][2]["url"].startswith(f"{PROXY}_page?url=")
    assert answer["link"][3]["url"] == "https://elsewhere.example.org/x"
    assert answer["entry"][0]["fullUrl"] == f"{PROXY}Observation/o1"
    assert answer["entry"][0]["response"]["location"] == f"{PROXY}Observation/o1"
    # Right at the proxy, and at the EHR if the resource is sent back.
    reference = answer["entry"][0]["resource"].pop("derivedFrom")
    assert reference == [{"reference": "Observation/o0"}]
    assert answer["entry"][0]["resource"] == OBSERVATION
    assert answer["entry"][1] == {"fullUrl": "urn:uuid:1"}

    proxy.server.answers[f"{BASE}?page=2"] = [respond(bundle(OBSERVATION))]
    page = proxy("GET", answer["link"][1]["url"].removeprefix(PROXY))
    assert json.loads(page.content)["entry"] == [{"resource": OBSERVATION}]
    assert proxy.server.urls[-1] == f"{BASE}?page=2"
    proxy.server.on("Observation?page=3", respond(bundle(OBSERVATION)))
    page = proxy("GET", answer["link"][2]["url"].removeprefix(PROXY))
    assert proxy.server.urls[-1] == f"{BASE}/Observation?page=3"
    other = {**OBSERVATION, "subject": {"reference": "Patient/p2"}}
    proxy.server.on("Observation?page=3", respond(bundle(other)))
    page = proxy("GET", answer["link"][2]["url"].removeprefix(PROXY))
    assert page.status_code == 403


def test_references_of_a_resource_are_right_at_the_proxy():
    proxy = Proxy()
    attachment = {"contentType": "text/plain", "url": f"{BASE}/Binary/b1"}
    resource = {
        **OBSERVATION,
        "performer": [{"reference": f"{BASE}/Practitioner/dr"}],
        "content": [{"attachment": attachment}],
        "valueUri": f"{BASE}/ValueSet/v",
    }
    body = json.dumps({**resource, "valueDecimal": 0}).replace(": 0}", ": 1.10}")
    proxy.server.on("Observation/o1", respond(body.encode()))
    text = proxy("GET", "Observation/o1").content.decode()
    answer = json.loads(text)
    assert answer["performer"] == [{"reference": "Practitioner/dr"}]
    assert answer["content"][0]["attachment"]["url"] == "Binary/b1"
    assert answer["valueUri"] == f"{BASE}/ValueSet/v"
    assert "1.10" in text


def test_page_address_that_was_not_given_out_is_refused():
    proxy = Proxy(boundary="origin")
    url = "https://ehr.example.org/pages?p=2"
    proxy.server.on(SEARCH, respond(bundle(OBSERVATION, next_url=url)))
    proxy.server.on(url, respond(bundle()))
    link = json.loads(proxy("GET", "Observation").content)["link"][1]["url"]
    page = link.removeprefix(PROXY)
    assert proxy("GET", page).status_code == 200
    proxy.smart.launch.key = "launch-2"
    for path in (page, f"{page}x", "_page", f"_page?url={url}"):
        assert proxy("GET", path).status_code == 404
    assert len(proxy.server.requests) == 2


def find_links(value: Any) -> list[str]:
    """The URLs of all links, at any depth."""
    if isinstance(value, dict):
        mine = [link["url"] for link in value.get("link", [])]
        return mine + find_links(list(value.values()))
    if isinstance(value, list):
        return [url for item in value for url in find_links(item)]
    return []


STORED = {**bundle(OBSERVATION, next_url=f"{BASE}/Condition/c1"), "id": "b1"}
HOLDING = {**OBSERVATION, "contained": [STORED]}


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "Bundle/b1", STORED),
        ("GET", "Bundle/b1/_history/1", STORED),
        ("GET", "Observation/o1", HOLDING),
        ("GET", SEARCH, bundle(HOLDING)),
        ("GET", SEARCH, bundle(STORED)),
        ("POST", "Observation", HOLDING),
        ("POST", "Bundle", {**STORED, "id": "b2"}),
        ("PUT", "Bundle/b1", STORED),
    ],
)
def test_links_of_a_stored_bundle_are_not_signed(method, path, answer):
    proxy = Proxy(methods=WRITES)
    proxy.server.on("Bundle/b1", respond(STORED))
    proxy.server.on(path, respond(answer))
    response = proxy(method, path, answer if method in {"POST", "PUT"} else None)
    assert response.status_code == 200
    links = find_links(json.loads(response.content))
    assert links
    assert not any("_page" in url for url in links)


def test_page_is_a_bundle_of_types_that_are_listed():
    proxy = Proxy(resource_types={"Observation"})
    url = f"{BASE}?page=2"
    proxy.server.on(SEARCH, respond(bundle(OBSERVATION, next_url=url)))
    link = json.loads(proxy("GET", "Observation").content)["link"][1]["url"]
    for page, status in [
        (bundle(OBSERVATION), 200),
        (bundle(PATIENT), 403),
        (PATIENT, 403),
        (OBSERVATION, 502),
        ({**STORED, "type": "collection"}, 502),
    ]:
        proxy.server.answers[url] = [respond(page)]
        assert proxy("GET", link.removeprefix(PROXY)).status_code == status


# Writes


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_writes_need_to_be_allowed(method):
    proxy = Proxy()
    response = proxy(method, "Observation/o1", OBSERVATION)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert proxy.server.requests == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "Observation"),
        ("PUT", "Observation/o1"),
        ("PATCH", "Observation/o1"),
        ("DELETE", "Observation/o1"),
        ("POST", "Observation/_search"),
    ],
)
def test_writes_need_the_sites_csrf_token(method, path):
    proxy = Proxy(methods=WRITES)
    response = proxy(method, path, OBSERVATION, has_token=False)
    assert response.status_code == 403
    assert json.loads(response.content)["issue"][0]["code"] == "security"
    assert proxy.server.requests == []


def test_writes_are_passed_on_with_their_conditions():
    proxy = Proxy(methods=WRITES)
    created = respond(
        OBSERVATION, 201, location=f"{BASE}/Observation/o1/_history/1", etag='W/"1"'
    )
    proxy.server.on("Observation", created)
    body = (
        b'{"resourceType":"Observation","valueDecimal":1.10,'
        b'"subject":{"reference":"Patient/p1"}}'
    )
    response = proxy("POST", "Observation", body, If_None_Exist="identifier=1")
    assert response.status_code == 201
    assert response.headers["Location"] == f"{PROXY}Observation/o1/_history/1"
    sent = proxy.server.requests[0]
    assert (sent.method, sent.body) == ("POST", body)
    assert sent.headers["If-None-Exist"] == "identifier=1&patient=p1"
    assert sent.headers["Content-Type"] == "application/fhir+json"

    held = respond(OBSERVATION, etag='W/"1"')
    proxy.server.on("Observation/o1", held)
    assert proxy("PUT", "Observation/o1", OBSERVATION, If_Match='W/"1"').content
    assert proxy.server.requests[-1].headers["If-Match"] == 'W/"1"'
    proxy.server.on("Observation/o1", held, respond(b"", 204))
    response = proxy("DELETE", "Observation/o1")
    assert (response.status_code, response.content) == (204, b"")
    assert proxy.server.requests[-1].body is None
    # Of what was read, also where the script names no version.
    assert proxy.server.requests[-1].headers["If-Match"] == 'W/"1"'
    patch = b'[{"op":"add","path":"/status","value":"final"}]'
    proxy.server.on("Observation/o1", held)
    patch_type = "application/json-patch+json"
    response = proxy("PATCH", "Observation/o1", patch, content_type=patch_type)
    assert response.status_code == 200
    assert proxy.server.requests[-1].headers["Content-Type"] == patch_type
    assert proxy.server.requests[-1].body == patch


def test_batch_keeps_digits_and_names_versions():
    proxy = Proxy(**ALL)
    proxy.server.on("Observation/o1", respond(OBSERVATION, etag='W/"4"'))
    answer = {"resourceType": "Bundle", "type": "batch-response", "entry": []}
    proxy.server.answers[BASE] = [respond(answer)]
    resource = '{"resourceType": "Observation", "id": "o1", "valueDecimal": 1.10, '
    resource += '"subject": {"reference": "Patient/p1"}}'
    body = (
        '{"resourceType": "Bundle", "type": "batch", "entry": [{"request": {"method": '
        f'"PUT", "url": "Observation/o1"}}, "resource": {resource}}}]}}'
    )
    assert proxy("POST", "", body.encode()).status_code == 200
    sent = json.loads(proxy.server.requests[-1].body or b"")
    assert sent["entry"][0]["request"]["ifMatch"] == 'W/"4"'
    assert resource.replace(" ", "").encode() in (proxy.server.requests[-1].body or b"")


def test_batch_does_no_more_than_the_view_allows():
    types = {"Observation"}
    proxy = Proxy(methods=("GET", "POST"), batch=True, resource_types=types)
    answer = {"resourceType": "Bundle", "type": "batch-response", "entry": []}
    proxy.server.answers[BASE] = [respond(answer)]
    for method, url, status in [
        ("GET", "Observation/o1", 200),
        ("GET", "Patient/p1", 403),
        ("DELETE", "Observation/o1", 403),
        ("GET", "Patient/p1/$everything", 403),
    ]:
        entry = {"request": {"method": method, "url": url}}
        batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
        assert proxy("POST", "", batch).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "attribute", "value"),
    [
        ("PUT", "Observation/o1", "methods", ("PUT",)),
        ("POST", "", "batch", True),
        ("GET", "Transport/t1", "resource_types", {"Transport"}),
        ("GET", "Questionnaire/q1/$populate", "operations", {"populate"}),
        ("GET", "Observation?encounter=e1", "parameters", {"Observation.encounter"}),
    ],
)
def test_refusal_says_which_attribute_would_allow_it(method, path, attribute, value):
    batch = {"resourceType": "Bundle", "type": "batch", "entry": []}
    body = batch if method == "POST" else OBSERVATION if method == "PUT" else None
    opened: Any = {"methods": WRITES} if method == "POST" else {}
    proxy = Proxy(**opened)
    response = proxy(method, path, body)
    assert response.status_code == (405 if attribute == "methods" else 403)
    [issue] = json.loads(response.content)["issue"]
    assert issue["code"] in {"forbidden", "not-supported"}
    assert f"attribute {attribute} " in issue["diagnostics"]
    assert proxy.server.requests == []
    # Then nothing is there, which is why it is unavailable.
    proxy = Proxy(**opened, **{attribute: value})
    assert proxy(method, path, body).status_code == 503


def test_operations_need_to_be_allowed():
    path = "Observation/$lastn?max=1"
    assert Proxy(operations=())("GET", path).status_code == 403


def test_conflict_is_passed_on():
    proxy = Proxy(methods=WRITES)
    outcome = {"resourceType": "OperationOutcome", "issue": [{"code": "conflict"}]}
    held = respond(OBSERVATION, etag='W/"1"')
    proxy.server.on("Observation/o1", held, respond(outcome, 412))
    response = proxy("PUT", "Observation/o1", OBSERVATION, If_Match='W/"1"')
    assert (response.status_code, json.loads(response.content)) == (412, outcome)
    # Known before anything is sent.
    proxy.server.on("Observation/o1", held)
    response = proxy("PUT", "Observation/o1", OBSERVATION, If_Match='W/"0"')
    assert response.status_code == 412
    assert proxy.server.requests[-1].method == "GET"


def test_refusal_shows_no_resource():
    proxy = Proxy(methods=WRITES)
    other = {**OBSERVATION, "subject": {"reference": "Patient/p2"}}
    proxy.server.on("Observation/o1", respond(other, 409, etag='W/"9"'))
    response = proxy("GET", "Observation/o1")
    assert response.status_code == 409
    assert b"p2" not in response.content
    assert "ETag" not in response.headers


def send_batch(proxy: Proxy, *entries: Any, answers: Any) -> Any:
    """The response to a batch that the server answers with *answers*."""
    answer = {"resourceType": "Bundle", "type": "batch-response", "entry": answers}
    proxy.server.answers[BASE] = [respond(answer)]
    batch = {"resourceType": "Bundle", "type": "batch", "entry": list(entries)}
    return proxy("POST", "", batch)


def test_conditions_in_a_batch_are_those_of_their_method():
    proxy = Proxy(**ALL)
    proxy.server.on("Observation/o1", respond(OBSERVATION, etag='W/"3"'))
    conditions = {
        "ifMatch": 'W/"3"',
        "ifNoneMatch": 'W/"4"',
        "ifNoneExist": "identifier=1",
        "ifModifiedSince": "2026-01-01T00:00:00Z",
    }
    url = "Observation/o1"
    sent = []
    for method, path in [("GET", url), ("PUT", url), ("POST", "Observation")]:
        request = {"method": method, "url": path, **conditions}
        entry = {"request": request, "resource": OBSERVATION}
        assert send_batch(proxy, entry, answers=[]).status_code == 200
        sent += json.loads(proxy.server.requests[-1].body or b"")["entry"]
    assert [set(entry["request"]) - {"method", "url"} for entry in sent] == [
        set(),
        {"ifMatch", "ifNoneMatch"},
        {"ifNoneExist"},
    ]
    assert ["resource" in entry for entry in sent] == [False, True, True]


def test_batch_has_no_more_entries_than_can_be_checked():
    proxy = Proxy(**ALL)
    proxy.server.on("Observation/o1", respond(OBSERVATION))
    entry = {"request": {"method": "DELETE", "url": "Observation/o1"}}
    response = send_batch(proxy, *[entry] * 101, answers=[])
    assert response.status_code == 400
    assert "100" in json.loads(response.content)["issue"][0]["diagnostics"]
    assert proxy.server.requests == []
    assert send_batch(proxy, *[entry] * 100, answers=[]).status_code == 200


def as_patch(data: str) -> dict[str, Any]:
    kind = "application/json-patch+json"
    binary = {"resourceType": "Binary", "contentType": kind, "data": data}
    request = {"method": "PATCH", "url": "Observation/o1"}
    return {"request": request, "resource": binary}


PATCH = b'[{"op": "add", "path": "/valueDecimal", "value": 7.10}]'


@pytest.mark.parametrize(
    "patch",
    [
        PATCH.replace(b'"path"', b'"path": "/subject", "path"'),
        PATCH.replace(b"7.10", b"[" * 300 + b"]" * 300),
        PATCH.replace(b"7.10", b"[" * 100_000 + b"]" * 100_000),
        PATCH.replace(b"7.10", b"NaN"),
        b'{"resourceType": "Parameters", "parameter": []}',
        b"\xff",
        b"",
    ],
)
def test_patch_in_a_batch_is_read_strictly(patch):
    proxy = Proxy(**ALL)
    entry = as_patch(base64.b64encode(patch).decode())
    assert send_batch(proxy, entry, answers=[]).status_code == 400
    assert proxy.server.requests == []


def test_patch_in_a_batch_is_sent_as_it_was_read():
    proxy = Proxy(**ALL)
    proxy.server.on("Observation/o1", respond(OBSERVATION))
    data = base64.b64encode(PATCH).decode()
    for text in (data, f"{data[:8]}\n{data[8:]}"):
        entry = as_patch(text)
        assert send_batch(proxy, entry, answers=[]).status_code == 200
        [sent] = json.loads(proxy.server.requests[-1].body or b"")["entry"]
        patch = base64.b64decode(sent["resource"]["data"])
        assert patch == PATCH.replace(b" ", b"")
    # A server may take the characters that are not base64 for something else.
    entry = as_patch(f"{data[:8]}!{data[8:]}")
    assert send_batch(proxy, entry, answers=[]).status_code == 400
    del entry["resource"]["data"]
    assert send_batch(proxy, entry, answers=[]).status_code == 400


@pytest.mark.parametrize("status", [200, 202, 204])
def test_deletion_is_reported_without_what_the_server_says_about_it(status):
    proxy = Proxy(methods=WRITES)
    deleted = respond(b"Deleted.", status, media_type="text/plain")
    proxy.server.on("Observation/o1", respond(OBSERVATION, etag='W/"3"'), deleted)
    response = proxy("DELETE", "Observation/o1")
    assert (response.status_code, response.content) == (status, b"")
    later = respond(b"", 202)
    proxy.server.on("Observation/o1", respond(OBSERVATION, etag='W/"3"'), later)
    assert proxy("PUT", "Observation/o1", OBSERVATION).status_code == 502


def test_parameters_of_an_operation_need_no_patient():
    proxy = Proxy(operations=("lookup",))
    proxy.smart.patient_id = None
    proxy.smart.scopes = ScopeSet.parse("user/CodeSystem.rs patient/Observation.rs")
    named = {"name": "display", "valueString": "Weight"}
    for parameter, status in (
        (named, 200),
        ({"name": "x", "resource": OBSERVATION}, 403),
    ):
        parameters = {"resourceType": "Parameters", "parameter": [parameter]}
        proxy.server.on("CodeSystem/$lookup?code=1", respond(parameters))
        response = proxy("GET", "CodeSystem/$lookup?code=1")
        assert response.status_code == status


@pytest.mark.parametrize(
    "value",
    [
        {"valueReference": {"identifier": {"value": "999"}}},
        {"valueIdentifier": {"value": "999"}},
        {"part": [{"name": "identifier", "valueString": "999"}]},
    ],
)
def test_operation_names_the_patient_by_a_reference_alone(value):
    proxy = Proxy(methods=("POST",), operations=("submit",))
    for name, status in (("patient", 403), ("Subject", 403), ("note", 200)):
        parameter = {"name": name, **value}
        body = {"resourceType": "Parameters", "parameter": [parameter]}
        proxy.server.on("Observation/$submit", respond({"resourceType": "Parameters"}))
        assert proxy("POST", "Observation/$submit", body).status_code == status
    assert len(proxy.server.requests) == 1


@pytest.mark.parametrize(
    "path",
    [
        "Observation/$lastn?subject=Location/1",
        "Observation/$lastn?patient=Practitioner/1",
        "DocumentReference/$docref?patient=Location/1",
    ],
)
def test_operation_is_about_the_patient_alone(path):
    proxy = Proxy()
    assert proxy("GET", path).status_code == 403
    assert proxy.server.requests == []


def test_search_may_be_sent_as_a_form():
    proxy = Proxy(methods=("GET", "POST"))
    proxy.server.on("Observation/_search", respond(bundle(OBSERVATION)))
    form = "application/x-www-form-urlencoded"
    path = "Observation/_search"
    response = proxy("POST", path, b"code=1&method=a+b", content_type=form)
    assert response.status_code == 200
    [sent] = proxy.server.requests
    assert (sent.body, sent.headers["Content-Type"]) == (
        b"code=1&method=a%20b&patient=p1",
        form,
    )
    assert proxy("POST", path, b"{}").status_code == 415


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "Observation/o1", OBSERVATION, 400),
        ("PUT", "Observation", OBSERVATION, 400),
        ("PUT", "Observation?_count=1", OBSERVATION, 403),
        ("PATCH", "Observation", OBSERVATION, 400),
        ("DELETE", "Observation", None, 400),
        ("DELETE", "?identifier=1", None, 400),
        ("GET", "Observation/_search", None, 400),
        ("POST", "Observation", PATIENT, 400),
        ("POST", "", {"type": []}, 400),
        ("POST", "Observation", [OBSERVATION], 400),
        ("POST", "Observation", b"{", 400),
        ("PUT", "Observation/o2", OBSERVATION, 400),
    ],
)
def test_what_cannot_be_written_is_refused_before_a_request(method, path, body, status):
    proxy = Proxy(methods=WRITES)
    assert proxy(method, path, body).status_code == status
    assert proxy.server.requests == []


@pytest.mark.parametrize("media_type", ["text/xml", "application/json-patch+json", ""])
def test_resource_that_is_no_json_is_refused(media_type):
    proxy = Proxy(methods=WRITES)
    response = proxy("PUT", "Observation/o1", OBSERVATION, content_type=media_type)
    assert response.status_code == 415


MULTIPART = "multipart/form-data; boundary=x"
PARTS = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n'


@pytest.mark.parametrize("path", ["Observation", "Observation/_search"])
def test_form_of_many_parts_is_refused(path):
    proxy = Proxy(methods=WRITES)
    response = proxy("POST", path, PARTS, content_type=MULTIPART)
    assert response.status_code == 415
    response = proxy("POST", path, PARTS, content_type="multipart/form-data")
    assert response.status_code == 400
    response = proxy("POST", path, PARTS, content_type=MULTIPART, has_token=False)
    assert response.status_code == 403
    assert proxy.server.requests == []


def test_form_that_django_does_not_read_is_refused(settings):
    proxy = Proxy(methods=WRITES)
    form = "application/x-www-form-urlencoded"
    path = "Observation/_search"
    latin = f"{form}; charset=latin-1"
    assert proxy("POST", path, b"code=1", content_type=latin).status_code == 400
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 2
    response = proxy("POST", path, b"a=1&b=2&c=3", content_type=form)
    assert response.status_code == 400
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    response = proxy("POST", path, b"code=" + b"1" * 10, content_type=form)
    assert response.status_code == 413


def test_body_that_a_middleware_has_read_is_refused():
    proxy = Proxy(methods=WRITES)
    view = proxy.view

    def read_and_call(request: Any, **kwargs: Any) -> Any:
        request.read()
        return view(request, **kwargs)

    proxy.view = read_and_call
    response = proxy("POST", "Observation", OBSERVATION)
    assert response.status_code == 400
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"
    assert proxy.server.requests == []


def test_host_that_is_not_allowed_is_left_to_django(settings):
    settings.ALLOWED_HOSTS = ["other.example.org"]
    proxy = Proxy()
    # Which logs it as a security event.
    with pytest.raises(DisallowedHost):
        proxy("GET", "Patient/p1")
    assert proxy.server.requests == []


def test_write_that_is_too_large_is_refused(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    assert Proxy(methods=WRITES)("POST", "Observation", OBSERVATION).status_code == 413


# Files


def test_binary_has_a_type_that_no_browser_runs():
    proxy = Proxy()
    subject = {"reference": "Patient/p1"}
    binary = {"resourceType": "Binary", "id": "b1", "contentType": "text/html"}
    page = {**binary, "data": "PHNjcmlwdD4=", "securityContext": subject}
    proxy.server.on("Binary/b1", respond(page))
    response = proxy("GET", "Binary/b1")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/fhir+json"
    # Others are no FHIR.
    proxy.server.on("Binary/b1", respond(b"<script>", media_type="text/html"))
    assert proxy("GET", "Binary/b1").status_code == 502


@pytest.mark.parametrize("resource_types", [None, {"Binary", "DocumentReference"}])
def test_binary_is_known_by_the_document_that_refers_to_it(resource_types):
    proxy = Proxy(resource_types=resource_types)
    path = "Binary/b1?_of=DocumentReference/d1"
    proxy.server.on("Binary/b1", respond({"resourceType": "Binary", "id": "b1"}))
    for patient_id, url, status in [
        ("p1", "Binary/b1", 200),
        ("p1", f"{BASE}/Binary/b1", 200),
        ("p1", "Binary/b2", 403),
        ("p2", "Binary/b1", 403),
    ]:
        document = {
            "resourceType": "DocumentReference",
            "id": "d1",
            "subject": {"reference": f"Patient/{patient_id}"},
            "content": [{"attachment": {"url": url}}],
        }
        proxy.server.on("DocumentReference/d1", respond(document))
        response = proxy("GET", path)
        assert response.status_code == status
    organization = {"resourceType": "Organization", "id": "x", "alias": ["Binary/b1"]}
    proxy.server.on("Organization/x", respond(organization))
    for of, status in [
        ("Organization/x", 403),
        ("Observation?x=1", 400),
        ("metadata", 400),
    ]:
        assert proxy("GET", f"Binary/b1?_of={of}").status_code == status
    if resource_types is None:
        assert proxy("GET", "Patient/p1?_of=Patient/p1").status_code == 403


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("resource_type", "members"),
    [
        # What a patient writes, also in another app.
        ("Communication", {"payload": [{"contentString": "Binary/b1"}]}),
        ("Patient", {"id": "p1", "address": [{"line": ["Binary/b1"]}]}),
        # The record of a request that was refused at the server.
        (
            "AuditEvent",
            {
                "agent": [{"who": {"reference": "Patient/p1"}}],
                "entity": [{"what": {"reference": "Binary/b1"}}],
            },
        ),
        (
            "Communication",
            {
                "contained": [
                    {
                        "resourceType": "AuditEvent",
                        "id": "a",
                        "agent": [{"who": {"reference": "Patient/p1"}}],
                        "entity": [{"what": {"reference": "Binary/b1"}}],
                    }
                ]
            },
        ),
        ("Parameters", {"parameter": [{"valueReference": {"reference": "Binary/b1"}}]}),
        (
            "Schedule",
            {
                "actor": [{"reference": "Practitioner/dr"}],
                "extension": [{"valueReference": {"reference": "Binary/b1"}}],
            },
        ),
        # The server decides about it, not about the Binary.
        (
            "DocumentReference",
            {
                "subject": {"reference": "Patient/p2"},
                "content": [{"attachment": {"url": "Binary/b1"}}],
            },
        ),
    ],
)
def test_binary_is_not_known_by_what_does_not_say_whose_it_is(resource_type, members):
    proxy = Proxy()
    types = (
        *("AuditEvent", "Binary", "Communication", "Parameters", "Patient"),
        "Schedule",
    )
    own = " ".join(f"patient/{name}.rs" for name in types)
    proxy.smart.scopes = ScopeSet.parse(f"{own} user/DocumentReference.rs")
    proxy.server.on("Binary/b1", respond({"resourceType": "Binary", "id": "b1"}))
    subject = {"reference": "Patient/p1"}
    source = {"resourceType": resource_type, "id": "d1", "subject": subject, **members}
    path = f"{resource_type}/{source['id']}"
    proxy.server.on(path, respond(source))
    assert proxy("GET", path).status_code == 200
    assert proxy("GET", f"Binary/b1?_of={path}").status_code == 403


def test_text_of_the_patient_does_not_become_a_link():
    document = {
        "resourceType": "DocumentReference",
        "id": "d1",
        "subject": {"reference": "Patient/p1"},
        "description": "Binary/b2",
        "content": [{"attachment": {"url": ""}}],
    }
    linked = {**document, "content": [{"attachment": {"url": "Binary/b2"}}]}
    proxy = Proxy(methods=WRITES)
    proxy.server.on("DocumentReference/d1", respond(document, etag='W/"3"'))
    assert proxy("PUT", "DocumentReference/d1", linked).status_code == 403
    assert [request.method for request in proxy.server.requests] == ["GET"]


def test_no_change_adds_a_link_to_a_binary():
    subject = {"reference": "Patient/p1"}
    document = {"resourceType": "DocumentReference", "id": "d1", "subject": subject}
    new = {**document, "content": [{"attachment": {"url": "Binary/b2"}}]}
    patch = [{"op": "add", "path": "/content", "value": new["content"]}]
    condition = "DocumentReference?identifier=1"
    for method, path, body in (
        ("PUT", "DocumentReference/d1", new),
        ("PUT", condition, new),
        ("PATCH", "DocumentReference/d1", patch),
        ("PATCH", condition, patch),
    ):
        proxy = Proxy(methods=WRITES)
        proxy.server.on("DocumentReference/d1", respond(document, etag='W/"3"'))
        found = respond(bundle()), respond(bundle(document))
        proxy.server.on(f"{condition}&patient=p1", *found)
        kind = JSON_PATCH if method == "PATCH" else "application/fhir+json"
        for _ in found:
            assert proxy(method, path, body, content_type=kind).status_code == 403
        assert {request.method for request in proxy.server.requests} == {"GET"}


@pytest.mark.parametrize(
    "link",
    [
        *("Binary/b2/_history/1", " /Binary/b2"),
        *(f"{BASE}/Binary/b2#x", f"\n{BASE}/Binary/b2"),
        # A server may know itself by other names.
        "http://localhost:8080/fhir/Binary/b2",
    ],
)
def test_no_change_refers_to_a_binary_in_a_form_that_a_server_shortens(link):
    proxy = Proxy(methods=WRITES)
    told = {**OBSERVATION, "derivedFrom": [{"reference": link}]}
    assert proxy("POST", "Observation", told).status_code == 403
    assert proxy.server.requests == []


@pytest.mark.parametrize("link", ["%50atient/p2", "Patient%2Fp2", "B%69nary/b2"])
def test_no_change_refers_to_others_in_a_form_that_a_server_decodes(link):
    proxy = Proxy(methods=WRITES)
    actors = [{"reference": "Patient/p1"}, {"reference": link}]
    told = {
        "resourceType": "Appointment",
        "participant": [{"actor": actor} for actor in actors],
    }
    assert proxy("POST", "Appointment", told).status_code == 403
    assert proxy.server.requests == []


def test_links_that_were_made_relative_may_be_sent_back():
    document = {
        "resourceType": "DocumentReference",
        "id": "d1",
        "subject": {"reference": "Patient/p1"},
        "content": [
            {
                "attachment": {
                    "contentType": "image/png",
                    "url": f"{BASE}/Binary/b2/_history/1",
                }
            },
        ],
    }
    proxy = Proxy(methods=WRITES)
    proxy.server.on("DocumentReference/d1", respond(document, etag='W/"3"'))
    shown = json.loads(proxy("GET", "DocumentReference/d1").content)
    assert shown["content"][0]["attachment"]["url"] == "Binary/b2/_history/1"
    response = proxy("PUT", "DocumentReference/d1", {**shown, "description": "new"})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "step",
    [
        # Some servers add the slash, and ignore the case of members.
        {"op": "remove", "path": "subject/reference"},
        {"op": "add", "path": "contained/-", "value": {"resourceType": "Patient"}},
        {"op": "remove", "path": "/subJect/reference"},
        {"op": "copy", "From": "/note/0/text", "path": "/performer/0/reference"},
        {"op": "add", "path": "/note", "Path": "/subject/identifier", "value": []},
        {"op": "move", "from": "/note/0/text", "path": "/performer/0/reference"},
        {"op": "add", "path": "/performer/0/reference", "value": "Patient?name=x"},
        {
            "op": "add",
            "path": "/performer/-",
            "value": {"type": "Patient", "identifier": {"value": "999"}},
        },
    ],
)
def test_step_that_a_server_may_read_in_another_way_is_refused(
    step: dict[str, Any],
) -> None:
    proxy = Proxy(**ALL)
    proxy.server.on("Observation/o1", respond(OBSERVATION))
    response = proxy(
        "PATCH", "Observation/o1", json.dumps([step]).encode(), content_type=JSON_PATCH
    )
    assert response.status_code in {400, 403}
    assert "PATCH" not in {request.method for request in proxy.server.requests}


def test_refused_step_tells_what_it_may_have() -> None:
    proxy = Proxy(**ALL)
    step = {"op": "move", "from": "/note/0/text", "path": "/note/1/text"}
    body = json.dumps([step]).encode()
    response = proxy("PATCH", "Observation/o1", body, content_type=JSON_PATCH)
    assert b"may only have op, path, value." in response.content


def test_question_of_a_patient_is_no_reference() -> None:
    proxy = Proxy(**ALL)
    proxy.server.on("Observation/o1", respond(OBSERVATION))
    step = {"op": "add", "path": "/note/0/text", "value": "Can I come on Monday?"}
    body = json.dumps([step]).encode()
    response = proxy("PATCH", "Observation/o1", body, content_type=JSON_PATCH)
    assert response.status_code == 200


def test_system_that_looks_like_a_link_may_stay() -> None:
    proxy = Proxy(**ALL)
    system = "https://hospital.example/patient/results"
    held = {**OBSERVATION, "identifier": [{"system": system, "value": "1"}]}
    proxy.server.on("Observation/o1", respond(held))
    assert proxy("PUT", "Observation/o1", held).status_code == 200
