"""What each interaction of the FHIR REST API sends, conditions included."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import validate_id, validate_resource_type
from django_smart.fhir.parameters import SearchParams, build_search_query

__all__ = [
    "BUNDLES",
    "FHIR_JSON",
    "JSON_PATCH",
    "WRITES",
    "Interaction",
    "as_posted",
    "build_condition",
    "build_create",
    "build_delete",
    "build_etag",
    "build_headers",
    "build_history",
    "build_operation",
    "build_patch",
    "build_read",
    "build_search",
    "build_update",
    "refuse_part",
]

_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
_RETURNS = frozenset({"minimal", "representation", "OperationOutcome"})
_HANDLINGS = frozenset({"strict", "lenient"})


def build_etag(version: str | Mapping[str, Any]) -> str:
    """
    ETag of a version: of its id, of a resource that has one, or an ETag as it is.

    Raises:
        FHIRRequestError: none of these.
    """
    if isinstance(version, Mapping):
        meta = version.get("meta")
        version = meta.get("versionId", "") if isinstance(meta, Mapping) else ""
        if not version:
            raise FHIRRequestError("The resource has no version (meta.versionId).")
    if isinstance(version, str) and _ETAG.fullmatch(version):
        return version
    return f'W/"{validate_id(version)}"'


def build_condition(params: SearchParams) -> str:
    query = build_search_query(params, {})
    if not query:
        raise FHIRRequestError("A condition without parameters matches everything.")
    return query


def build_headers(
    prefer: str = "", if_match: str | Mapping[str, Any] | None = None
) -> dict[str, str]:
    headers = {}
    if prefer in _RETURNS:
        headers["Prefer"] = f"return={prefer}"
    elif prefer in _HANDLINGS:
        headers["Prefer"] = f"handling={prefer}"
    elif prefer:
        names = ", ".join(sorted(_RETURNS | _HANDLINGS))
        raise FHIRRequestError(f"preference must be one of {names}.")
    if if_match is not None:
        headers["If-Match"] = build_etag(if_match)
    return headers


#: Names of interactions: those with entries, and those that change one resource.
BUNDLES = frozenset({"batch", "transaction"})
WRITES = frozenset({"create", "delete", "patch", "update"})
FHIR_JSON = "application/fhir+json"
JSON_PATCH = "application/json-patch+json"

_PATCH_OPERATIONS = frozenset({"add", "remove", "replace", "move", "copy", "test"})
_OPERATION = re.compile(r"\$?([A-Za-z][A-Za-z0-9._-]{0,127})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Interaction:
    """
    One request of FHIR's REST interface.

    Attributes:
        name: as scopes and the audit trail call it: ``read``, ``create``, …
        method: of HTTP.
        path: below the base, with the query.
        resource_type: empty where it is about the whole server.
        id: of the resource that has to come back; empty if any may.
        headers: conditions and preferences.
        body: a resource, a JSON Patch, or bytes as they are sent.
        media_type: of the body.
    """

    name: str
    method: str
    path: str = field(repr=False)
    resource_type: str = ""
    id: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Any = field(default=None, repr=False)
    media_type: str = field(default=FHIR_JSON, repr=False)

    def as_entry(self) -> dict[str, Any]:
        """Write it as an entry of a batch or transaction, without ``fullUrl``."""
        request = {"method": self.method, "url": self.path}
        for header, name in (
            ("If-Match", "ifMatch"),
            ("If-None-Match", "ifNoneMatch"),
            ("If-None-Exist", "ifNoneExist"),
        ):
            if header in self.headers:
                request[name] = self.headers[header]
        entry: dict[str, Any] = {"request": request}
        if self.media_type == JSON_PATCH:
            entry["resource"] = {
                "resourceType": "Binary",
                "contentType": JSON_PATCH,
                "data": base64.b64encode(dump_json(self.body)).decode(),
            }
        elif self.body is not None:
            entry["resource"] = self.body
        return entry


def build_read(
    resource_type: str,
    id: str,  # noqa: A002  # FHIR's own name
    *,
    version_id: str | None = None,
    summary: str = "",
    elements: Sequence[str] = (),
) -> Interaction:
    """Read a resource, or one version of it."""
    path = f"{validate_resource_type(resource_type)}/{validate_id(id)}"
    if version_id is not None:
        path += f"/_history/{validate_id(version_id)}"
    params = []
    if summary:
        params.append(("_summary", summary))
    if elements:
        if isinstance(elements, str):
            raise FHIRRequestError("elements must be a list of names, not a string.")
        params.append(("_elements", ",".join(elements)))
    return Interaction(
        name="read" if version_id is None else "vread",
        method="GET",
        path=_with_query(path, params),
        resource_type=resource_type,
        id=id,
    )


def build_create(
    resource: Mapping[str, Any],
    *,
    if_none_exist: SearchParams | None = None,
    prefer: str = "",
) -> Interaction:
    """Create a resource, unless one matches the search *if_none_exist*."""
    headers = build_headers(prefer)
    if if_none_exist is not None:
        headers["If-None-Exist"] = build_condition(if_none_exist)
    resource_type = _get_type(resource)
    return Interaction(
        name="create",
        method="POST",
        path=resource_type,
        resource_type=resource_type,
        headers=headers,
        body=resource,
    )


def build_update(
    resource: Mapping[str, Any],
    *,
    where: SearchParams | None = None,
    if_match: str | Mapping[str, Any] | None = None,
    prefer: str = "",
) -> Interaction:
    """Put a resource in the place of the one with its id, or that *where* finds."""
    resource_type = _get_type(resource)
    refuse_part(resource)
    resource_id = "" if where is not None else validate_id(resource.get("id"))
    return Interaction(
        name="update",
        method="PUT",
        path=_build_target(resource_type, resource_id or None, where),
        resource_type=resource_type,
        id=resource_id,
        headers=build_headers(prefer, if_match),
        body=resource,
    )


def build_patch(
    resource_type: str,
    id: str | None,  # noqa: A002
    patch: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    *,
    where: SearchParams | None = None,
    if_match: str | Mapping[str, Any] | None = None,
    prefer: str = "",
) -> Interaction:
    """Change a resource by a JSON Patch, a list, or a FHIRPath Patch."""
    is_fhirpath = isinstance(patch, Mapping)
    if isinstance(patch, Mapping):
        if patch.get("resourceType") != "Parameters" or not patch.get("parameter"):
            raise FHIRRequestError("A FHIRPath Patch must be a Parameters resource.")
    elif not patch or not all(map(_is_step, patch)):
        raise FHIRRequestError(
            "A JSON Patch must be a list of operations, each with op and path."
        )
    return Interaction(
        name="patch",
        method="PATCH",
        path=_build_target(validate_resource_type(resource_type), id, where),
        resource_type=resource_type,
        id=id or "",
        headers=build_headers(prefer, if_match),
        body=patch if is_fhirpath else list(patch),
        media_type=FHIR_JSON if is_fhirpath else JSON_PATCH,
    )


def build_delete(
    resource_type: str,
    id: str | None,  # noqa: A002
    *,
    where: SearchParams | None = None,
    if_match: str | Mapping[str, Any] | None = None,
) -> Interaction:
    """Delete a resource, or those that *where* finds."""
    return Interaction(
        name="delete",
        method="DELETE",
        path=_build_target(validate_resource_type(resource_type), id, where),
        resource_type=resource_type,
        headers=build_headers("", if_match),
    )


def build_history(
    resource_type: str | None,
    id: str | None,  # noqa: A002
    *,
    since: datetime | None = None,
    at: datetime | None = None,
    count: int | None = None,
) -> Interaction:
    """List versions: of a resource, a type or everything."""
    parts = _build_place(resource_type, id)
    params: list[tuple[str, object]] = [
        (name, value)
        for name, value in (("_since", since), ("_at", at), ("_count", count))
        if value is not None
    ]
    return Interaction(
        name=("history-system", "history-type", "history-instance")[len(parts)],
        method="GET",
        path=_with_query("/".join([*parts, "_history"]), params),
        resource_type=resource_type or "",
    )


def build_search(
    resource_type: str, query: str, *, prefer: str = "", compartment: str = ""
) -> Interaction:
    """
    Search by GET; *query* is encoded.

    Args:
        resource_type: ``*`` for all.
        compartment: ``Patient/123``, to search only what belongs to it.
    """
    is_any = resource_type == "*"
    path = "*" if is_any else validate_resource_type(resource_type)
    if compartment:
        its_type, _, its_id = compartment.partition("/")
        path = f"{validate_resource_type(its_type)}/{validate_id(its_id)}/{path}"
    elif is_any:
        path = ""
    return Interaction(
        name="search",
        method="GET",
        path=f"{path}?{query}" if query else path,
        resource_type="" if is_any else resource_type,
        headers=build_headers(prefer),
    )


def as_posted(search: Interaction) -> Interaction:
    """Turn a search by GET into the same one by POST."""
    path, _, query = search.path.partition("?")
    return replace(
        search,
        method="POST",
        path=f"{path}/_search" if path else "_search",
        body=query.encode(),
        media_type="application/x-www-form-urlencoded",
    )


def build_operation(
    name: str,
    resource_type: str | None,
    id: str | None,  # noqa: A002
    *,
    query: str = "",
    body: Mapping[str, Any] | None = None,
    prefer: str = "",
) -> Interaction:
    """Call an operation: by GET, or by POST with *body*; *query* is encoded."""
    match = _OPERATION.fullmatch(name)
    if match is None:
        raise FHIRRequestError("This is not a valid operation name.")
    parts = _build_place(resource_type, id)
    if body is not None:
        _get_type(body)
    path = "/".join([*parts, f"${match[1]}"])
    return Interaction(
        name="operation",
        method="GET" if body is None else "POST",
        path=f"{path}?{query}" if query else path,
        resource_type=resource_type or "",
        headers=build_headers(prefer),
        body=body,
    )


def _build_place(resource_type: str | None, resource_id: str | None) -> list[str]:
    """Parts of the path of the server, a type or one resource."""
    if resource_type is None:
        if resource_id is not None:
            raise FHIRRequestError("An id requires a resource type.")
        return []
    parts = [validate_resource_type(resource_type)]
    if resource_id is not None:
        parts.append(validate_id(resource_id))
    return parts


def _get_type(resource: object) -> str:
    if not isinstance(resource, Mapping):
        raise FHIRRequestError("A resource must be a dict with a resourceType.")
    return validate_resource_type(resource.get("resourceType"))


def refuse_part(resource: Mapping[str, Any]) -> None:
    """Keep back what lacks elements: an update would delete them."""
    meta = resource.get("meta")
    tags = meta.get("tag") if isinstance(meta, Mapping) else None
    for tag in tags if isinstance(tags, list) else ():
        if isinstance(tag, Mapping) and tag.get("code") == "SUBSETTED":
            raise FHIRRequestError(
                "The resource is incomplete (SUBSETTED), as returned by "
                "summary= or elements=: read all of it, or use patch()."
            )


def _is_step(step: object) -> bool:
    """Whether *step* can be an operation of a JSON Patch (RFC 6902 section 4)."""
    if not isinstance(step, Mapping) or step.get("op") not in _PATCH_OPERATIONS:
        return False
    path = step.get("path")
    return isinstance(path, str) and (not path or path.startswith("/"))


def _build_target(
    resource_type: str, resource_id: str | None, where: SearchParams | None
) -> str:
    """Path of one resource by its id, or by a search that must not be empty."""
    if (resource_id is None) == (where is None):
        raise FHIRRequestError("Name the resource by its id, or by where=.")
    if where is not None:
        return f"{resource_type}?{build_condition(where)}"
    return f"{resource_type}/{validate_id(resource_id)}"


def _with_query(path: str, params: SearchParams | None) -> str:
    query = build_search_query(params, {})
    return f"{path}?{query}" if query else path
