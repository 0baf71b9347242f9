"""The FHIR client in async code."""

from __future__ import annotations

import asyncio
import threading

import pytest

from django_smart.exceptions import FHIRNotFoundError
from django_smart.fhir import AsyncFHIRClient
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


def test_search_is_for_async_for(grant, afhir):
    first = bundle(observation(1), observation(2), next_url="?p=2", total=3)
    grant.server.on("Observation", respond(first))
    grant.server.on("Observation?p=2", respond(bundle(observation(2), observation(3))))

    async def main():
        result = afhir.search("Observation")
        assert grant.server.requests == []
        assert await result.first() == observation(1)
        assert await result.total() == 3
        assert (await result.bundle())["total"] == 3
        assert [each async for each in result.limit(0)] == []
        assert [each async for each in result.limit(2)] == [
            observation(1),
            observation(2),
        ]
        assert len(grant.server.requests) == 1
        found = [each["id"] async for each in result]
        assert found == ["o-1", "o-2", "o-3"]
        assert [len(page.resources) async for page in result.pages()] == [2, 2]

    asyncio.run(main())
    assert repr(afhir.search("Observation")) == "<AsyncSearchResult: Observation>"


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
