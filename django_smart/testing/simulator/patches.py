"""
JSON Patch, and the parts of FHIRPath Patch that tests need.

Spec: RFC 6902; FHIR R4, "FHIRPath Patch", http://hl7.org/fhir/R4/fhirpatch.html.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from django_smart.testing.simulator.errors import FHIRError

__all__ = ["apply_fhirpath", "apply_json_patch"]

# ``Patient.name[0].family``; no functions and no filters.
_STEP = re.compile(r"([A-Za-z]+)(?:\[([0-9]+)\])?")


def apply_json_patch(resource: dict[str, Any], operations: Any) -> dict[str, Any]:
    """
    Return a copy of *resource* after all operations.

    Raises:
        FHIRError: 400 for what is no patch, 422 where it does not fit the resource.
    """
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


def apply_fhirpath(resource: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """
    Return a copy of *resource* after ``add``, ``replace`` and ``delete`` at plain
    paths.

    Raises:
        FHIRError: 400 for what is no patch, 422 where it does not fit the resource.
    """
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
    return apply_json_patch(resource, operations)


def _value(part: dict[str, Any]) -> Any:
    return next((one for name, one in part.items() if name.startswith("value")), None)
