"""The FHIR client in async code."""

from __future__ import annotations

import asyncio
import inspect
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_smart.exceptions import (
    FHIRNotFoundError,
    FHIRRequestError,
)
from django_smart.fhir import AsyncFHIRClient, FHIRClient
from tests.fhir.servers import BASE, Grant, bundle, respond

PATIENT = {"resourceType": "Patient", "id": "p-1"}


def observation(number: int) -> dict[str, object]:
    return {"resourceType": "Observation", "id": f"o-{number}"}


@pytest.fixture
def afhir(grant) -> AsyncFHIRClient:
    return AsyncFHIRClient(grant.client)


def test_calls_are_awaited_and_raise_as_ever(grant, afhir):
    grant.server.on("Patient/p-1", respond(PATIENT))
    grant.server.on("Patient/p-2", respond({}, 404))

    async def main():
        assert await afhir.read("Patient", "p-1") == PATIENT
        assert (await afhir.request("GET", "Patient/p-1")).status_code == 200
        with pytest.raises(FHIRNotFoundError):
            await afhir.read("Patient", "p-2")

    asyncio.run(main())
    assert afhir.base_url == BASE
    assert repr(afhir) == "<AsyncFHIRClient: https://ehr.example.org>"
    with pytest.raises(AttributeError):
        afhir.no_such_name  # noqa: B018


def test_search_is_awaited_and_iterate_is_for_async_for(grant, afhir):
    first = bundle(observation(1), observation(2), next_url="?p=2", total=3)
    grant.server.on("Observation", respond(first))
    grant.server.on("Observation?p=2", respond(bundle(observation(2), observation(3))))

    async def main():
        result = await afhir.search("Observation")
        assert result.total == 3
        assert [each["id"] for each in result] == ["o-1", "o-2", "o-3"]
        assert len(grant.server.requests) == 2
        stream = afhir.iterate("Observation")
        for use in (len, list, iter):
            with pytest.raises(FHIRRequestError):
                use(stream)
        assert len(grant.server.requests) == 2
        found = [each["id"] async for each in stream]
        assert found == ["o-1", "o-2", "o-3"]
        assert [len(page.resources) async for page in stream.pages()] == [2, 2]

    asyncio.run(main())
    assert repr(afhir.iterate("Observation")) == "<AsyncSearchStream: Observation>"


def test_calls_run_side_by_side_and_leave_nothing_open():
    at_once = threading.Barrier(4, timeout=60)
    left: list[int] = []

    def send(request):
        at_once.wait()  # broken, if they came one after the other
        return respond(PATIENT)

    afhir = AsyncFHIRClient(
        Grant(send=send).client, after=lambda: left.append(threading.get_ident())
    )

    async def main():
        reads = (afhir.read("Patient", "p-1") for _ in range(4))
        assert await asyncio.gather(*reads) == [PATIENT] * 4

    asyncio.run(main())
    assert len(set(left)) == 4
    assert threading.get_ident() not in left


SYNC_CALLS: dict[str, Callable[[FHIRClient], Any]] = {
    "read": lambda fhir: fhir.read("Patient", "p-1"),
    "search": lambda fhir: fhir.search("Observation"),
    "iterate": lambda fhir: next(iter(fhir.iterate("Observation"))),
    "history": lambda fhir: fhir.history("Patient"),
    "request": lambda fhir: fhir.request("GET", "Patient/p-1"),
    "session": lambda fhir: fhir.session.get(f"{BASE}/Patient/p-1"),
    "session elsewhere": lambda fhir: fhir.session.get("https://other.example.org/"),
    "stream": lambda fhir: fhir.download("Binary/1", io.BytesIO()),
    "anonymous stream": lambda fhir: fhir.stream_anonymous(f"{BASE}/file"),
    "export": lambda fhir: fhir.export(),
    "fhirpy": lambda fhir: fhir.as_fhirpy().get("Patient", "p-1"),
}


@pytest.mark.parametrize("call", SYNC_CALLS.values(), ids=SYNC_CALLS)
def test_synchronous_call_in_an_event_loop_is_refused(grant, call):
    async def main():
        with pytest.raises(FHIRRequestError, match="afhir") as caught:
            call(grant.client)
        assert caught.value.code == "fhir_sync_in_async"

    asyncio.run(main())
    assert grant.server.requests == []


def test_synchronous_call_is_refused_before_the_scopes_are_read():
    def fail():
        raise AssertionError

    grant = Grant(get_scopes=fail, on_missing_scope=fail)

    async def main():
        with pytest.raises(FHIRRequestError):
            grant.client.read("Patient", "p-1")

    asyncio.run(main())


def test_synchronous_call_is_allowed_as_django_allows_it(grant, monkeypatch):
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    grant.server.on("Patient/p-1", respond(PATIENT))

    async def main():
        return grant.client.read("Patient", "p-1")

    assert asyncio.run(main()) == PATIENT


# Not for async code: libraries, exports, records, and what methods are made of.
SYNCHRONOUS = {
    *("as_fhirclient", "as_fhirpy", "session", "stream", "stream_anonymous"),
    *("build_url", "check_scope", "is_within_boundary", "perform", "perform_read"),
    *("export", "patient", "resume_export"),
    *("send_anonymous", "send_authorized", "send_unchecked"),
}


# Nothing is sent before they are iterated, or passed to send().
PLAIN = {"batch", "iterate", "iterate_pages", "transaction"}


def test_every_method_is_there_to_be_awaited():
    names = {name for name in dir(FHIRClient) if not name.startswith("_")}
    assert names - set(dir(AsyncFHIRClient)) == SYNCHRONOUS
    for name in names - SYNCHRONOUS - PLAIN:
        assert inspect.iscoroutinefunction(getattr(AsyncFHIRClient, name)), name


@pytest.mark.parametrize("kind", ["batch", "transaction"])
def test_batch_is_sent_by_awaiting(grant, afhir, kind):
    entry = {"response": {"status": "200"}, "resource": PATIENT}
    answer = {
        "resourceType": "Bundle",
        "type": f"{kind}-response",
        "entry": [entry, {"response": {"status": "204"}}],
    }
    grant.server.on(BASE, respond(answer))

    async def main():
        batch = getattr(afhir, kind)()
        batch.read("Patient", "p-1")
        batch.delete("Patient", "p-2")
        assert len(batch) == 2
        with pytest.raises(FHIRRequestError, match="afhir"):
            batch.send()
        return await afhir.send(batch)

    first, second = asyncio.run(main())
    assert (first.get(), second.status_code) == (PATIENT, 204)


def test_operation_is_awaited(grant, afhir):
    grant.server.on("Patient/p-1/$match?x=1", respond(PATIENT))

    async def main():
        answer = await afhir.operation("match", "Patient", "p-1", x=1)
        assert answer == PATIENT

    asyncio.run(main())
