"""Searching: parameters in Python's words, results page by page."""

from __future__ import annotations

import gc
import itertools
import json
import tracemalloc
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRForbiddenError,
    FHIRRequestError,
    MalformedFHIRResponseError,
    TooManyResultsError,
)
from django_smart.fhir import (
    AnyOf,
    Quantity,
    SearchPage,
    SearchStream,
    Token,
    escape,
)
from django_smart.fhir.parameters import build_search_query
from django_smart.protocol.messages import HTTPResponse
from tests.fhir.servers import BASE, Grant, bundle, respond

SEVEN = "7%7Chttp%3A%2F%2Funitsofmeasure.org%7C%25"
VECTORS = Path(__file__).parent.parent / "vectors"


def observation(number: int) -> dict[str, object]:
    return {"resourceType": "Observation", "id": f"o-{number}"}


def ids(resources) -> list[object]:
    return [resource["id"] for resource in resources]


@pytest.mark.compliance("FHIR-05")
def test_search_of_the_walk_through_is_exact_on_the_wire():
    vectors = json.loads((VECTORS / "known-answers.json").read_text())
    expected = find_url(vectors)
    base, _, query = expected.partition("/Observation?")
    grant = Grant(base_url=base)
    grant.server.on(expected, respond(bundle()))
    patient = query.rpartition("=")[2]
    by_words = grant.client.search(
        "Observation", code="4548-4", _sort__desc="date", _count=10, patient=patient
    )
    assert by_words == []
    pairs = [("code", "4548-4"), ("_sort:desc", "date"), ("_count", "10")]
    assert not grant.client.search("Observation", pairs, patient=patient)
    assert grant.server.urls == [expected, expected]


def find_url(value: Any) -> Any:
    """URL of the FHIR request in the known answers."""
    if isinstance(value, dict):
        if "fhir_request" in value:
            return value["fhir_request"]["url"]
        value = list(value.values())
    if isinstance(value, list):
        return next((url for item in value if (url := find_url(item))), "")
    return ""


# Parameters


@pytest.mark.parametrize(
    ("keywords", "query"),
    [
        ({}, ""),
        ({"name": "de la Cruz"}, "name=de%20la%20Cruz"),
        ({"name__exact": "Zoë"}, "name%3Aexact=Zo%C3%AB"),
        ({"code": "http://loinc.org|1,2"}, "code=http%3A%2F%2Floinc.org%7C1%2C2"),
        ({"date": ["ge2024", "lt2025"]}, "date=ge2024&date=lt2025"),
        ({"date": ("ge2024",)}, "date=ge2024"),
        ({"value_quantity": "gt7"}, "value-quantity=gt7"),
        ({"_lastUpdated": date(2024, 2, 29)}, "_lastUpdated=2024-02-29"),
        ({"_last_updated__ge": date(2024, 2, 29)}, "_lastUpdated=ge2024-02-29"),
        ({"_contained_type": "both"}, "_containedType=both"),
        ({"_count": 5, "__x": "1"}, "_count=5&.x=1"),
        (
            {"date": datetime(2024, 2, 29, 12, 30, tzinfo=UTC)},
            "date=2024-02-29T12%3A30%3A00%2B00%3A00",
        ),
        ({"active": True, "deceased": False}, "active=true&deceased=false"),
        ({"_count": 10, "x": Decimal("1.50"), "y": 0}, "_count=10&x=1.50&y=0"),
        ({"a": "1&b=2#x"}, "a=1%26b%3D2%23x"),
        ({"subject__Patient__name": "x"}, "subject%3APatient.name=x"),
        ({"subject__Patient__name__exact": "x"}, "subject%3APatient.name%3Aexact=x"),
        ({"subject__Patient__identifier": "1"}, "subject%3APatient.identifier=1"),
        ({"subject__identifier": "1"}, "subject%3Aidentifier=1"),
        ({"subject__Patient": "1"}, "subject%3APatient=1"),
        ({"patient__family": "x"}, "patient.family=x"),
        (
            {"patient__general_practitioner__name": "x"},
            "patient.general-practitioner.name=x",
        ),
        (
            {"patient__birthdate__lt": date(2000, 1, 1)},
            "patient.birthdate=lt2000-01-01",
        ),
        (
            {"_has__Observation__patient__code": "1"},
            "_has%3AObservation%3Apatient%3Acode=1",
        ),
        ({"_include__iterate": "Patient:link"}, "_include%3Aiterate=Patient%3Alink"),
        ({"class_": "AMB", "code__in": "urn:x"}, "class=AMB&code%3Ain=urn%3Ax"),
        ({"code__not_in": "urn:x"}, "code%3Anot-in=urn%3Ax"),
        ({"email__missing": False}, "email%3Amissing=false"),
        ({"birthdate__ge": date(1980, 1, 1)}, "birthdate=ge1980-01-01"),
        (
            {"date__ge": date(2024, 1, 1), "date__lt": date(2025, 1, 1)},
            "date=ge2024-01-01&date=lt2025-01-01",
        ),
        ({"date__sa": ["2024", "2025"]}, "date=sa2024&date=sa2025"),
        ({"value_quantity__gt": Quantity(7, "%")}, f"value-quantity=gt{SEVEN}"),
        ({"value_quantity": Quantity(7)}, "value-quantity=7"),
        ({"code": Token("a|b,c$\\")}, "code=a%5C%7Cb%5C%2Cc%5C%24%5C%5C"),
        ({"code": Token("8", "urn:s")}, "code=urn%3As%7C8"),
        ({"code": Token("8", "")}, "code=%7C8"),
        ({"code": Token("", "urn:s")}, "code=urn%3As%7C"),
        ({"subject": "Group/g-1"}, "subject=Group%2Fg-1"),
        (
            {"code": AnyOf(Token("1", "urn:s"), Token("2"), escape("3,4"))},
            "code=urn%3As%7C1%2C2%2C3%5C%2C4",
        ),
        ({"date__gt": AnyOf("2024", "2025")}, "date=gt2024%2Cgt2025"),
    ],
)
def test_keywords_become_parameters(keywords, query):
    assert build_search_query(None, keywords) == query


