"""App state on the wire: what is sent, and what is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from django_smart.contrib.app_state import (
    GLOBAL,
    AppState,
    AppStateClient,
    build_app_state_scope,
    find_app_state_base,
)
from django_smart.exceptions import (
    AppStateError,
    AppStateUnsupportedError,
    BearerBoundaryError,
    FHIRConflictError,
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    InsufficientScopeError,
    MalformedFHIRResponseError,
)
from django_smart.protocol.configuration import SMARTConfiguration
from django_smart.protocol.scopes import ScopeSet
from tests.fhir.servers import BASE, TOKEN, Grant, bundle, respond

FHIR_BASE = "https://ehr.example.org/fhir"
SYSTEM = "https://myapp.example.org"
CODE = "display-preferences"
URL = "https://myapp.example.org/display-preferences-v2.0.1"
SUBJECT = f"{FHIR_BASE}/Practitioner/123"
VALUES = {URL: '{"resultsPerPage":150}'}
FOUND = f"{BASE}/Basic?code=https%3A%2F%2Fmyapp.example.org%7Cdisplay-preferences"
BY_SUBJECT = (
    f"{FOUND}&subject=https%3A%2F%2Fehr.example.org%2Ffhir%2FPractitioner%2F123"
)
_VECTOR = Path(__file__).resolve().parent.parent / "vectors" / "Basic-app-state.json"


def make_basic(**changes: Any) -> dict[str, Any]:
    """The specification's example as a server keeps it; None takes a member out."""
    resource = json.loads(_VECTOR.read_text(encoding="utf-8"))
    resource = {**resource, "meta": {"versionId": "a"}, **changes}
    return {name: one for name, one in resource.items() if one is not None}


def make_state(**changes: Any) -> AppState:
    values = {
        "system": SYSTEM,
        "code": CODE,
        "values": VALUES,
        "subject": SUBJECT,
        "id": "app-state",
        "etag": 'W/"a"',
        **changes,
    }
    return AppState(**values)


@pytest.fixture
def grant() -> Grant:
    return Grant()


@pytest.fixture
def app_state(grant: Grant) -> AppStateClient:
    return AppStateClient(grant.client, fhir_base_url=f"{FHIR_BASE}/", system=SYSTEM)


def read_sent(grant: Grant) -> dict[str, Any]:
    body = grant.server.requests[-1].body
    assert body is not None
    value = json.loads(body)
    assert isinstance(value, dict)
    return value


# Where


def make_configuration(**members: Any) -> SMARTConfiguration:
    return SMARTConfiguration.from_json(
        {"token_endpoint": "https://ehr.example.org/token", **members},
        base_url=FHIR_BASE,
    )


@pytest.mark.compliance("STATE-03")
def test_base_is_where_discovery_says():
    own = make_configuration(capabilities=["smart-app-state"])
    assert find_app_state_base(own, base_url=f"{FHIR_BASE}/") == FHIR_BASE
    elsewhere = make_configuration(
        associated_endpoints=[
            {"url": "https://x.example.org/", "capabilities": ["other"]},
            {
                "url": "https://state.example.org/r4/",
                "capabilities": ["smart-app-state"],
            },
        ]
    )
    base_url = find_app_state_base(elsewhere, base_url=FHIR_BASE)
    assert base_url == "https://state.example.org/r4"


@pytest.mark.compliance("STATE-03")
def test_server_that_offers_no_app_state_is_not_asked():
    with pytest.raises(AppStateUnsupportedError):
        find_app_state_base(
            make_configuration(capabilities=["launch-ehr"]), base_url=FHIR_BASE
        )


# Create


@pytest.mark.compliance("STATE-04", "STATE-05", "STATE-07", "STATE-08")
def test_state_is_created_as_in_the_example(grant, app_state):
    grant.server.on("Basic", respond(make_basic(), 201, etag='W/"a"'))
    example = make_basic()
    values = {one["url"]: one["valueString"] for one in example["extension"]}
    state = app_state.create(CODE, values, subject="Practitioner/123")
    [request] = grant.server.requests
    assert request.method == "POST"
    assert request.headers == {
        "Accept": "application/fhir+json",
        "Content-Type": "application/fhir+json",
        "Authorization": f"Bearer {TOKEN}",
    }
    assert read_sent(grant) == make_basic(id=None, meta=None)
    assert state == make_state(values=values)
    assert (grant.exchanges[0].interaction, grant.exchanges[0].resource_type) == (
        "create",
        "Basic",
    )


@pytest.mark.compliance("STATE-07", "STATE-15")
def test_global_state_has_no_subject(grant, app_state):
    grant.server.on("Basic", respond(make_basic(subject=None), 201))
    state = app_state.create(CODE, VALUES, subject=GLOBAL)
    assert "subject" not in read_sent(grant)
    assert (state.subject, state.etag) == (None, 'W/"a"')


