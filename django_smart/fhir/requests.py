"""Reads an HTTP request, or an entry of a batch, as an interaction of FHIR."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.interactions import BUNDLES, FHIR_JSON, JSON_PATCH, Interaction
from django_smart.fhir.json import load_json
from django_smart.fhir.messages import validate_id, validate_resource_type
from django_smart.protocol.json import parse_json

__all__ = [
    "MAX_DEPTH",
    "iter_parameters",
    "parse_body",
    "parse_entry",
    "parse_interaction",
    "parse_query",
    "write_query",
]

_MAX_PARAMETERS = 100
#: Of JSON: a Questionnaire has groups in groups, each of which is two levels.
MAX_DEPTH = 200
_OPERATION = re.compile(r"\$[A-Za-z][A-Za-z0-9._\-]{0,127}")
_CHANGES = {"ifMatch": "If-Match", "ifNoneMatch": "If-None-Match"}
# Of an entry.  None of a read: that another's resource did not change is also news.
_CONDITIONS = {
    "DELETE": _CHANGES,
    "PATCH": _CHANGES,
    "POST": {"ifNoneExist": "If-None-Exist"},
    "PUT": _CHANGES,
}
# How many parts at the end of a path are neither type nor id.
_SPECIAL = {
    "capabilities": 1,
    "history-instance": 1,
    "history-system": 1,
    "history-type": 1,
    "operation": 1,
    "vread": 2,
}


def parse_interaction(
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    media_type: str = FHIR_JSON,
) -> Interaction:
    """
    Read an HTTP request below the base as an interaction of FHIR.

    Args:
        path: with the query; one slash at its end is left out.
        body: a resource or JSON Patch as Python has it, or the bytes of a form.

    Raises:
        FHIRRequestError: it is none, or writes a resource of another type.
    """
    place, mark, query = path.partition("?")
    place = place.removesuffix("/")
    parts = place.split("/") if place else []
    name = _find_name("GET" if method == "HEAD" else method, parts, body)
    special = _SPECIAL.get(name, 0) + (name == "search" and method == "POST")
    of_type = parts[: len(parts) - special]
    if name == "vread":
        validate_id(parts[3])
    for number, part in enumerate(of_type):
        (validate_id if number == 1 else validate_resource_type)(part)
    resource_type = of_type[-1 if len(of_type) == 3 else 0] if of_type else ""
    is_resource = (
        isinstance(body, Mapping) and body.get("resourceType") == resource_type
    )
    if name in {"create", "update"} and not is_resource:
        raise FHIRRequestError("The resource has a different type.")
    pairs = parse_query(query, limit=_MAX_PARAMETERS)
    return Interaction(
        name=name,
        method="GET" if method == "HEAD" else method,
        path=f"{place}?{write_query(pairs)}" if mark and pairs else place,
        resource_type=resource_type,
        id=of_type[1] if len(of_type) == 2 else "",
        headers=headers or {},
        body=body,
        media_type=media_type,
    )


def _find_name(method: str, parts: list[str], body: Any) -> str:
    last = parts[-1] if parts else ""
    number = len(parts)
    if last.startswith("$") and number <= 3 and method in {"GET", "POST"}:
        if not _OPERATION.fullmatch(last):
            raise FHIRRequestError("This is not a valid operation name.")
        return "operation"
    match method, number:
        case "GET", 1 if last == "metadata":
            return "capabilities"
        case "GET", (1 | 2 | 3) if last == "_history":
            return ("history-system", "history-type", "history-instance")[number - 1]
        case "GET", 4 if parts[2] == "_history":
            return "vread"
        case ("GET", 1 | 3) | ("POST", 2 | 4) if (last == "_search") == (
            method == "POST"
        ):
            return "search"
        case "GET", 2:
            return "read"
        case "POST", 0:
            kind = str(body.get("type")) if isinstance(body, Mapping) else ""
            if kind in BUNDLES:
                return kind
        case "POST", 1:
            return "create"
        case (("PUT" | "PATCH" | "DELETE"), (1 | 2)):
            return {"PUT": "update", "PATCH": "patch"}.get(method, "delete")
    raise FHIRRequestError(f"{method} of this path is not a FHIR interaction.")


def write_query(pairs: list[tuple[str, str]]) -> str:
    """Write them so that every server reads the same."""
    return urlencode(pairs, quote_via=quote, safe="")


def parse_query(text: str, *, limit: int | None = None) -> list[tuple[str, str]]:
    """Read the parameters of a URL or a form."""
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=limit)
    except ValueError:
        raise FHIRRequestError("There are too many parameters.") from None


def iter_parameters(body: Any) -> Iterator[tuple[str, str]]:
    """
    Yield each parameter of a ``Parameters``, at any depth, as if it were in a URL.

    Raises:
        FHIRRequestError: its parameters are no list of objects.
    """
    lists = []
    if isinstance(body, Mapping) and body.get("resourceType") == "Parameters":
        lists.append(body.get("parameter", []))
    for found in lists:
        if not isinstance(found, list) or not all(
            isinstance(one, Mapping) for one in found
        ):
            raise FHIRRequestError("The parameters are not a list of objects.")
        for one in found:
            values = [value for key, value in one.items() if key.startswith("value")]
            for value in values or [""]:
                told = (
                    value.get("reference", "") if isinstance(value, Mapping) else value
                )
                yield str(one.get("name")), str(told)
            lists.append(one.get("part", []))


def parse_entry(entry: Any) -> Interaction:
    """
    Read an entry of a batch or transaction.

    Raises:
        FHIRRequestError: it is no interaction, or a Bundle again.
    """
    request = entry.get("request") if isinstance(entry, Mapping) else None
    if not isinstance(request, Mapping):
        raise FHIRRequestError("An entry has no request.")
    method, url = str(request.get("method")), str(request.get("url"))
    headers = {
        header: str(request[name])
        for name, header in _CONDITIONS.get(method, {}).items()
        if request.get(name) is not None
    }
    body: Any = None
    media_type = FHIR_JSON
    if method in {"PATCH", "POST", "PUT"}:
        body = entry.get("resource")
    is_binary = isinstance(body, Mapping) and body.get("resourceType") == "Binary"
    if is_binary and method == "PATCH":
        body, media_type = _parse_patch(body.get("data")), JSON_PATCH
    asked = parse_interaction(
        method, url, headers=headers, body=body, media_type=media_type
    )
    if asked.name in BUNDLES:
        raise FHIRRequestError("A batch entry cannot be a batch.")
    return asked


def _parse_patch(data: object) -> list[Any]:
    """Read the JSON Patch in a Binary, as any server would."""
    try:
        # FHIR allows spaces between the characters.
        text = base64.b64decode("".join(str(data).split()), validate=True)
    except ValueError:
        raise FHIRRequestError("The patch of an entry is not base64.") from None
    patch = parse_body(text, what="patch of an entry")
    if not isinstance(patch, list):
        raise FHIRRequestError("The patch of an entry is not a list.")
    return patch


def parse_body(body: bytes, *, what: str) -> Any:
    """Read the JSON of a request strictly, with the digits of its numbers."""
    parse_json(body, error=FHIRRequestError, what=what, max_depth=MAX_DEPTH)
    return load_json(body)