def test_exact_names_come_first_and_in_order():
    assert build_search_query({"b_c": "1", "a": "2"}, {"z": "3"}) == "b_c=1&a=2&z=3"
    pairs = [("subject:Patient.name", "x"), ("a", ["1", 2])]
    assert build_search_query(pairs, {}) == "subject%3APatient.name=x&a=1&a=2"


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", [], [None], ["x", ""], {}, b"x", datetime(2024, 1, 1), object()),
        *(AnyOf(), AnyOf("x", ""), AnyOf(None), Token(""), Token("", "")),
        *(float("nan"), Decimal("inf"), Quantity(float("inf"), "%")),
    ],
)
def test_value_that_would_widen_the_search_is_refused(grant, value):
    with pytest.raises(FHIRRequestError) as caught:
        grant.client.search("Observation", patient=value)
    assert '"patient"' in str(caught.value)


@pytest.mark.parametrize("pair", [("", "x"), ("x", "\ud800"), ("\ud800", "x")])
def test_parameter_that_cannot_be_written_is_refused(pair):
    with pytest.raises(FHIRRequestError):
        build_search_query([pair], {})


@pytest.mark.parametrize("keyword", ["birthdate__ge", "date__gt"])
@pytest.mark.parametrize("value", [None, "", AnyOf(), AnyOf("2024", "")])
def test_comparison_with_nothing_is_refused(grant, keyword, value):
    with pytest.raises(FHIRRequestError):
        grant.client.search("Patient", **{keyword: value})


def test_values_do_not_show_whose_they_are():
    shown = repr([Token("c4nary", "urn:mrn")])
    shown += repr([Quantity(7), AnyOf("c4nary")])
    assert "c4nary" not in shown
    assert "urn:mrn" in shown


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1)))
def test_no_value_breaks_out_of_its_place(params):
    try:
        query = build_search_query(params, {})
    except FHIRRequestError:
        text = "".join([*params, *params.values()])
        assert any("\ud800" <= letter <= "\udfff" for letter in text)
        return
    assert query.isascii()
    assert query.count("=") == len(params)
    assert not set(query) & set(' #?/\\\r\n"<>')


# Results

CUT_OFF = {"link": [{"relation": "next"}]}
UNREADABLE = {"entry": [{"resource": observation(1)}, {"fullUrl": f"{BASE}/x"}]}


def test_search_sends_when_it_is_called_and_never_again(grant):
    first = bundle(observation(1), next_url=f"{BASE}?p=2", total=7)
    grant.server.on("Observation", respond(first))
    grant.server.on(f"{BASE}?p=2", respond(bundle(observation(2))))
    result = grant.client.search("Observation")
    assert len(grant.server.requests) == 2
    assert result.total == 7
    assert result.first() == result[0] == observation(1)
    assert result[:5] == list(result) == [observation(1), observation(2)]
    assert json.loads(json.dumps(result)) == result
    assert len(result) == 2
    assert result
    assert not result.is_complete
    assert len(grant.server.requests) == 2


