"""
Versions: vread, and history on three levels.

Spec: FHIR R4, "RESTful API", http://hl7.org/fhir/R4/http.html#history.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from werkzeug.wrappers import Response

from django_smart.testing.simulator import fhir
from django_smart.testing.simulator.errors import FHIRError
from django_smart.testing.simulator.exchange import fhir_response

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange, Routes
    from django_smart.testing.simulator.versions import Version

__all__ = ["routes"]

_STATUS = {"POST": "201 Created", "DELETE": "204 No Content"}


def routes(base: str) -> Routes:
    """Path, method and handler of each interaction."""
    kind = f"{base}/<type:resource_type>"
    yield f"{base}/_history", "GET", _system
    yield f"{kind}/_history", "GET", _type
    yield f"{kind}/<resource_id>/_history", "GET", _instance
    yield f"{kind}/<resource_id>/_history/<version_id>", "GET", _vread


def _vread(
    exchange: Exchange, resource_type: str, resource_id: str, version_id: str
) -> Response:
    for version in _versions(exchange, resource_type, resource_id):
        if version.version_id == version_id:
            if version.resource is None:
                raise FHIRError(410, "deleted", "this version is the deletion")
            return fhir_response(version.resource, headers={"ETag": version.etag})
    raise FHIRError(404, "not-found", "there is no such version")


def _instance(exchange: Exchange, resource_type: str, resource_id: str) -> Response:
    versions = _versions(exchange, resource_type, resource_id)
    return _answer(exchange, versions[::-1])


def _type(exchange: Exchange, resource_type: str) -> Response:
    access = fhir.authorize_type(exchange, resource_type, "s", "the history of")
    return _answer(exchange, _visible(exchange, access, resource_type))


def _system(exchange: Exchange) -> Response:
    access = fhir.authorize(exchange)
    return _answer(exchange, _visible(exchange, access, None))


def _visible(
    exchange: Exchange, access: fhir.Access, resource_type: str | None
) -> list[Version]:
    versions = exchange.ehr.versions
    return [
        version
        for version in versions.all(resource_type)
        if _is_visible(
            access, versions.of(version.resource_type, version.resource_id), "s"
        )
    ]


def _versions(
    exchange: Exchange, resource_type: str, resource_id: str
) -> list[Version]:
    access = fhir.authorize_type(exchange, resource_type, "r", "reading")
    versions = exchange.ehr.versions.of(resource_type, resource_id)
    if not versions:
        raise FHIRError(404, "not-found", f"there is no {resource_type}/{resource_id}")
    if not _is_visible(access, versions, "r"):
        raise fhir.insufficient("this resource is outside of what was granted")
    return versions


def _is_visible(access: fhir.Access, versions: list[Version], letter: str) -> bool:
    """Return whether the token may see the last version that has content."""
    resources = [one.resource for one in versions if one.resource is not None]
    return bool(resources) and access.allows(resources[-1], letter)


def _answer(exchange: Exchange, versions: list[Version]) -> Response:
    """Return one page; ``_offset`` is this server's own parameter for the next one."""
    query = dict(exchange.query)
    if "_since" in query:
        try:
            since = datetime.fromisoformat(query["_since"])
            if since.tzinfo is None:
                raise ValueError
        except ValueError:
            raise FHIRError(400, "value", "_since is no instant") from None
        versions = [one for one in versions if datetime.fromisoformat(one.at) >= since]
    count, offset = (
        int(query[name]) if query.get(name, "").isdecimal() else default
        for name, default in (("_count", 50), ("_offset", 0))
    )
    url = f"{exchange.ehr.origin}{exchange.request.path}"
    links = [{"relation": "self", "url": f"{url}?{urlencode(query)}"}]
    if offset + count < len(versions):
        further = {**query, "_offset": str(offset + count)}
        links.append({"relation": "next", "url": f"{url}?{urlencode(further)}"})
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "type": "history",
        "total": len(versions),
        "link": links,
    }
    if page := versions[offset : offset + count]:
        bundle["entry"] = [_entry(exchange, one) for one in page]
    return fhir_response(bundle)


def _entry(exchange: Exchange, version: Version) -> dict[str, Any]:
    path = f"{version.resource_type}/{version.resource_id}"
    entry: dict[str, Any] = {
        "fullUrl": f"{exchange.ehr.base_url}/{path}",
        "request": {
            "method": version.method,
            "url": version.resource_type if version.method == "POST" else path,
        },
        "response": {
            "status": _STATUS.get(version.method, "200 OK"),
            "etag": version.etag,
            "lastModified": version.at,
        },
    }
    if version.resource is not None:
        entry["resource"] = version.resource
    return entry
