"""
Requests under scopes for one patient: narrowed, and checked before they are sent.

A resource is read, and found to be the patient's, before it is changed, or before its
history, a version of it or an operation on it is requested.  A change is then made to
that version alone (``If-Match``).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from django_smart.exceptions import (
    FHIRPreconditionFailedError,
    FHIRRequestError,
    ForeignPatientError,
    InsufficientScopeError,
    MalformedFHIRResponseError,
)
from django_smart.fhir.compartment import (
    ABOUT_OTHERS,
    PatientBoundary,
    apply_json_patch,
    get_letters,
    is_shared,
    iter_values,
)
from django_smart.fhir.interactions import (
    FHIR_JSON,
    JSON_PATCH,
    Interaction,
    build_etag,
    build_read,
)
from django_smart.fhir.json import dump_json, load_json
from django_smart.fhir.messages import (
    parse_resource,
    process_bundle_response,
    process_read_response,
    validate_id,
    validate_resource_type,
)
from django_smart.protocol.json import parse_json
from django_smart.protocol.messages import HTTPResponse

__all__ = [
    "Guard",
    "RecordRules",
    "iter_links",
    "parse_body",
    "parse_entry",
    "parse_interaction",
    "tells_of_others",
]

_MAX_PARAMETERS = 100
# Of one request: each is read first.
_MAX_BINARIES = 100
# Of JSON: a Questionnaire has groups in groups, each of which is two levels.
_MAX_DEPTH = 200
_OPERATION = re.compile(r"\$[A-Za-z][A-Za-z0-9._\-]{0,127}")
# With what a server may leave out when it stores a reference, such as a version
# or the base, which may be another name of the server.
_BINARY = re.compile(r"(?:\S*/)?Binary/([A-Za-z0-9\-.]{1,64})(?:[/?#\s].*)?", re.DOTALL)
_POSITIVE = re.compile("0*[1-9][0-9]*")
# Values of _summary.
_WITH_RESOURCES = frozenset({"data", "false"})
_BUNDLES = frozenset({"batch", "transaction"})
_CHANGES = {"ifMatch": "If-Match", "ifNoneMatch": "If-None-Match"}
# Of an entry.  None of a read: that another's resource did not change is also news.
_CONDITIONS = {
    "DELETE": _CHANGES,
    "PATCH": _CHANGES,
    "POST": {"ifNoneExist": "If-None-Exist"},
    "PUT": _CHANGES,
}
_WRITES = frozenset({"create", "delete", "patch", "update"})
# By which some servers search and check everything, such as whose a resource is.
_RULES = frozenset(
    {
        *("CompartmentDefinition", "GraphDefinition", "OperationDefinition"),
        *("SearchParameter", "StructureDefinition", "StructureMap"),
    }
)
# How many parts at the end of a path are neither type nor id.
_SPECIAL = {
    "capabilities": 1,
    "history-instance": 1,
    "history-system": 1,
    "history-type": 1,
    "operation": 1,
    "vread": 2,
}
_CONDITIONS_OF_ALL = frozenset(
    {"_has", "_id", "_lastUpdated", "_profile", "_security", "_source", "_tag"}
)
# Operations on a type that take the patient as a search does.
_SEARCHING = frozenset({"$docref", "$lastn", "$stats"})


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
    if name in {"create", "update"} and _read_type(body)[0] != resource_type:
        raise FHIRRequestError("The resource has a different type.")
    pairs = _parse_query(query)
    return Interaction(
        name=name,
        method="GET" if method == "HEAD" else method,
        path=place + (f"?{_write_query(pairs)}" if mark and pairs else ""),
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
            if kind in _BUNDLES:
                return kind
        case "POST", 1:
            return "create"
        case (("PUT" | "PATCH" | "DELETE"), (1 | 2)):
            return {"PUT": "update", "PATCH": "patch"}.get(method, "delete")
    raise FHIRRequestError(f"{method} of this path is not a FHIR interaction.")


def _parse_query(text: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise FHIRRequestError("There are too many parameters.") from None


def _write_query(pairs: list[tuple[str, str]]) -> str:
    return urlencode(pairs, quote_via=quote, safe="")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRules:
    """
    How requests keep to the patient's record.

    Attributes:
        may_write_unread: whether a change may go out where no scope allows reading.
        always: whether they do so whatever scopes the token has now.
    """

    may_write_unread: bool = False
    always: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """
    Lets through what stays in the patient's record; one for each request.

    Args:
        boundary: of the record.
        fetch: sends an interaction as it is.
        allow: called with each interaction, and with each of a Bundle; raises for what
            the caller does not want.
        rules: of changes.
        max_entries: of a batch or transaction, each of which may have to be read first.
        binaries: ids of those that were found to be the patient's.
    """

    boundary: PatientBoundary
    fetch: Callable[[Interaction], HTTPResponse]
    allow: Callable[[Interaction], None] = lambda asked: None
    rules: RecordRules = RecordRules()
    max_entries: int | None = None
    binaries: set[str] = field(default_factory=set, repr=False, compare=False)

    def prepare(
        self, asked: Interaction, *, urns: frozenset[str] = frozenset()
    ) -> Interaction:
        """
        What may be sent of *asked*: with the patient named, and a version to change.

        Raises:
            ForeignPatientError: it is not known to stay in the patient's record.
            FHIRStatusError: what must be read first cannot be read, or has changed.
            InsufficientScopeError: no scope allows reading it.
        """
        name, kind = asked.name, asked.resource_type
        if name == "get":
            return self._prepare_get(asked, urns)
        self.allow(asked)
        if name in _BUNDLES:
            return replace(asked, body=self._prepare_bundle(asked.body))
        if name == "capabilities" or self._is_open(asked):
            return asked
        if self.boundary.patient_id is None:
            raise ForeignPatientError("There is no patient in context.")
        path, _, query = asked.path.partition("?")
        parts, pairs = path.split("/"), _parse_query(query)
        self._check_target(name, parts)
        match name:
            case "read" | "vread" | "history-instance":
                if name != "read":
                    self._check_instance(kind, parts[1])
                return _with_query(asked, path, self.boundary.complete(kind, pairs))
            case "search":
                return self._prepare_search(asked, parts, pairs)
            case "create":
                letter = get_letters(name)
                self.boundary.check(asked.body, letter, is_written=True, urns=urns)
                self._check_binaries(asked.body)
                return self._narrow_header(_with_query(asked, path, []))
            case "update" | "patch" | "delete":
                return self._prepare_change(asked, parts, pairs, urns)
            case "operation":
                return self._prepare_operation(asked, parts, pairs)
        raise ForeignPatientError(f"A {name} is not about a single patient.")

    def _is_open(self, asked: Interaction) -> bool:
        """Whether the server alone decides; refuse to search by what it does not."""
        is_open = self.boundary.is_open(asked.name, asked.resource_type)
        if is_open and asked.name == "search":
            pairs = _parse_query(asked.path.partition("?")[2])
            if isinstance(asked.body, bytes):
                pairs += _parse_query(asked.body.decode("utf-8", "replace"))
            self.boundary.check_open(pairs)
        return is_open

    def _check_target(self, name: str, parts: list[str]) -> None:
        if parts[0] in _RULES and name in _WRITES:
            raise ForeignPatientError(f"A {parts[0]} is not about a single patient.")
        if parts[0] != "Patient":
            return
        is_search = len(parts) == 1 or parts[1].startswith(("_", "$"))
        if not is_search and parts[1] != self.boundary.patient_id:
            raise ForeignPatientError("This is not the patient of this launch.")
        # The server chooses its id, also of an update whose search finds nothing.
        if name == "create" or (name == "update" and len(parts) == 1):
            raise ForeignPatientError(
                "A new Patient is not the patient of this launch; update it by its id."
            )

    def _prepare_get(self, asked: Interaction, urns: frozenset[str]) -> Interaction:
        """Return what a path or URL refers to; others, such as pages, are kept."""
        url, base = urlsplit(asked.path), urlsplit(self.boundary.base_url)
        # Of an absolute URL, which is known to be below the base.
        path = unquote(url.path.removeprefix(base.path if url.scheme else ""))
        path = path.lstrip("/")
        try:
            parsed = parse_interaction("GET", f"{path}?{url.query}")
        except FHIRRequestError:
            # Of a type, in a form that only some servers understand; or a count, which
            # does not say whose it is.
            pairs = _parse_query(url.query)
            if path[:1].isupper() or any(_asks_for_count(*pair) for pair in pairs):
                raise
            self.boundary.check_parameters("", pairs)
            return asked
        return replace(asked, path=self.prepare(parsed, urns=urns).path)

    def check_response(
        self, asked: Interaction, response: HTTPResponse
    ) -> HTTPResponse:
        """
        :meth:`check_answer` of what came; what is malformed its reader refuses.

        Returns:
            The response, without the included resources that were left out.
        """
        if not response.body or not 200 <= response.status_code < 300:
            return response
        # As its reader does: what that accepts must not go unchecked.
        resource = parse_resource(response.body)
        is_other = asked.id and _read_type(resource) != (asked.resource_type, asked.id)
        is_checked = resource and not (is_other and asked.name in {"read", "vread"})
        if is_checked and self.check_answer(asked, resource):
            return replace(response, body=dump_json(resource))
        return response

    def check_answer(self, asked: Interaction, resource: Any) -> bool:
        """
        Refuse what came, unless it is known to be the patient's.

        Returns:
            Whether included resources were left out of *resource*.

        Raises:
            ForeignPatientError: it is not.
            MalformedFHIRResponseError: a Bundle in which nothing can be looked for.
        """
        if asked.name == "capabilities":
            return False
        _check_bundles(resource)
        path = asked.path.partition("?")[0]
        # A further page, whose path is empty, is no stored Bundle either.
        is_page = asked.name == "get" and not path
        is_made = is_page or ("$" in path and not path.startswith("Bundle/"))
        letters = f"rs{get_letters(asked.name)}"
        left_out: list[str] = []
        self.boundary.check(resource, letters, is_made=is_made, left_out=left_out)
        return bool(left_out)

    def _prepare_search(
        self, asked: Interaction, parts: list[str], pairs: list[tuple[str, str]]
    ) -> Interaction:
        is_in_record = parts[0] == "Patient" and len(parts) > 2
        kind = asked.resource_type
        if parts[0] != "Patient" and len(parts) > 2:
            self._check_instance(parts[0], parts[1])
        if not isinstance(asked.body, bytes):
            narrowed = self.boundary.narrow(kind, pairs, is_in_record=is_in_record)
            # In a batch, a server might search by what else is there.
            asked = replace(asked, body=None)
            return _with_query(asked, asked.path.partition("?")[0], narrowed)
        self.boundary.check_parameters(kind, pairs)
        form = _parse_query(asked.body.decode("utf-8", "replace"))
        form = self.boundary.narrow(kind, form, is_in_record=is_in_record)
        asked = replace(asked, body=_write_query(form).encode())
        rest = self.boundary.complete(kind, pairs)
        return _with_query(asked, asked.path.partition("?")[0], rest)

    def _narrow_header(self, asked: Interaction) -> Interaction:
        condition = asked.headers.get("If-None-Exist")
        if condition is None:
            return asked
        pairs = _parse_query(condition.partition("?")[2] or condition)
        narrowed = _write_query(self.boundary.narrow(asked.resource_type, pairs))
        return replace(asked, headers={**asked.headers, "If-None-Exist": narrowed})

    def _prepare_operation(
        self, asked: Interaction, parts: list[str], pairs: list[tuple[str, str]]
    ) -> Interaction:
        kind, operation = asked.resource_type, parts[-1]
        is_about_one = len(parts) == 3 and not is_shared(kind)
        if parts == ["Patient", "$everything"] or (
            operation == "$export" and not is_about_one
        ):
            raise ForeignPatientError("This would cover every patient.")
        is_narrowed = len(parts) == 2 and operation in _SEARCHING and asked.body is None
        if asked.body is not None:
            self._check_body(asked.body, may_count=is_about_one)
        if not (is_about_one or is_narrowed):
            pairs = [pair for pair in pairs if not _asks_for_count(*pair)]
        if is_narrowed:
            pairs = self.boundary.narrow(kind, pairs)
        else:
            self.boundary.check_parameters(kind, pairs)
            pairs = self.boundary.complete(kind, pairs)
        if is_about_one:
            self._check_instance(kind, parts[1])
        return _with_query(asked, "/".join(parts), pairs)

    def _check_body(self, body: Any, *, may_count: bool) -> None:
        self.boundary.check(body, is_written=True)
        own = [self.boundary.patient_id, *self.boundary.own]
        for one in _iter_parameters(body):
            name = str(one.get("name")).strip().casefold()
            values = [value for key, value in one.items() if key.startswith("value")]
            if not may_count and _asks_for_count(name, *map(str, values)):
                raise FHIRRequestError("An operation cannot be asked for a count.")
            if name in {"patient", "subject"}:
                for value in values:
                    is_reference = isinstance(value, Mapping)
                    text = value.get("reference") if is_reference else value
                    # Nor a list, which some servers take for its only member.
                    if text is not None and text not in own:
                        raise ForeignPatientError("A parameter names another patient.")

    # What is read first

    def _check_instance(self, kind: str, resource_id: str) -> None:
        """Refuse what is asked about another patient's resource."""
        if kind == "Patient" or is_shared(kind):
            return  # its path was checked, or it is nobody's
        self._require(self._find_missing(kind, "r"))
        self._read(kind, resource_id, "r")

    def _find_missing(self, kind: str, letters: str) -> str:
        """The scope without which a type cannot be read first, if it is missing."""
        missing = [one for one in letters if not self.boundary.has_scope(kind, one)]
        return f"patient/{kind}.{''.join(missing)}" if missing else ""

    def _require(self, missing: str) -> None:
        if missing:
            raise InsufficientScopeError(
                "The resource must be read first, which requires the scope "
                f"{missing}; nothing was sent.",
                missing=missing,
            )

    def _read(
        self, kind: str, resource_id: str, letters: str = "rs"
    ) -> tuple[dict[str, Any], HTTPResponse]:
        response = self.fetch(build_read(kind, resource_id))
        resource = process_read_response(response, resource_type=kind, id=resource_id)
        self.boundary.check(resource, letters)
        return resource, response

    # Changes

    def _prepare_change(
        self,
        asked: Interaction,
        parts: list[str],
        pairs: list[tuple[str, str]],
        urns: frozenset[str],
    ) -> Interaction:
        kind, name = asked.resource_type, asked.name
        letter = get_letters(name)
        if name == "update" and kind != "Patient":
            self.boundary.check(asked.body, letter, is_written=True, urns=urns)
        is_conditional = len(parts) == 1
        # Others are left out, such as _cascade=delete.
        pairs = [pair for pair in pairs if is_conditional and _is_condition(pair[0])]
        if is_conditional:
            if not pairs:
                raise FHIRRequestError("Name the resource by its id or by a search.")
            pairs = self.boundary.narrow(kind, pairs)
        asked = _with_query(asked, "/".join(parts), pairs)
        letters = "rs" if is_conditional else "r"
        missing = self._find_missing(kind, letters)
        if missing and self.rules.may_write_unread:
            self._check_unread(asked)
            return asked
        self._require(missing)
        if not is_conditional:
            return self._pin(asked, parts[1])
        search = Interaction(
            name="search", method="GET", path=asked.path, resource_type=kind
        )
        bundle = process_bundle_response(
            self.fetch(search), type="searchset", what=f"search of {kind}"
        )
        _check_bundles(bundle)
        found = [entry.get("resource") for entry in bundle["entry"]]
        found = [one for one in found if one and one.get("resourceType") == kind]
        for resource in found:
            self.boundary.check(resource, letter)
        if len(found) != 1:
            # None or several: what the server does with its own condition.
            self._check_binaries(asked.body)
            self._check_unread(asked)
            return asked
        found_id = validate_id(found[0].get("id"))
        body = asked.body
        if name == "update":
            if body.get("id", found_id) != found_id:
                raise FHIRRequestError("The resource has a different id.")
            body = {**body, "id": found_id}
        asked = replace(asked, path=f"{kind}/{found_id}", id=found_id, body=body)
        return self._pin(asked, found_id)

    def _pin(self, asked: Interaction, resource_id: str) -> Interaction:
        """Read the target, check it and what becomes of it, and name its version."""
        kind, name = asked.resource_type, asked.name
        if name == "update" and asked.body.get("id") != resource_id:
            raise FHIRRequestError("The resource has a different id.")
        letter = get_letters(name)
        current, response = self._read(kind, resource_id, letter)
        if name == "update":
            if kind == "Patient":
                body = _without_known_links(asked.body, current)
                self.boundary.check(body, letter, is_written=True)
            self._check_binaries(asked.body, current)
        if name == "patch" and isinstance(asked.body, Mapping):
            self._check_binaries(asked.body, current)
            self.boundary.check_fhirpath_patch(asked.body, kind)
        elif name == "patch":
            result = apply_json_patch(current, asked.body)
            self._check_binaries(result, current)
            result = _without_known_links(result, current)
            self.boundary.check(result, letter, is_written=True)
            if (result.get("resourceType"), result.get("id")) != (kind, resource_id):
                raise ForeignPatientError(
                    "The patch changes the resource's type or id."
                )
        try:
            # Before the header, to which Apache's mod_deflate adds "-gzip".
            etag = build_etag(current)
        except FHIRRequestError:
            etag = response.headers.get("etag", "")
        if not etag:
            return asked  # a server without versions
        wanted = asked.headers.get("If-Match", etag)
        if wanted.removeprefix("W/") != etag.removeprefix("W/"):
            raise FHIRPreconditionFailedError(
                "the resource has changed since it was read", status_code=412
            )
        return replace(asked, headers={**asked.headers, "If-Match": etag})

    def _check_binaries(self, resource: Any, before: Any = None) -> None:
        """
        Refuse to refer to a Binary that does not say that it is the patient's.

        Whoever may read what a resource of the patient's refers to could otherwise
        write that it refers to any.
        """
        if self.boundary.trusts_binaries:
            return
        base = f"{self.boundary.base_url}/"
        texts = {
            text.lstrip().removeprefix(base)
            for text in iter_values(resource)
            if isinstance(text, str)
        }
        # Not all its texts: they can be moved to where they are links.
        texts -= {link.removeprefix(base) for link in iter_links(before)}
        matches = map(_BINARY.fullmatch, texts)
        ids = {match[1] for match in matches if match is not None} - self.binaries
        if len(ids) + len(self.binaries) > _MAX_BINARIES:
            raise FHIRRequestError(
                f"A request may refer to at most {_MAX_BINARIES} Binaries."
            )
        for binary_id in ids:
            self._read("Binary", binary_id)
        self.binaries.update(ids)

    def _check_unread(self, asked: Interaction) -> None:
        if asked.name == "update" and asked.resource_type == "Patient":
            self.boundary.check(asked.body, "u", is_written=True)
        if asked.name == "patch" and isinstance(asked.body, Mapping):
            self.boundary.check_fhirpath_patch(asked.body, asked.resource_type)
        elif asked.name == "patch":
            self.boundary.check_json_patch(asked.body, asked.resource_type)

    # Bundles

    def _prepare_bundle(self, bundle: Any) -> Any:
        """The Bundle with each entry as it may be sent, and its resources as given."""
        entries = bundle.get("entry", []) if isinstance(bundle, Mapping) else None
        if not isinstance(entries, list):
            raise FHIRRequestError("The body is not a Bundle with entries.")
        if self.max_entries is not None and len(entries) > self.max_entries:
            raise FHIRRequestError(
                f"A Bundle may have at most {self.max_entries} entries: send several."
            )
        parsed = [(entry, parse_entry(entry)) for entry in entries]
        urns = frozenset(
            str(entry.get("fullUrl"))
            for entry, asked in parsed
            if asked.name == "create" and asked.resource_type != "Patient"
        )
        prepared = []
        for entry, asked in parsed:
            rest = {n: v for n, v in entry.items() if n not in {"request", "resource"}}
            prepared.append(rest | self.prepare(asked, urns=urns).as_entry())
        return {**bundle, "entry": prepared}


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
    if asked.name in _BUNDLES:
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