@pytest.mark.parametrize("total", [None, 0, 1])
def test_total_is_never_less_than_what_came(grant, total):
    found = [observation(1), observation(2)]
    grant.server.on("Observation", respond(bundle(*found, total=total)))
    assert grant.client.search("Observation").total == 2
    assert grant.client.search("Observation", limit=1).total == 2 if total else 1


def test_more_than_a_thousand_matches_need_a_limit_or_a_stream():
    total = 1000

    def send(request):
        start = int(request.url.partition("?p=")[2] or "0")
        numbers = range(start, min(start + 100, total))
        more = f"?p={start + 100}" if start + 100 < total else None
        return respond(bundle(*map(observation, numbers), next_url=more))

    fhir = Grant(send=send).client
    assert len(fhir.search("Observation")) == 1000
    total = 1001
    with pytest.raises(TooManyResultsError, match=r"iterate\(\)"):
        fhir.search("Observation")
    assert len(fhir.search("Observation", limit=2000)) == 1001
    some = fhir.search("Observation", limit=150)
    assert (len(some), some.is_complete) == (150, False)
    assert len(list(fhir.iterate("Observation"))) == 1001


@pytest.mark.parametrize("collect", [list, tuple, lambda it: [*it]])
def test_stream_can_be_collected(grant, collect):
    grant.server.on("Observation", respond(bundle(observation(1))))
    stream = grant.client.iterate("Observation")
    assert list(collect(stream)) == [observation(1)]
    assert list(collect(stream)) == [observation(1)]


@pytest.mark.parametrize("use", [len, lambda it: it[0], lambda it: it[:5]])
def test_stream_has_no_length_and_no_order(grant, use):
    stream = grant.client.iterate("Observation")
    assert stream
    with pytest.raises(FHIRRequestError):
        use(stream)
    assert grant.server.requests == []


def outcome(severity: str, code: str = "processing") -> dict[str, Any]:
    issue = {"severity": severity, "code": code}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


FAILURES = [
    ("error", "processing"),
    ("fatal", "exception"),
    ("warning", "incomplete"),
    ("warning", "timeout"),
]
NOTES = [
    ("warning", "processing"),
    ("warning", "suppressed"),
    ("information", "incomplete"),
]


@pytest.mark.parametrize(("severity", "code"), FAILURES)
def test_failure_that_comes_with_200_is_no_empty_result(grant, severity, code):
    failure = outcome(severity, code)
    grant.server.on("Observation", respond(bundle(failure)))
    with pytest.raises(MalformedFHIRResponseError, match="an error"):
        grant.client.search("Observation")
    with pytest.raises(MalformedFHIRResponseError, match="an error"):
        list(grant.client.iterate("Observation"))
    grant.server.on("Observation", respond(bundle(failure, observation(1))))
    found = grant.client.search("Observation")
    assert (found, found.outcomes) == ([observation(1)], [failure])
    assert not found.is_complete


@pytest.mark.parametrize(("severity", "code"), NOTES)
def test_note_leaves_a_result_complete(grant, severity, code):
    note = outcome(severity, code)
    for expected in ([], [observation(1)]):
        grant.server.on("Observation", respond(bundle(note, *expected)))
        found = grant.client.search("Observation")
        assert (found, found.outcomes) == (expected, [note])
        assert found.is_complete
        assert list(grant.client.iterate("Observation")) == expected


@pytest.mark.parametrize("severity", ["error", "information"])
def test_failure_of_a_later_page_is_raised_after_what_came(grant, severity):
    first = bundle(observation(1), next_url="?p=2")
    grant.server.on("Observation", respond(first))
    grant.server.on("Observation?p=2", respond(bundle(outcome(severity, "timeout"))))
    is_failed = severity == "error"
    assert grant.client.search("Observation").is_complete is not is_failed
    for read in (iter, SearchStream.pages):
        found = read(grant.client.iterate("Observation"))
        assert next(found)
        if is_failed:
            with pytest.raises(MalformedFHIRResponseError, match="incomplete"):
                list(found)
        else:
            list(found)


