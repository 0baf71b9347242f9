"""
Bulk export: kick-off, status, files, deletion.

Spec: HL7 Bulk Data Access 2.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from django_smart.testing.simulator.errors import FHIRError
from django_smart.testing.simulator.exchange import json_response
from django_smart.testing.simulator.fhir import Access, authorize
from django_smart.testing.simulator.state import new_id

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["Bulk", "Export", "routes"]

_NDJSON = "application/fhir+ndjson"
_LINES_AT_ONCE = 500


@dataclass(slots=True, kw_only=True)
class Export:
    """One export that was begun."""

    client_id: str
    access: Access
    types: list[str]
    polls_left: int
    time: str
    files: list[tuple[str, int, int]] = field(default_factory=list)
    """Type, first line, line after the last."""


@dataclass(slots=True, kw_only=True)
class Bulk:
    """How exports go, for tests to set, and those that were begun."""

    polls: int = 1
    """How often the status is asked for in vain."""
    retry_after: str | None = "1"
    observations: int = 0
    """So many made-up Observations in place of the real ones."""
    lines_per_file: int = 100_000
    requires_access_token: bool = True
    exports: dict[str, Export] = field(default_factory=dict)


def routes(base: str) -> Iterator[tuple[str, str, Callable[..., Response]]]:
    """Path, method and handler of each step."""
    for path in ("$export", "Patient/$export", "Group/<group_id>/$export"):
        yield f"{base}/{path}", "GET", _start
    yield f"{base}/bulk/<export_id>", "GET", _status
    yield f"{base}/bulk/<export_id>", "DELETE", _delete
    yield f"{base}/bulk/<export_id>/<int:number>.ndjson", "GET", _file


def _start(exchange: Exchange, group_id: str = "all") -> Response:
    ehr = exchange.ehr
    access = authorize(exchange)
    if "respond-async" not in exchange.request.headers.get("Prefer", ""):
        raise FHIRError(400, "invalid", "an export needs Prefer: respond-async")
    if group_id != "all":
        raise FHIRError(404, "not-found", "there is no such group")
    query = dict(exchange.query)
    readable = [
        name
        for name in ehr.data
        if any(s.level == "system" and s.applies_to(name, "r") for s in access.scopes)
    ]
    types = [name for name in query.get("_type", "").split(",") if name] or readable
    if not types or set(types) - set(readable):
        raise FHIRError(403, "forbidden", "no system scope for reading these types")
    export = Export(
        client_id=exchange.client_id or "",
        access=access,
        types=types,
        polls_left=ehr.bulk.polls,
        time=datetime.fromtimestamp(ehr.clock(), tz=UTC).isoformat(),
    )
    for name in types:
        count = _count(exchange, name)
        for start in range(0, count, ehr.bulk.lines_per_file):
            end = min(count, start + ehr.bulk.lines_per_file)
            export.files.append((name, start, end))
    export_id = new_id()
    with ehr.store.lock:
        ehr.bulk.exports[export_id] = export
    url = f"{ehr.base_url}/bulk/{export_id}"
    return Response(status=202, headers={"Content-Location": url})


def _status(exchange: Exchange, export_id: str) -> Response:
    ehr = exchange.ehr
    export = _find(exchange, export_id)
    with ehr.store.lock:
        is_ready = export.polls_left <= 0
        export.polls_left -= 1
    if not is_ready:
        headers = {"X-Progress": "in progress"}
        if ehr.bulk.retry_after is not None:
            headers["Retry-After"] = ehr.bulk.retry_after
        return Response(status=202, headers=headers)
    return json_response(
        {
            "transactionTime": export.time,
            "request": f"{ehr.base_url}/$export",
            "requiresAccessToken": ehr.bulk.requires_access_token,
            "output": [
                {
                    "type": name,
                    "url": f"{ehr.base_url}/bulk/{export_id}/{number}.ndjson",
                    "count": end - start,
                }
                for number, (name, start, end) in enumerate(export.files)
            ],
            "error": [],
        }
    )


def _file(exchange: Exchange, export_id: str, number: int) -> Response:
    if exchange.ehr.bulk.requires_access_token:
        export = _find(exchange, export_id)
    elif exchange.request.headers.get("Authorization"):
        raise FHIRError(400, "security", "a file of this kind wants no access token")
    else:
        export = exchange.ehr.bulk.exports[export_id]
    if number >= len(export.files):
        raise FHIRError(404, "not-found", "there is no such file")
    name, start, end = export.files[number]
    lines = _lines(exchange, name, start, end)
    return Response(lines, content_type=_NDJSON)


def _delete(exchange: Exchange, export_id: str) -> Response:
    _find(exchange, export_id)
    with exchange.ehr.store.lock:
        del exchange.ehr.bulk.exports[export_id]
    return Response(status=202)


def _find(exchange: Exchange, export_id: str) -> Export:
    authorize(exchange)
    export = exchange.ehr.bulk.exports.get(export_id)
    if export is None or export.client_id != exchange.client_id:
        raise FHIRError(404, "not-found", "there is no such export")
    return export


def _count(exchange: Exchange, resource_type: str) -> int:
    made_up = exchange.ehr.bulk.observations
    if resource_type == "Observation" and made_up:
        return made_up
    return len(exchange.ehr.data[resource_type])


def _lines(
    exchange: Exchange, resource_type: str, start: int, end: int
) -> Iterator[bytes]:
    ehr = exchange.ehr
    is_made_up = resource_type == "Observation" and ehr.bulk.observations
    resources: Iterator[dict[str, Any]] = (
        map(_make_up, range(start, end))
        if is_made_up
        else iter(list(ehr.data[resource_type].values())[start:end])
    )
    pending: list[str] = []
    for resource in resources:
        pending.append(json.dumps(resource, ensure_ascii=False) + "\n")
        if len(pending) == _LINES_AT_ONCE:
            yield "".join(pending).encode()
            pending = []
    yield "".join(pending).encode()


def _make_up(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"made-up-{number}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4"}]},
        "valueQuantity": {"value": number % 100 / 10, "unit": "%"},
    }
