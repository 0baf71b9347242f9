"""
Create, update, patch and delete, each also on a condition.

Of FHIRPath Patch, it knows the parts that tests need.

Spec: FHIR R4, "RESTful API", http://hl7.org/fhir/R4/http.html; RFC 6902; FHIR R4,
"FHIRPath Patch", http://hl7.org/fhir/R4/fhirpatch.html.
"""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from werkzeug.wrappers import Response

from django_smart.testing.simulator import fhir
from django_smart.testing.simulator.digits import load
from django_smart.testing.simulator.errors import FHIRError, build_outcome
from django_smart.testing.simulator.exchange import fhir_response

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange, Routes
    from django_smart.testing.simulator.versions import Version

__all__ = ["routes"]

Change = Callable[[dict[str, Any]], dict[str, Any]]

# ``Patient.name[0].family``; no functions and no filters.
_STEP = re.compile(r"([A-Za-z]+)(?:\[([0-9]+)\])?")


def routes(base: str) -> Routes:
    """Path, method and handler of each interaction."""
    kind = f"{base}/<type:resource_type>"
    yield kind, "POST", _create
    # Of the resource that search parameters select, or of the one with an id.
    for path in (kind, f"{kind}/<resource_id>"):
        yield path, "PUT", _update
        yield path, "PATCH", _patch
        yield path, "DELETE", _delete


def _create(
    exchange: Exchange, resource_type: str, resource_id: str | None = None
) -> Response:
    """Create a resource; a transaction chooses the id in advance."""
    access = _authorize(exchange, resource_type, "c")
    resource = _read_resource(exchange, resource_type)
    condition = exchange.request.headers.get("If-None-Exist")
    with exchange.ehr.store.lock:
        if condition is not None:
            pairs = parse_qsl(condition, keep_blank_values=True)
            if held_id := _find_one(exchange, access, resource_type, pairs, "c"):
                versions = exchange.ehr.versions.of(resource_type, held_id)
                return _answer(exchange, versions[-1], 200)
        if not access.allows({**resource, "id": ""}, "c"):
            raise fhir.insufficient("this resource is outside of what was granted")
        version = exchange.ehr.versions.put(
            resource_type, resource_id or str(uuid.uuid4()), resource, method="POST"
        )
    return _answer(exchange, version, 201)


def _update(exchange: Exchange, resource_type: str, resource_id: str = "") -> Response:
    """Replace a resource; ids are the server's to give."""
    access = _authorize(exchange, resource_type, "u")
    resource = _read_resource(exchange, resource_type)
    with exchange.ehr.store.lock:
        if not resource_id:
            resource_id = _find_one(
                exchange, access, resource_type, exchange.query, "u"
            )
            if not resource_id:
                return _create(exchange, resource_type)
            resource.setdefault("id", resource_id)
        if resource.get("id") != resource_id:
            raise FHIRError(400, "invalid", "the id in the body is another one")
        if not exchange.ehr.versions.of(resource_type, resource_id):
            raise FHIRError(405, "not-supported", "this server assigns the ids itself")
        return _replace(
            exchange, access, resource_type, resource_id, lambda _: resource
        )


def _patch(exchange: Exchange, resource_type: str, resource_id: str = "") -> Response:
    """Change parts of a resource."""
    access = _authorize(exchange, resource_type, "u")
    change = _read_patch(exchange)
    with exchange.ehr.store.lock:
        resource_id = resource_id or _find_one(
            exchange, access, resource_type, exchange.query, "u"
        )
        if not resource_id:
            raise FHIRError(404, "not-found", "nothing matches")
        return _replace(exchange, access, resource_type, resource_id, change)


def _delete(exchange: Exchange, resource_type: str, resource_id: str = "") -> Response:
    """Delete a resource, if it is there."""
    access = _authorize(exchange, resource_type, "d")
    with exchange.ehr.store.lock:
        resource_id = resource_id or _find_one(
            exchange, access, resource_type, exchange.query, "d"
        )
        held = exchange.ehr.data[resource_type].get(resource_id)
        if held is not None:
            _match(exchange, access, held, "d")
            exchange.ehr.versions.put(resource_type, resource_id, None, method="DELETE")
    return Response(status=204)


def _answer(exchange: Exchange, version: Version, status: int) -> Response:
    """Respond with the version, or with as little as the client prefers."""
    base_url = exchange.ehr.base_url
    url = f"{base_url}/{version.resource_type}/{version.resource_id}"
    headers = {
        "ETag": version.etag,
        "Location": f"{url}/_history/{version.version_id}",
    }
    prefer = exchange.request.headers.get("Prefer", "")
    if "return=minimal" in prefer:
        return Response(status=status, headers=headers)
    value = version.resource
    if "return=OperationOutcome" in prefer:
        value = build_outcome("information", "informational")
    return fhir_response(value, status=status, headers=headers)


def _replace(
    exchange: Exchange,
    access: fhir.Access,
    resource_type: str,
    resource_id: str,
    change: Change,
) -> Response:
    """Store what *change* makes of the resource that the request is about."""
    versions = exchange.ehr.versions
    held = exchange.ehr.data[resource_type].get(resource_id)
    if held is not None or exchange.request.method == "PATCH":
        held = versions.get_current(resource_type, resource_id)
        _match(exchange, access, held, "u")
    elif "if_match" in exchange.ehr.checks and "If-Match" in exchange.request.headers:
        raise FHIRError(412, "conflict", "the resource was deleted meanwhile")
    resource = change(held or {})
    if resource.get("resourceType") != resource_type:
        raise FHIRError(422, "business-rule", "the type of a resource does not change")
    # Not out of the record either.
    if not access.allows({**resource, "id": resource_id}, "u"):
        raise fhir.insufficient("this resource is outside of what was granted")
    version = versions.put(
        resource_type, resource_id, resource, method=exchange.request.method
    )
    return _answer(exchange, version, 200)