@pytest.mark.parametrize("members", [CUT_OFF, UNREADABLE])
def test_stream_that_lacks_matches_raises_at_its_end(grant, members):
    grant.server.on("Observation", respond(bundle(observation(1)) | members))
    found = iter(grant.client.iterate("Observation"))
    assert next(found) == observation(1)
    with pytest.raises(MalformedFHIRResponseError, match="incomplete"):
        next(found)


def test_pages_are_followed_one_at_a_time(grant):
    grant.server.on(
        "Observation", respond(bundle(observation(1), next_url=f"{BASE}?p=2"))
    )
    grant.server.on("?p=2", respond(bundle()))
    grant.server.answers[f"{BASE}?p=2"] = [
        respond(bundle(observation(2), next_url=f"{BASE}?p=3"))
    ]
    grant.server.answers[f"{BASE}?p=3"] = [respond(bundle(observation(3)))]
    result = iter(grant.client.iterate("Observation"))
    assert next(result)["id"] == "o-1"
    assert len(grant.server.requests) == 1
    assert ids(result) == ["o-2", "o-3"]
    assert grant.server.bearers == ["Bearer token-1"] * 3


def test_relative_next_link_is_resolved(grant):
    grant.server.on("Observation", respond(bundle(next_url="?p=2")))
    grant.server.on("Observation?p=2", respond(bundle(observation(2))))
    result = grant.client.search("Observation")
    assert ids(result) == ["o-2"]
    assert result.first() == observation(2)


def test_next_link_with_a_space_or_an_umlaut_is_encoded(grant):
    url = "?name=de la Größe&p=%202"
    grant.server.on("Observation", respond(bundle(next_url=url)))
    encoded = "Observation?name=de%20la%20Gr%C3%B6%C3%9Fe&p=%202"
    grant.server.on(encoded, respond(bundle(observation(2))))
    assert ids(grant.client.search("Observation")) == ["o-2"]


@pytest.mark.compliance("FHIR-02", "FHIR-03")
@pytest.mark.parametrize(
    "url",
    [
        "https://other.example.org/v/r4/sim/blob/fhir?p=2",
        "http://ehr.example.org:8080/v/r4/sim/blob/fhir?p=2",
        "http://ehr.example.org/v/r4/sim/blob?p=2",
        "https://ehr.example.org/v/r4/sim/blob?p=2",
        "//other.example.org/",
        "http://[broken/",
    ],
)
def test_next_link_out_of_the_boundary_is_refused(grant, url):
    grant.server.on("Observation", respond(bundle(observation(1), next_url=url)))
    result = iter(grant.client.iterate("Observation"))
    assert next(result)["id"] == "o-1"
    with pytest.raises(BearerBoundaryError) as caught:
        next(result)
    assert len(grant.server.requests) == 1
    assert "p=2" not in str(caught.value)


def test_next_link_that_is_refused_is_named_by_its_origin(grant):
    url = "https://other.example.org:8443/fhir?p=2"
    grant.server.on("Observation", respond(bundle(next_url=url)))
    with pytest.raises(BearerBoundaryError, match=r"https://other\.example\.org:8443,"):
        grant.client.search("Observation")


@pytest.mark.parametrize("host", ["ehr.example.org", "EHR.example.org"])
def test_next_link_of_a_server_behind_a_tls_proxy_is_followed_with_https(grant, host):
    path = "v/r4/sim/blob/fhir"
    first = bundle(observation(1), next_url=f"http://{host}/{path}?p=2")
    grant.server.on("Observation", respond(first))
    grant.server.on(f"https://{host}/{path}?p=2", respond(bundle(observation(2))))
    assert ids(grant.client.search("Observation")) == ["o-1", "o-2"]
    first["link"][0]["url"] = f"http://{host}/{path}/Observation"
    pages = grant.client.iterate_pages(first)
    assert [len(page["entry"]) for page in pages] == [1, 1]


def test_next_link_beside_the_base_is_followed_where_the_boundary_is_the_origin():
    grant = Grant(boundary="origin")
    url = "https://ehr.example.org/v/r4/pages?p=2"
    grant.server.on("Observation", respond(bundle(observation(1), next_url=url)))
    grant.server.on(url, respond(bundle(observation(2))))
    assert ids(grant.client.search("Observation")) == ["o-1", "o-2"]


def test_pages_that_go_in_circles_end(grant):
    grant.server.on("Observation", respond(bundle(observation(1), next_url="?p=2")))
    grant.server.on(
        "Observation?p=2",
        respond(bundle(observation(2), next_url=f"{BASE}/Observation")),
    )
    result = iter(grant.client.iterate("Observation"))
    assert ids([next(result), next(result)]) == ["o-1", "o-2"]
    with pytest.raises(MalformedFHIRResponseError, match="loop"):
        next(result)
    assert len(grant.server.requests) == 2


