"""The interactions of the FHIR REST API: built, and read from a request or an entry."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.json import dump_json, load_json
from django_smart.fhir.messages import validate_id, validate_resource_type
from django_smart.fhir.parameters import SearchParams, build_search_query
from django_smart.protocol.json import parse_json

__all__ = [
    "BUNDLES",
    "CONDITIONS",
    "FHIR_JSON",
    "JSON_PATCH",
    "WRITES",
    "Interaction",
    "Patch",
    "Version",
    "as_posted",
    "build_create",
    "build_delete",
    "build_etag",
    "build_history",
    "build_operation",
    "build_patch",
    "build_read",
    "build_search",
    "build_update",
    "iter_parameters",
    "parse_body",
    "parse_entries",
    "parse_interaction",
    "parse_query",
    "refuse_part",
    "write_query",
]

Version = str | Mapping[str, Any]
Patch = Sequence[Mapping[str, Any]] | Mapping[str, Any]

_ETAG = re.compile(r'(?:W/)?"[!#-~]*"')
_RETURNS = frozenset({"minimal", "representation", "OperationOutcome"})
_HANDLINGS = frozenset({"strict", "lenient"})


def build_etag(version: Version) -> str:
    """ETag of a version: of its id, of a resource that has one, or an ETag as it is."""
    if isinstance(version, Mapping):
        meta = version.get("meta")
        version = meta.get("versionId", "") if isinstance(meta, Mapping) else ""
        if not version:
            raise FHIRRequestError("The resource has no version (meta.versionId).")
    if isinstance(version, str) and _ETAG.fullmatch(version):
        return version
    return f'W/"{validate_id(version)}"'


#: Names of interactions: those with entries, and those that change one resource.
BUNDLES = frozenset({"batch", "transaction"})
WRITES = frozenset({"create", "delete", "patch", "update"})
FHIR_JSON = "application/fhir+json"
JSON_PATCH = "application/json-patch+json"

_OF_CHANGES = ("If-Match", "If-None-Match")
#: The conditions that a method can have.  A read has none, because "not modified" would
#: reveal something about another patient's resource.
CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "DELETE": _OF_CHANGES,
    "PATCH": _OF_CHANGES,
    "POST": ("If-None-Exist",),
    "PUT": _OF_CHANGES,
}
# What they are called in the entry of a Bundle.
_IN_ENTRIES = {
    "If-Match": "ifMatch",
    "If-None-Exist": "ifNoneExist",
    "If-None-Match": "ifNoneMatch",
}
_PATCH_OPERATIONS = frozenset({"add", "remove", "replace", "move", "copy", "test"})
_OPERATION = re.compile(r"\$?[A-Za-z][A-Za-z0-9._-]{0,127}")


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

    @property
    def parts(self) -> list[str]:
        """The path without its query, in parts."""
        return self.path.partition("?")[0].split("/")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The parameters in the path."""
        return parse_query(self.path.partition("?")[2])

    @property
    def conditions(self) -> list[tuple[str, str]] | None:
        """The parameters of ``If-None-Exist``, if it was sent."""
        condition = self.headers.get("If-None-Exist")
        if condition is None:
            return None
        return parse_query(condition.partition("?")[2] or condition)

    def with_pairs(self, pairs: list[tuple[str, str]]) -> Interaction:
        """The same with these parameters in the path."""
        path = self.path.partition("?")[0]
        return replace(self, path=_join(path, write_query(pairs)))

    def preferring(self, preference: str) -> Interaction:
        """The same with one of FHIR's preferences; empty for none."""
        if not preference:
            return self
        if preference not in _RETURNS | _HANDLINGS:
            names = ", ".join(sorted(_RETURNS | _HANDLINGS))
            raise FHIRRequestError(f"preference must be one of {names}.")
        kind = "return" if preference in _RETURNS else "handling"
        headers = {**self.headers, "Prefer": f"{kind}={preference}"}
        return replace(self, headers=headers)

    def as_entry(self) -> dict[str, Any]:
        """Write it as an entry of a batch or transaction, without ``fullUrl``."""
        request = {"method": self.method, "url": self.path}
        for header, name in _IN_ENTRIES.items():
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
) -> Interaction:
    """Read a resource, or one version of it."""
    path = f"{validate_resource_type(resource_type)}/{validate_id(id)}"
    if version_id is not None:
        path += f"/_history/{validate_id(version_id)}"
    return Interaction(
        name="read" if version_id is None else "vread",
        method="GET",
        path=path,
        resource_type=resource_type,
        id=id,
    )