@pytest.mark.parametrize(
    "subject",
    [
        None,
        "",
        5,
        "Patient",
        "Patient/1/_history/2",
        "Patient/..",
        "patient/1",
        "https://evil.example/fhir/Patient/1",
        f"{BASE}/Patient/1",
    ],
)
@pytest.mark.compliance("STATE-07")
def test_subject_of_another_place_is_refused(grant, app_state, subject):
    with pytest.raises(AppStateError):
        app_state.create(CODE, VALUES, subject=subject)
    with pytest.raises(AppStateError):
        app_state.search(CODE, subject=subject)
    assert grant.server.requests == []


@pytest.mark.parametrize(
    "values",
    [
        {URL: 5},
        {URL: {"a": 1}},
        {URL: ""},
        {URL: None},
        {URL: "\ud800"},
        {"": "x"},
        {"a b": "x"},
    ],
)
@pytest.mark.compliance("STATE-08")
def test_value_that_is_no_text_is_refused(grant, app_state, values):
    with pytest.raises(AppStateError):
        app_state.create(CODE, values, subject=SUBJECT)
    assert grant.server.requests == []


@pytest.mark.parametrize("code", ["", "a b", "a|b", "a,b", "a$b", "a\\b", "ä", "a\n"])
@pytest.mark.compliance("STATE-08", "STATE-13")
def test_code_that_would_need_an_escape_is_refused(grant, app_state, code):
    with pytest.raises(AppStateError):
        app_state.create(code, VALUES, subject=SUBJECT)
    with pytest.raises(AppStateError):
        app_state.search(code, subject=SUBJECT)
    assert grant.server.requests == []


@pytest.mark.compliance("STATE-06")
def test_state_up_to_256_kilobytes_is_sent(grant, app_state):
    grant.server.on("Basic", respond(make_basic(), 201))
    app_state.create(CODE, {URL: "x"}, subject=SUBJECT)
    room = 256 * 1024 - len(grant.server.requests[0].body or b"") + 1
    app_state.create(CODE, {URL: "x" * room}, subject=SUBJECT)
    assert len(grant.server.requests[1].body or b"") == 256 * 1024
    with pytest.raises(AppStateError, match="the limit is"):
        app_state.create(CODE, {URL: "x" * (room + 1)}, subject=SUBJECT)
    # Counted in bytes, not in letters.
    with pytest.raises(AppStateError, match="the limit is"):
        app_state.create(CODE, {URL: "ä" * room}, subject=SUBJECT)
    assert len(grant.server.requests) == 2


@pytest.mark.compliance("STATE-06")
def test_limit_can_be_the_ehrs_own(grant):
    client = AppStateClient(
        grant.client, fhir_base_url=FHIR_BASE, system=SYSTEM, max_size=300
    )
    with pytest.raises(AppStateError, match="the limit is"):
        client.create(CODE, {URL: "x" * 300}, subject=SUBJECT)
    assert grant.server.requests == []


def test_change_without_its_scope_is_reported_before_it_is_sent():
    missing: list[str] = []

    def refuse(scope: str) -> None:
        missing.append(scope)
        raise InsufficientScopeError("", missing=scope)

    scopes = ScopeSet.parse("user/Basic.s")
    grant = Grant(get_scopes=lambda: scopes, on_missing_scope=refuse)
    app_state = AppStateClient(grant.client, fhir_base_url=FHIR_BASE, system=SYSTEM)
    for change in (
        lambda: app_state.create(CODE, VALUES, subject=SUBJECT),
        lambda: app_state.update(make_state(), VALUES),
        lambda: app_state.delete(make_state()),
    ):
        with pytest.raises(InsufficientScopeError):
            change()
    assert missing == ["user/Basic.c", "user/Basic.u", "user/Basic.d"]
    assert grant.server.requests == []


def test_creation_without_a_body_is_read_from_its_location(grant, app_state):
    location = f"{BASE}/Basic/app-state/_history/a"
    answer = respond(b"", 201, etag='W/"a"', location=location)
    grant.server.on("Basic", answer)
    assert app_state.create(CODE, VALUES, subject=SUBJECT) == make_state()


@pytest.mark.parametrize("location", ["", f"{BASE}/Basic", f"{BASE}/Patient/1"])
def test_creation_that_tells_no_id_is_an_error(grant, app_state, location):
    grant.server.on("Basic", respond(b"", 201, location=location))
    with pytest.raises(MalformedFHIRResponseError):
        app_state.create(CODE, VALUES, subject=SUBJECT)


# Update and delete