def test_duplicates_across_pages_are_dropped(grant):
    first = bundle(observation(1), observation(2), next_url="?p=2")
    grant.server.on("Observation", respond(first))
    nameless = {"resourceType": "Observation"}
    second = bundle(observation(2), observation(3), nameless, nameless)
    grant.server.on("Observation?p=2", respond(second))
    found = list(grant.client.search("Observation"))
    assert found == [*(observation(n) for n in (1, 2, 3)), nameless, nameless]


def test_pages_give_matches_inclusions_and_outcomes_apart(grant):
    patient = {"resourceType": "Patient", "id": "p"}
    outcome = {"resourceType": "OperationOutcome", "issue": []}
    answer = bundle()
    answer["entry"] = [
        {"resource": observation(1), "search": {"mode": "match"}},
        {"resource": patient, "search": {"mode": "include"}},
        {"resource": outcome, "search": {"mode": "outcome"}},
        {"resource": outcome},
        {"resource": observation(2), "search": "odd"},
        {"resource": {**patient, "id": "q"}},
        {"resource": {"id": "typeless"}},
        {"fullUrl": "urn:uuid:1"},
        {"resource": "odd"},
    ]
    grant.server.on("Observation", respond(answer))
    result = grant.client.search("Observation")
    page = next(grant.client.iterate("Observation").pages())
    assert page.resources == [observation(1), observation(2), {"id": "typeless"}]
    assert page.included == [patient, {**patient, "id": "q"}]
    assert page.outcomes == result.outcomes == [outcome, outcome]
    assert page.total is None
    assert page.next_url is None
    assert page.bundle == answer
    assert repr(page) == "<SearchPage: 3 resources>"
    assert result == page.resources
    assert result.included == page.included


@pytest.mark.compliance("FHIR-04")
@pytest.mark.parametrize("members", [{}, {"entry": None, "link": None}, {"total": 0}])
def test_bundle_without_entries_is_empty(grant, members):
    empty = {"resourceType": "Bundle", "type": "searchset", **members}
    grant.server.on("Observation", respond(empty))
    result = grant.client.search("Observation")
    assert not result
    assert list(result) == []
    assert result.first() is None
    assert result.total == 0


@pytest.mark.parametrize(
    "members",
    [
        {"total": 3},
        {"entry": [{"fullUrl": "urn:uuid:1"}]},
        {"entry": [{"resource": None, "search": {"mode": "match"}}]},
        {"link": [{"relation": "next"}]},
        {"link": [{"relation": "next", "url": 5}]},
    ],
)
def test_result_of_which_nothing_can_be_read_is_not_empty(grant, members):
    grant.server.on("Observation", respond(bundle() | members))
    with pytest.raises(MalformedFHIRResponseError, match="match"):
        grant.client.search("Observation")
    with pytest.raises(MalformedFHIRResponseError, match="match"):
        list(grant.client.iterate("Observation"))


@pytest.mark.parametrize("params", [{"_summary": "count"}, {"_count": 0}])
def test_matches_can_be_counted_alone(grant, params):
    ((name, value),) = params.items()
    for query in (f"{name}={value}", f"code=x&{name}={value}"):
        grant.server.on(f"Observation?{query}", respond(bundle(total=3)))
    assert grant.client.search("Observation", params).total == 3
    assert grant.client.search("Observation", {"code": "x", **params}).total == 3


@pytest.mark.parametrize("total", ["5", None, True, 1.5])
def test_odd_total_is_none(grant, total):
    grant.server.on("Observation", respond(bundle(total=total)))
    [page] = grant.client.iterate("Observation").pages()
    assert page.total is None
    assert grant.client.search("Observation").total == 0


@pytest.mark.parametrize(
    ("members", "is_complete"),
    [
        (CUT_OFF, False),
        ({"link": [{"relation": "next", "url": ""}], "total": 9}, False),
        (UNREADABLE, False),
        ({"total": 9}, False),
        ({"total": 1}, True),
    ],
)
def test_result_that_lacks_matches_is_not_complete(grant, members, is_complete):
    first = bundle(observation(1)) | members
    grant.server.on("Observation", respond(first))
    for limit in (None, 1, 5):
        result = grant.client.search("Observation", limit=limit)
        assert (ids(result), result.is_complete) == (["o-1"], is_complete)