def _read_type(resource: Any) -> tuple[str, str]:
    """Type and id of a resource, empty if it is malformed."""
    if not isinstance(resource, Mapping):
        return "", ""
    return str(resource.get("resourceType", "")), str(resource.get("id"))


def _check_bundles(resource: Any) -> None:
    """Refuse a Bundle, also within another, whose resources cannot be found."""
    bundles = [resource]
    for bundle in bundles:
        if _read_type(bundle)[0] == "Bundle":
            # Absent when empty; null is what some servers write.
            entries = bundle.get("entry") or []
            if not isinstance(entries, list) or not all(map(_is_entry, entries)):
                raise MalformedFHIRResponseError("An entry of a Bundle is malformed.")
            bundles += [entry["resource"] for entry in entries if "resource" in entry]


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    response = entry.get("response") or {}
    return isinstance(entry.get("resource", {}), Mapping) and (
        isinstance(response, Mapping)
        and isinstance(response.get("outcome"), Mapping | None)
    )


def _without_known_links(resource: Any, current: Mapping[str, Any]) -> Any:
    """Leave out the links of a Patient to their other records that it has already."""
    if not isinstance(resource, Mapping) or resource.get("resourceType") != "Patient":
        return resource
    if resource.get("link") != current.get("link"):
        return resource
    return {name: value for name, value in resource.items() if name != "link"}


