"""
Bulk export: kick-off, status, files, deletion.

Spec: HL7 Bulk Data Access 2.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from django_smart.testing.simulator.digits import dump
from django_smart.testing.simulator.errors import FHIRError, build_outcome
from django_smart.testing.simulator.exchange import json_response
from django_smart.testing.simulator.fhir import authorize
from django_smart.testing.simulator.state import new_id

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange, Routes

__all__ = ["Bulk", "Export", "routes"]

_NDJSON = "application/fhir+ndjson"
_LINES_AT_ONCE = 500
_PARAMETERS = {"_outputFormat", "_since", "_type"}


@dataclass(slots=True, kw_only=True)
class Export:
    """One started export."""

    client_id: str
    time: str
    polls_left: int
    files: list[tuple[str, Sequence[Any]]] = field(default_factory=list)
    """Type and resources, or a range of those that are made up."""
    others: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Further members of the manifest: its ``deleted`` and its ``error``."""


@dataclass(slots=True, kw_only=True)
class Bulk:
    """Settings of exports, for tests to change, and the started exports."""

    polls: int = 1
    """The number of status requests that find the export running."""
    retry_after: str | None = "1"
    observations: int = 0
    """Number of generated Observations that replace the real ones."""
    lines_per_file: int = 100_000
    problems: list[str] = field(default_factory=list)
    """Problems that the next exports report."""
    requires_access_token: bool = True
    exports: dict[str, Export] = field(default_factory=dict)


def routes(base: str) -> Routes:
    """Path, method and handler of each step."""
    for path in ("$export", "Patient/$export", "Group/<group_id>/$export"):
        yield f"{base}/{path}", "GET", _start
        yield f"{base}/{path}", "POST", _start
    yield f"{base}/bulk/<export_id>", "GET", _status
    yield f"{base}/bulk/<export_id>", "DELETE", _delete
    yield f"{base}/bulk/<export_id>/<name>.ndjson", "GET", _file


def _start(exchange: Exchange, group_id: str = "all") -> Response:
    ehr = exchange.ehr
    access = authorize(exchange)
    if "respond-async" not in exchange.request.headers.get("Prefer", ""):
        raise FHIRError(400, "invalid", "an export needs Prefer: respond-async")
    if group_id != "all":
        raise FHIRError(404, "not-found", "there is no such group")
    query = _get_parameters(exchange)
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
        time=datetime.fromtimestamp(ehr.clock(), tz=UTC).isoformat(),
        polls_left=ehr.bulk.polls,
    )
    since = query.get("_since")
    for name in types:
        found = _select(exchange, name, since)
        for start in range(0, len(found), ehr.bulk.lines_per_file):
            lines = found[start : start + ehr.bulk.lines_per_file]
            export.files.append((name, lines))
    export.others["error"] = [
        build_outcome("error", "processing", diagnostics=text)
        for text in ehr.bulk.problems
    ]
    export.others["deleted"] = _find_deleted(exchange, types, since) if since else []
    export_id = new_id()
    with ehr.store.lock:
        ehr.bulk.exports[export_id] = export
    url = f"{ehr.base_url}/bulk/{export_id}"
    return Response(status=202, headers={"Content-Location": url})


def _get_parameters(exchange: Exchange) -> dict[str, str]:
    """
    From the URL of a GET, or the ``Parameters`` of a POST.

    Raises:
        FHIRError: 400, for another body, and for a parameter that is not known here.
    """
    if exchange.request.method == "GET":
        query = dict(exchange.query)
    else:
        body = exchange.json
        if not isinstance(body, dict) or body.get("resourceType") != "Parameters":
            raise FHIRError(400, "invalid", "the body should be a Parameters resource")
        query = {}
        for each in body.get("parameter", []):
            value = next(each[key] for key in each if key.startswith("value"))
            query[each["name"]] = (
                str(value).lower() if isinstance(value, bool) else str(value)
            )
    if unknown := set(query) - _PARAMETERS:
        raise FHIRError(400, "not-supported", f"not supported: {', '.join(unknown)}")
    return query


def _select(
    exchange: Exchange, resource_type: str, since: str | None
) -> Sequence[dict[str, Any]] | range:
    made_up = exchange.ehr.bulk.observations
    if resource_type == "Observation" and made_up:
        return range(made_up)
    return [
        resource
        for resource in exchange.ehr.data[resource_type].values()
        if since is None or _is_after(resource["meta"]["lastUpdated"], since)
    ]


def _find_deleted(
    exchange: Exchange, types: list[str], since: str
) -> list[dict[str, Any]]:
    ehr = exchange.ehr
    with ehr.store.lock:
        versions = ehr.versions.all()
    urls = [
        f"{version.resource_type}/{version.resource_id}"
        for version in versions
        if version.resource is None
        and version.resource_type in types
        and version.resource_id not in ehr.data[version.resource_type]
        and _is_after(version.at, since)
    ]
    return [
        {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [{"request": {"method": "DELETE", "url": url}}],
        }
        for url in dict.fromkeys(urls)
    ]


def _is_after(moment: str, since: str) -> bool:
    return datetime.fromisoformat(moment) > datetime.fromisoformat(since)


def _status(exchange: Exchange, export_id: str) -> Response:
    ehr = exchange.ehr
    export = _find(exchange, export_id)
    with ehr.store.lock:
        polls_left = export.polls_left
        export.polls_left -= 1
    if polls_left > 0:
        headers = {"X-Progress": "in progress"}
        if ehr.bulk.retry_after is not None:
            headers["Retry-After"] = ehr.bulk.retry_after
        return Response(status=202, headers=headers)
    url = f"{ehr.base_url}/bulk/{export_id}"
    manifest: dict[str, Any] = {
        "transactionTime": export.time,
        "request": f"{ehr.base_url}/$export",
        "requiresAccessToken": ehr.bulk.requires_access_token,
        "output": [
            {"type": name, "url": f"{url}/{number}.ndjson", "count": len(lines)}
            for number, (name, lines) in enumerate(export.files)
        ],
    }
    for name, lines in export.others.items():
        manifest[name] = (
            [{"type": lines[0]["resourceType"], "url": f"{url}/{name}.ndjson"}]
            if lines
            else []
        )
    return json_response(manifest)


def _file(exchange: Exchange, export_id: str, name: str) -> Response:
    export: Export | None
    if exchange.ehr.bulk.requires_access_token:
        export = _find(exchange, export_id)
    elif exchange.request.headers.get("Authorization"):
        raise FHIRError(400, "security", "a file of this kind wants no access token")
    else:
        export = exchange.ehr.bulk.exports.get(export_id)
    lines: Sequence[Any]
    if export is None:
        raise FHIRError(404, "not-found", "there is no such export")
    if name in export.others:
        lines = export.others[name]
    elif name.isdigit() and int(name) < len(export.files):
        _, lines = export.files[int(name)]
    else:
        raise FHIRError(404, "not-found", "there is no such file")
    return Response(_write(lines), content_type=_NDJSON)


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


def _write(lines: Sequence[Any]) -> Iterator[bytes]:
    # What is made up has no digits to keep, and is too much to look for them.
    is_made_up = isinstance(lines, range)
    write = json.dumps if is_made_up else dump
    pending: list[str] = []
    for resource in map(_make_up, lines) if is_made_up else lines:
        pending.append(write(resource, ensure_ascii=False) + "\n")
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
