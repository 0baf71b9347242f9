"""Chains of pages that a server makes too long, or endless."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from django_smart.exceptions import (
    MalformedFHIRResponseError,
    TooManyResultsError,
)
from django_smart.fhir import FHIRClient, paging
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from tests.fhir.servers import BASE, Grant, bundle, respond

OTHER = {"resourceType": "Provenance", "id": "x"}


class EndlessServer:
    """Each page has a next one; *make_page* makes what is on the page of a number."""

    def __init__(self, make_page: Callable[[int], list[dict[str, Any]]]) -> None:
        self.make_page = make_page
        self.last_page = 500
        self.type = "searchset"
        self.count = 0

    def __call__(self, request: HTTPRequest) -> HTTPResponse:
        self.count += 1
        found = re.search(r"page=(\d+)", request.url)
        number = int(found[1]) if found else 0
        path = request.url.partition("?")[0].removeprefix(f"{BASE}/")
        next_url = f"{path}?page={number + 1}" if number < self.last_page else None
        page = bundle(
            *self.make_page(number),
            next_url=next_url and f"{BASE}/{next_url}",
            type=self.type,
        )
        return respond(page)


def observation(number: int) -> dict[str, Any]:
    return {"resourceType": "Observation", "id": f"o-{number}"}


USES: list[Callable[[FHIRClient], object]] = [
    lambda fhir: fhir.search("Observation"),
    lambda fhir: fhir.search("Observation", limit=5),
    lambda fhir: list(fhir.iterate("Observation")),
    lambda fhir: list(fhir.iterate("Observation").pages()),
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("others", [[], [OTHER]])
def test_endless_pages_without_a_match_end_with_an_error(use, others):
    server = EndlessServer(lambda _: others)
    with pytest.raises(MalformedFHIRResponseError, match="without a new match"):
        use(Grant(send=server).client)
    assert server.count <= 51


@pytest.mark.parametrize(
    "use",
    [
        lambda fhir: fhir.search("Observation"),
        lambda fhir: fhir.search("Observation", limit=5_000),
        lambda fhir: fhir.patient("p1").everything(),
        lambda fhir: fhir.history("Observation"),
    ],
)
def test_result_of_few_matches_does_not_fill_the_memory(use):
    held = {"resourceType": "Basic", "language": "x" * 4 * 1024**2}
    server = EndlessServer(
        lambda number: [observation(number), {**held, "id": f"b-{number}"}]
    )
    server.type = "history" if "history" in use.__code__.co_names else "searchset"
    with pytest.raises(TooManyResultsError, match="more than 100 MiB"):
        use(Grant(send=server).client)
    assert server.count == 25


def test_endless_empty_pages_of_a_history_and_of_a_record_end():
    server = EndlessServer(lambda _: [])
    fhir = Grant(send=server).client
    with pytest.raises(MalformedFHIRResponseError, match="without a new match"):
        fhir.patient("p-1").everything()
    server.type = "history"
    with pytest.raises(MalformedFHIRResponseError, match="without a new match"):
        fhir.history()
    assert server.count <= 102


def test_some_empty_pages_are_passed_over():
    server = EndlessServer(lambda n: [observation(n)] if n % 40 == 0 else [])
    server.last_page = 120
    fhir = Grant(send=server).client
    found = [resource["id"] for resource in fhir.search("Observation")]
    assert found == ["o-0", "o-40", "o-80", "o-120"]


def test_pages_that_repeat_one_match_end_too():
    server = EndlessServer(lambda _: [observation(1)])
    server.last_page = 12_000
    for use in USES:
        server.count = 0
        with pytest.raises(MalformedFHIRResponseError, match="without a new match"):
            use(Grant(send=server).client)
        assert server.count == 51


def test_pages_without_end_end_with_an_error():
    server = EndlessServer(lambda number: [observation(number)])
    server.last_page = 12_000
    with pytest.raises(MalformedFHIRResponseError, match="10000 pages"):
        list(Grant(send=server).client.iterate("Observation"))
    assert server.count == 10_000
    server.make_page = lambda number: [OTHER] if number % 2 else [observation(number)]
    server.count = 0
    with pytest.raises(MalformedFHIRResponseError, match="1000 pages"):
        Grant(send=server).client.search("Observation")
    assert server.count == 1_000


def test_a_thousand_pages_are_read():
    server = EndlessServer(lambda n: [observation(n)])
    server.last_page = 999
    assert len(list(Grant(send=server).client.search("Observation"))) == 1000


class Clock:
    """Each page takes some seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(paging, "monotonic", lambda: self.now)

    def make_slow(self, server: EndlessServer, seconds: float) -> None:
        make_page = server.make_page

        def make_slowly(number: int) -> list[dict[str, Any]]:
            self.now += seconds
            return make_page(number)

        server.make_page = make_slowly


def test_slow_pages_end_after_an_hour(monkeypatch):
    clock = Clock(monkeypatch)
    server = EndlessServer(lambda n: [observation(n)])
    clock.make_slow(server, 19)
    with pytest.raises(MalformedFHIRResponseError, match="3600 s"):
        list(Grant(send=server).client.iterate("Observation"))
    assert clock.now <= 3620
    clock.now = 0
    with pytest.raises(MalformedFHIRResponseError, match="300 s"):
        Grant(send=server).client.search("Observation")
    assert clock.now <= 320


def test_time_that_the_caller_takes_is_not_counted(monkeypatch):
    clock = Clock(monkeypatch)
    server = EndlessServer(lambda n: [observation(n)] if n % 2 else [])
    server.last_page = 99
    for _ in Grant(send=server).client.iterate("Observation"):
        clock.now += 3600
    assert server.count == 100


@pytest.mark.parametrize(
    "use",
    [
        *USES[2:],
        lambda fhir: list(
            fhir.iterate_pages(bundle(type="history", next_url=f"{BASE}?page=1"))
        ),
    ],
)
def test_endless_pages_with_the_same_matches_end_with_an_error(use):
    versions = {"meta": {"versionId": "1"}}
    server = EndlessServer(lambda number: [{**observation(number % 2), **versions}])
    client = Grant(send=server).client
    if use is not USES[2] and use is not USES[3]:
        server.type = "history"
    with pytest.raises(MalformedFHIRResponseError, match="without a new match"):
        use(client)
    assert server.count <= 53


@pytest.mark.parametrize(
    "query", ["", "_count=0", "_total=estimate", "x=1&_total=none"]
)
@pytest.mark.parametrize("total", [1, 23, None])
def test_result_with_fewer_matches_than_the_total_is_incomplete(grant, query, total):
    found = bundle(observation(1), **({} if total is None else {"total": total}))
    path = f"Observation?{query}" if query else "Observation"
    grant.server.on(path, respond(found))
    params = [part.split("=") for part in query.split("&") if part]
    result = grant.client.search("Observation", dict(params))
    is_missing = total == 23 and query in {"", "x=1&_total=none"}
    assert result.is_complete is not is_missing
    assert len(result.outcomes) == is_missing
    if is_missing:
        [issue] = result.outcomes[0]["issue"]
        assert (issue["severity"], issue["code"]) == ("warning", "incomplete")
        assert issue["diagnostics"] == "The server reported 23 matches and sent 1"


def test_total_of_a_record_is_not_compared(grant):
    grant.server.on(
        "Patient/p-1/$everything", respond(bundle(observation(1), total=23))
    )
    result = grant.client.patient("p-1").everything()
    assert (result.is_complete, result.outcomes) == (True, [])