def build_create(
    resource: Mapping[str, Any], *, if_none_exist: SearchParams | None = None
) -> Interaction:
    """Create a resource, unless one matches the search *if_none_exist*."""
    headers = {}
    if if_none_exist is not None:
        headers["If-None-Exist"] = _build_condition(if_none_exist)
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
    if_match: Version | None = None,
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
        headers=_build_match(if_match),
        body=resource,
    )


def build_patch(
    resource_type: str,
    id: str | None,  # noqa: A002
    patch: Patch,
    *,
    where: SearchParams | None = None,
    if_match: Version | None = None,
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
        headers=_build_match(if_match),
        body=patch if is_fhirpath else list(patch),
        media_type=FHIR_JSON if is_fhirpath else JSON_PATCH,
    )


def build_delete(
    resource_type: str,
    id: str | None = None,  # noqa: A002
    *,
    where: SearchParams | None = None,
    if_match: Version | None = None,
) -> Interaction:
    """Delete a resource, or those that *where* finds."""
    return Interaction(
        name="delete",
        method="DELETE",
        path=_build_target(validate_resource_type(resource_type), id, where),
        resource_type=resource_type,
        headers=_build_match(if_match),
    )


def build_history(
    resource_type: str | None,
    id: str | None,  # noqa: A002
    *,
    since: datetime | None = None,
) -> Interaction:
    """List versions: of a resource, a type or everything."""
    parts = _build_place(resource_type, id)
    query = build_search_query({} if since is None else {"_since": since}, {})
    return Interaction(
        name=("history-system", "history-type", "history-instance")[len(parts)],
        method="GET",
        path=_join("/".join([*parts, "_history"]), query),
        resource_type=resource_type or "",
    )


def build_search(resource_type: str, query: str) -> Interaction:
    """Search a type by GET; *query* is encoded."""
    validate_resource_type(resource_type)
    return Interaction(
        name="search",
        method="GET",
        path=_join(resource_type, query),
        resource_type=resource_type,
    )


def as_posted(search: Interaction) -> Interaction:
    """Turn a search by GET into the same one by POST."""
    path, _, query = search.path.partition("?")
    return replace(
        search,
        method="POST",
        path=f"{path}/_search",
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
) -> Interaction:
    """Call an operation: by GET, or by POST with *body*; *query* is encoded."""
    _validate_operation(name)
    parts = _build_place(resource_type, id)
    if body is not None:
        _get_type(body)
    path = "/".join([*parts, f"${name.removeprefix('$')}"])
    return Interaction(
        name="operation",
        method="GET" if body is None else "POST",
        path=_join(path, query),
        resource_type=resource_type or "",
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
                "_summary or _elements: read all of it, or use patch()."
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
        return f"{resource_type}?{_build_condition(where)}"
    return f"{resource_type}/{validate_id(resource_id)}"


def _build_condition(params: SearchParams) -> str:
    query = build_search_query(params, {})
    if not query:
        raise FHIRRequestError("A condition without parameters matches everything.")
    return query


def _build_match(version: Version | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": build_etag(version)}


def _join(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path


def _validate_operation(name: str) -> None:
    if not _OPERATION.fullmatch(name):
        raise FHIRRequestError("This is not a valid operation name.")


_MAX_PARAMETERS = 100
# Of JSON: a Questionnaire has groups in groups, each of which is two levels.
_MAX_DEPTH = 200
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
    place, _, query = path.partition("?")
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
        path=_join(place, write_query(pairs)),
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
        _validate_operation(last)
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
    """Yield each parameter of a ``Parameters``, at any depth, as if in a URL."""
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


def parse_entries(bundle: Any, *, limit: int | None = None) -> list[Interaction]:
    """Read the entries of a batch or transaction."""
    entries = bundle.get("entry", []) if isinstance(bundle, Mapping) else None
    if not isinstance(entries, list):
        raise FHIRRequestError("The body is not a Bundle with entries.")
    if limit is not None and len(entries) > limit:
        raise FHIRRequestError(
            f"A Bundle may have at most {limit} entries: send several."
        )
    return list(map(_parse_entry, entries))


def _parse_entry(entry: Any) -> Interaction:
    """Read an entry, but no Bundle again."""
    request = entry.get("request") if isinstance(entry, Mapping) else None
    if not isinstance(request, Mapping):
        raise FHIRRequestError("An entry has no request.")
    method, url = str(request.get("method")), str(request.get("url"))
    headers = {
        header: str(request[_IN_ENTRIES[header]])
        for header in CONDITIONS.get(method, ())
        if request.get(_IN_ENTRIES[header]) is not None
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
    parse_json(body, error=FHIRRequestError, what=what, max_depth=_MAX_DEPTH)
    return load_json(body)