def _match(
    exchange: Exchange, access: fhir.Access, held: dict[str, Any], letter: str
) -> None:
    if not access.allows(held, letter):
        raise fhir.insufficient("this resource is outside of what was granted")
    wanted = exchange.request.headers.get("If-Match")
    if "if_match" in exchange.ehr.checks and wanted not in {
        None,
        f'W/"{held["meta"]["versionId"]}"',
    }:
        raise FHIRError(412, "conflict", "the resource was changed meanwhile")


def _authorize(exchange: Exchange, resource_type: str, letter: str) -> fhir.Access:
    return fhir.authorize_type(exchange, resource_type, letter, "this change of")


def _find_one(
    exchange: Exchange,
    access: fhir.Access,
    resource_type: str,
    pairs: list[tuple[str, str]],
    letter: str,
) -> str:
    """Return the id of the one resource that *pairs* select; empty if there is none."""
    if not pairs:
        raise FHIRError(412, "required", "a condition is needed")
    found = fhir.find(exchange, access, resource_type, pairs, letter=letter)
    if len(found) > 1:
        raise FHIRError(412, "multiple-matches", "more than one resource matches")
    return str(found[0]["id"]) if found else ""


def _read_resource(exchange: Exchange, resource_type: str) -> dict[str, Any]:
    resource = _read_json(exchange, "application/fhir+json")
    if not isinstance(resource, dict) or resource.get("resourceType") != resource_type:
        raise FHIRError(400, "structure", f"the body is no {resource_type}")
    if any(value in (None, "", [], {}) for value in resource.values()):
        raise FHIRError(422, "structure", "FHIR has no empty values")
    return resource


def _read_patch(exchange: Exchange) -> Change:
    if exchange.request.mimetype == "application/json-patch+json":
        operations = _read_json(exchange, "application/json-patch+json")
        return lambda resource: _apply_json_patch(resource, operations)
    parameters = _read_json(exchange, "application/fhir+json")
    return lambda resource: _apply_fhirpath(resource, parameters)


def _read_json(exchange: Exchange, media_type: str) -> Any:
    if exchange.request.mimetype != media_type:
        raise FHIRError(415, "not-supported", f"the body has to be {media_type}")
    try:
        return load(exchange.body)
    except ValueError:
        raise FHIRError(400, "structure", "the body is no JSON") from None


def _apply_json_patch(resource: dict[str, Any], operations: Any) -> dict[str, Any]:
    """Return a copy of *resource* after all operations."""
    if not isinstance(operations, list):
        raise FHIRError(400, "structure", "a JSON Patch is a list")
    document: dict[str, Any] = copy.deepcopy(resource)
    for operation in operations:
        try:
            _apply(document, operation)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError):
            raise FHIRError(
                422, "processing", "the patch does not fit the resource"
            ) from None
    return document


def _apply(document: dict[str, Any], operation: dict[str, Any]) -> None:
    parent, key = _go(document, operation["path"])
    match operation["op"]:
        case "add":
            _add(parent, key, operation["value"])
        case "replace":
            parent[key]
            parent[key] = operation["value"]
        case "remove":
            del parent[key]
        case "test":
            if parent[key] != operation["value"]:
                raise ValueError("another value")
        case "copy":
            source, name = _go(document, operation["from"])
            _add(parent, key, copy.deepcopy(source[name]))
        case "move":
            source, name = _go(document, operation["from"])
            value = source.pop(name)
            _add(*_go(document, operation["path"]), value)
        case _:
            raise ValueError("no such operation")


def _go(document: Any, pointer: str) -> tuple[Any, Any]:
    """Return the container of the value that *pointer* names, and its key."""
    first, *parts = pointer.split("/")
    if first or not parts:
        raise ValueError("no JSON pointer")
    parts = [part.replace("~1", "/").replace("~0", "~") for part in parts]
    for part in parts[:-1]:
        document = document[int(part) if isinstance(document, list) else part]
    last = parts[-1]
    if not isinstance(document, list):
        return document, last
    return document, len(document) if last == "-" else int(last)


def _add(parent: Any, key: Any, value: Any) -> None:
    if isinstance(parent, list):
        parent.insert(key, value)
    else:
        parent[key] = value


def _apply_fhirpath(resource: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """Translate ``add``, ``replace`` and ``delete`` at plain paths to a JSON Patch."""
    if (
        not isinstance(parameters, dict)
        or parameters.get("resourceType") != "Parameters"
    ):
        raise FHIRError(400, "structure", "a FHIRPath Patch is a Parameters resource")
    operations = []
    for parameter in parameters.get("parameter", []):
        parts = {part["name"]: _value(part) for part in parameter.get("part", [])}
        steps = [_STEP.fullmatch(step) for step in str(parts.get("path")).split(".")]
        if parameter.get("name") != "operation" or None in steps:
            raise FHIRError(422, "not-supported", "this patch is not understood")
        names = [name for step in steps if step for name in step.groups() if name]
        path = "".join(f"/{name}" for name in names[1:])
        kind = parts.get("type")
        if kind == "add":
            path += f"/{parts.get('name')}"
        op = "remove" if kind == "delete" else str(kind)
        operations.append({"op": op, "path": path, "value": parts.get("value")})
    return _apply_json_patch(resource, operations)


def _value(part: dict[str, Any]) -> Any:
    return next((one for name, one in part.items() if name.startswith("value")), None)