@pytest.mark.compliance("STATE-09", "STATE-08")
def test_update_names_the_version_it_replaces(grant, app_state):
    grant.server.on("Basic/app-state", respond(make_basic(), etag='W/"b"'))
    state = app_state.update(make_state(), {URL: "new"})
    [request] = grant.server.requests
    assert (request.method, request.headers["If-Match"]) == ("PUT", 'W/"a"')
    assert read_sent(grant) == make_basic(
        meta=None, extension=[{"url": URL, "valueString": "new"}]
    )
    assert state.etag == 'W/"b"'


def test_update_without_a_body_keeps_what_was_sent(grant, app_state):
    grant.server.on("Basic/app-state", respond(b"", etag='W/"b"'))
    state = app_state.update(make_state(), {})
    assert "extension" not in read_sent(grant)
    assert state == make_state(values={}, etag='W/"b"')


@pytest.mark.parametrize("etag", ["", "a", "W/a", 'W/"a"\r\nX: y', 'W/"a", W/"b"', "*"])
@pytest.mark.compliance("STATE-09", "STATE-10")
def test_change_without_an_etag_is_not_sent(grant, app_state, etag):
    state = make_state(etag=etag)
    with pytest.raises(AppStateError):
        app_state.update(state, VALUES)
    with pytest.raises(AppStateError):
        app_state.delete(state)
    assert grant.server.requests == []


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (409, FHIRConflictError),
        (410, FHIRNotFoundError),
        (412, FHIRPreconditionFailedError),
    ],
)
@pytest.mark.compliance("STATE-11")
def test_conflict_is_told_and_nothing_is_tried_again(grant, app_state, status, error):
    outcome = {"resourceType": "OperationOutcome", "issue": [{"code": "conflict"}]}
    grant.server.on("Basic/app-state", respond(outcome, status))
    for change in (
        lambda: app_state.update(make_state(), VALUES),
        lambda: app_state.delete(make_state()),
    ):
        with pytest.raises(error) as caught:
            change()
        assert caught.value.status_code == status
        assert caught.value.issues == [{"code": "conflict"}]
    assert len(grant.server.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        *(
            respond(b"", 204),
            respond(b""),
            respond({"resourceType": "OperationOutcome"}),
        ),
        *(respond(b"Deleted.", media_type="text/plain"), respond({}, 202)),
    ],
)
@pytest.mark.compliance("STATE-10", "STATE-12")
def test_deleted_state_takes_no_more_changes(grant, app_state, answer):
    grant.server.on("Basic/app-state", answer)
    state = make_state()
    app_state.delete(state)
    [request] = grant.server.requests
    assert (request.method, request.body) == ("DELETE", None)
    assert request.headers["If-Match"] == 'W/"a"'
    # Nor does what another read has found under this id.
    for one in (state, make_state(etag='W/"b"')):
        with pytest.raises(AppStateError, match="was deleted"):
            app_state.update(one, VALUES)
        with pytest.raises(AppStateError, match="was deleted"):
            app_state.delete(one)
    assert len(grant.server.requests) == 1


@pytest.mark.compliance("STATE-12")
def test_refused_deletion_leaves_the_state_alive(grant, app_state):
    grant.server.on("Basic/app-state", respond(b"", 412), respond(make_basic()))
    state = make_state()
    with pytest.raises(FHIRPreconditionFailedError):
        app_state.delete(state)
    app_state.update(state, VALUES)


def test_redirect_of_a_change_is_not_followed(grant, app_state):
    location = "https://evil.example/Basic/app-state"
    grant.server.on("Basic/app-state", respond(b"", 307, location=location))
    with pytest.raises(MalformedFHIRResponseError):
        app_state.update(make_state(), VALUES)
    assert len(grant.server.requests) == 1


# Search


@pytest.mark.compliance("STATE-13", "STATE-04")
def test_state_is_found_by_code_and_subject(grant, app_state):
    grant.server.on(BY_SUBJECT, respond(bundle(make_basic())))
    [state] = app_state.search(CODE, subject="Practitioner/123")
    assert grant.server.bearers == [f"Bearer {TOKEN}"]
    assert (state.id, state.etag, state.subject) == ("app-state", 'W/"a"', SUBJECT)
    assert state.read_json(URL)["defaultView"] == "problem-list"


@pytest.mark.compliance("STATE-13", "STATE-09")
def test_search_and_etag_are_the_published_ones():
    answers = json.loads((_VECTOR.parent / "known-answers.json").read_text("utf-8"))
    published = answers["app_state"]
    sent = parse_qsl(urlsplit(BY_SUBJECT).query)
    query = published["search_specific_subject"].removeprefix("Basic?")
    # The order says nothing.
    assert sorted(sent) == sorted(parse_qsl(query))
    assert make_state().etag == published["etag_of_versionId_a"]


