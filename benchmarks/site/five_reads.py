"""A page of a launch with five FHIR reads, with each client."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from django.http import HttpRequest, HttpResponse

__all__ = ["with_async_client", "with_client", "with_httpx"]

_READS = range(5)


def with_client(request: HttpRequest) -> HttpResponse:
    """One after the other."""
    smart = request.smart  # type: ignore[attr-defined]  # the middleware's
    return _show([smart.fhir.read("Patient", smart.patient_id) for _ in _READS])


async def with_async_client(request: HttpRequest) -> HttpResponse:
    """All at once."""
    smart = await request.asmart()  # type: ignore[attr-defined]  # the middleware's
    reads = (smart.afhir.read("Patient", smart.patient_id) for _ in _READS)
    return _show(await asyncio.gather(*reads))


async def with_httpx(request: HttpRequest) -> HttpResponse:
    """All at once, with nothing but the launch's token and URL."""
    smart = await request.asmart()  # type: ignore[attr-defined]  # the middleware's
    url = f"{smart.server.base_url}/Patient/{smart.patient_id}"
    headers = {
        "Authorization": f"Bearer {smart.grant.access_token}",
        "Accept": "application/fhir+json",
    }
    reads = (_get_httpx().get(url, headers=headers) for _ in _READS)
    return _show([each.json() for each in await asyncio.gather(*reads)])


@cache
def _get_httpx() -> Any:
    import httpx

    return httpx.AsyncClient(timeout=20)


def _show(patients: list[dict[str, Any]]) -> HttpResponse:
    return HttpResponse(" ".join(each["name"][0]["family"] for each in patients))