def tells_of_others(value: Any) -> bool:
    """Whether *value* is, or contains, a record of what was done with resources."""
    return any(
        isinstance(item, Mapping) and str(item.get("resourceType")) in ABOUT_OTHERS
        for item in iter_values(value)
    )


def iter_links(value: Any) -> Iterator[str]:
    """What *value* refers to, and no other text: patients write messages, too."""
    for item in iter_values(value):
        if isinstance(item, Mapping):
            links = (item.get(name) for name in ("reference", "url"))
            yield from (link for link in links if isinstance(link, str))


def _iter_parameters(body: Any) -> Iterator[Mapping[str, Any]]:
    """Every parameter of a Parameters, and every part of one."""
    lists = [body.get("parameter")] if isinstance(body, Mapping) else []
    for items in lists:
        # Some servers accept an object in place of a list.
        for one in items if isinstance(items, list) else [items]:
            if isinstance(one, Mapping):
                yield one
                lists.append(one.get("part"))


def _asks_for_count(name: str, *values: str) -> bool:
    """Whether a parameter leaves out the resources, which say whose they are."""
    bare = name.partition(":")[0].lower()
    if bare == "_summary":
        return not values or not _WITH_RESOURCES.issuperset(values)
    return bare == "_count" and not all(map(_POSITIVE.fullmatch, values or ("",)))


def _is_condition(name: str) -> bool:
    """Whether a parameter selects resources; others would hide some of them."""
    bare = name.partition(":")[0]
    return not bare.startswith("_") or bare in _CONDITIONS_OF_ALL


def _with_query(
    asked: Interaction, path: str, pairs: list[tuple[str, str]]
) -> Interaction:
    return replace(asked, path=f"{path}?{_write_query(pairs)}" if pairs else path)