@pytest.mark.compliance("STATE-13", "STATE-15")
def test_global_state_is_found_by_its_missing_subject(grant, app_state):
    answer = respond(bundle(make_basic(subject=None, meta=None)))
    grant.server.on(f"{FOUND}&subject%3Amissing=true", answer)
    [state] = app_state.search(CODE, subject=GLOBAL)
    assert (state.subject, state.etag) == (None, "")


def test_no_state_is_an_empty_list(grant, app_state):
    grant.server.on(BY_SUBJECT, respond(bundle()))
    assert app_state.search(CODE, subject=SUBJECT) == []


def test_next_page_elsewhere_gets_no_token(grant, app_state):
    page = bundle(make_basic(), next_url="https://evil.example/Basic")
    grant.server.on(BY_SUBJECT, respond(page))
    with pytest.raises(BearerBoundaryError):
        app_state.search(CODE, subject=SUBJECT)
    assert len(grant.server.requests) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"subject": {"reference": f"{FHIR_BASE}/Practitioner/9"}},
        {"subject": {"reference": "https://evil.example/Practitioner/123"}},
        {"subject": {"reference": GLOBAL}},
        {"subject": {}},
        {"subject": None},
        {"code": {"coding": [{"system": SYSTEM, "code": "other"}]}},
        {"code": {"coding": [{"system": "https://x.example", "code": CODE}]}},
        {"code": {"coding": [{"system": SYSTEM, "code": CODE}] * 2}},
        {"code": {"coding": [{"code": CODE}]}},
        {"code": {"coding": ["x"]}},
        {"code": {"coding": {}}},
        {"code": []},
        {"resourceType": None},
        {"id": "../x"},
        {"id": None},
        {"extension": {}},
        {"extension": ["x"]},
        {"extension": [{"url": URL}]},
        {"extension": [{"url": URL, "valueInteger": 5}]},
        {"extension": [{"url": URL, "valueString": ["x"]}]},
        {"extension": [{"url": URL, "valueString": "x", "extension": []}]},
        {"extension": [{"url": URL, "valueString": "x"}] * 2},
    ],
)
@pytest.mark.compliance("STATE-14", "STATE-08")
def test_state_that_is_not_what_was_asked_for_is_refused(grant, app_state, change):
    grant.server.on(BY_SUBJECT, respond(bundle(make_basic(**change))))
    with pytest.raises(MalformedFHIRResponseError):
        app_state.search(CODE, subject=SUBJECT)


def test_resource_of_another_type_is_no_state(grant, app_state):
    page = bundle(make_basic(resourceType="Patient", id="p-1"), make_basic())
    grant.server.on(BY_SUBJECT, respond(page))
    [state] = app_state.search(CODE, subject=SUBJECT)
    assert state.id == "app-state"


@pytest.mark.parametrize(
    "value",
    [
        "<script>alert(1)</script>",
        "[" * 100_000,
        '{"a":' * 50 + "1" + "}" * 50,
        '{"__proto__": NaN}',
        '{"a": 1, "a": 2}',
        "null",
        "[]",
        "\ud800",
        "'; DROP TABLE x; --",
        "",
    ],
)
@pytest.mark.compliance("STATE-14")
def test_hostile_text_stays_text(grant, app_state, value):
    extension = [{"url": URL, "valueString": value}]
    grant.server.on(BY_SUBJECT, respond(bundle(make_basic(extension=extension))))
    [state] = app_state.search(CODE, subject=SUBJECT)
    assert state.values == {URL: value}
    with pytest.raises(MalformedFHIRResponseError):
        state.read_json(URL)
    with pytest.raises(KeyError):
        state.read_json("https://x.example")


def test_repr_shows_neither_values_nor_the_person():
    text = repr(make_state())
    assert "150" not in text
    assert "Practitioner" not in text


# Scopes


@pytest.mark.compliance("STATE-16")
def test_scopes_are_narrowed_to_one_code():
    kind = f"code={SYSTEM}|{CODE}"
    for level in ("user", "patient"):
        scope = build_app_state_scope(level, system=SYSTEM, code=CODE)
        assert scope == f"{level}/Basic.cuds?{kind}"
    read = build_app_state_scope("patient", system=SYSTEM, code=CODE, letters="s")
    assert read == f"patient/Basic.s?{kind}"


@pytest.mark.parametrize(
    "change",
    [
        {"level": "system"},
        {"level": ""},
        {"letters": "sc"},
        {"letters": ""},
        {"letters": "cuds?x=y&"},
        {"code": ""},
        {"code": "a b"},
        {"code": "a&b"},
        {"system": "https://x.example|"},
    ],
)
@pytest.mark.compliance("STATE-16")
def test_scope_that_is_not_for_one_code_is_refused(change):
    values = {"level": "user", "system": SYSTEM, "code": CODE, **change}
    with pytest.raises(AppStateError):
        build_app_state_scope(values.pop("level"), **values)