def test_result_stays_incomplete_on_further_pages(grant):
    first = bundle(next_url="?p=2") | UNREADABLE
    grant.server.on("Observation", respond(first))
    grant.server.on("Observation?p=2", respond(bundle(observation(2))))
    for limit in (None, 2):
        result = grant.client.search("Observation", limit=limit)
        assert (ids(result), result.is_complete) == (["o-1", "o-2"], False)


@pytest.mark.parametrize(
    "answer",
    [
        observation(1),
        {"resourceType": "Bundle", "type": "collection"},
        {"resourceType": "Bundle"},
        bundle() | {"entry": {}},
        bundle() | {"entry": ["x"]},
        bundle() | {"entry": [None]},
        bundle() | {"link": "next"},
        bundle() | {"link": [[]]},
    ],
)
def test_answer_that_is_no_searchset_is_refused(grant, answer):
    grant.server.on("Observation", respond(answer))
    with pytest.raises(MalformedFHIRResponseError):
        list(grant.client.search("Observation"))


def test_refused_page_is_an_error(grant):
    grant.server.on("Observation", respond(bundle(observation(1), next_url="?p=2")))
    grant.server.on("Observation?p=2", respond({}, 403))
    with pytest.raises(FHIRForbiddenError) as caught:
        list(grant.client.search("Observation"))
    assert str(caught.value) == "the search of Observation returned status 403"


def test_limit_asks_for_no_more_pages_than_it_needs(grant):
    first = bundle(observation(1), observation(2), next_url="?p=2")
    grant.server.on("Observation", respond(first))
    grant.server.on("Observation?p=2", respond(bundle(observation(2), observation(3))))
    some = grant.client.search("Observation", limit=2)
    assert (ids(some), some.is_complete) == (["o-1", "o-2"], False)
    assert len(grant.server.requests) == 1
    # Counted without duplicates.
    most = grant.client.search("Observation", limit=3)
    assert (ids(most), most.is_complete) == (["o-1", "o-2", "o-3"], True)
    assert len(grant.server.requests) == 3
    one = grant.client.search("Observation", limit=1)
    assert (ids(one), one.is_complete, one.total) == (["o-1"], False, 2)
    with pytest.raises(FHIRRequestError):
        grant.client.search("Observation", limit=0)


def test_what_was_included_comes_apart_and_once(grant):
    patient = {"resourceType": "Patient", "id": "p"}
    query = "_include=Observation%3Apatient"
    for path, url in [(f"Observation?{query}", "?p=2"), ("Observation?p=2", None)]:
        answer = bundle(observation(len(path)), next_url=url)
        answer["entry"].append({"resource": patient, "search": {"mode": "include"}})
        grant.server.on(path, respond(answer))
    result = grant.client.search("Observation", _include="Observation:patient")
    assert result.included == [patient]
    assert len(result) == 2
    assert len(grant.server.requests) == 2


@pytest.mark.parametrize(
    "count", [20_000, pytest.param(100_000, marks=pytest.mark.long)]
)
def test_memory_does_not_grow_with_the_number_of_pages(count):
    size = 200

    def send(request):
        page = int(request.url.partition("?p=")[2] or "0")
        numbers = range(page * size, (page + 1) * size)
        items = [{**observation(number), "text": "x" * 1000} for number in numbers]
        following = f"?p={page + 1}" if (page + 1) * size < count else None
        return respond(bundle(*items, next_url=following))

    client = Grant(send=send, on_request=None).client
    tracemalloc.start()
    try:
        assert len(list(next(client.iterate("Observation").pages()).resources)) == size
        one_page = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert sum(1 for _ in client.iterate("Observation")) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < one_page + 10 * 1024 * 1024


def test_page_is_let_go_before_the_next_one_is_asked_for():
    def find_pages() -> list[SearchPage]:
        return [each for each in gc.get_objects() if type(each) is SearchPage]

    # Other tests may have left some.
    others = find_pages()
    numbers = itertools.count()

    def fetch(url: str) -> HTTPResponse:
        assert len(find_pages()) == len(others)
        number = next(numbers)
        url = f"{BASE}/Observation?p={number + 1}"
        return respond(
            bundle(observation(number), next_url=url if number < 4 else None)
        )

    url = f"{BASE}/Observation"
    stream = SearchStream(fetch, url=url, resource_type="Observation")
    assert len(list(stream)) == 5
