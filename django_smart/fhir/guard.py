"""
Keeps requests to the record of the launch's patient.

The site's own code is trusted, but its mistakes and the answers of the server are not.
A search is sent with the patient, and otherwise as it was written.  The subject of a
resource is checked before it is sent, and the target of a change is read first.
Everything that comes passes :func:`~django_smart.fhir.record_check.record_check`.  What
a script asks is also on the list of :mod:`~django_smart.fhir.allow_list`, and its body
adds no link to another patient or to a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from django_smart.exceptions import (
    FHIRPreconditionFailedError,
    FHIRRequestError,
    ForeignPatientError,
    InsufficientScopeError,
)
from django_smart.fhir.compartment import (
    SUBJECT_NAMES,
    Record,
    get_compartment,
    get_letters,
    is_shared,
)
from django_smart.fhir.interactions import (
    BUNDLES,
    Interaction,
    build_etag,
    build_read,
    iter_parameters,
    parse_entries,
    parse_query,
    write_query,
)
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import (
    ParsedResponse,
    parse_resource,
    process_bundle_response,
    process_read_response,
    validate_id,
)
from django_smart.fhir.record_check import (
    check_body,
    check_links,
    record_check,
)
from django_smart.protocol.messages import HTTPResponse

__all__ = ["RecordGuard", "RecordRules"]

# Where a step of a JSON Patch changes something, in plain names.
_POINTER = re.compile(r"(?:/(?:_?[a-z][A-Za-z0-9]*|[0-9]+|-))+")
# Operations on a type that take the patient as a search does.
_SEARCHING = frozenset({"$docref", "$lastn", "$stats"})
# Parameters of a conditional change that select resources, beside those without "_".
_CONDITIONS = frozenset(
    {"_has", "_id", "_lastUpdated", "_profile", "_security", "_source", "_tag"}
)


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
class RecordGuard:
    """Prepares requests, which *fetch* sends, and checks the responses."""

    record: Record
    fetch: Callable[[Interaction], HTTPResponse]
    rules: RecordRules

    def prepare(self, asked: Interaction) -> Interaction:
        """
        Return what is sent: with the patient added, and a version to change.

        Raises:
            ForeignPatientError: it is about another patient, or about several.
            FHIRStatusError: the target of a change cannot be read, or has changed.
            InsufficientScopeError: no scope allows reading it.
        """
        name, kind = asked.name, asked.resource_type
        if name in BUNDLES:
            return replace(asked, body=self._prepare_bundle(asked.body))
        if name in {"capabilities", "get"} or self.record.is_open(name, kind):
            return asked
        if self.record.patient_id is None:
            raise ForeignPatientError("There is no patient in context.")
        self._check_place(asked)
        match name:
            case "read" | "vread" | "history-instance":
                if name != "read":
                    self._read_target(asked)
                return asked.with_pairs(self.record.complete(kind, asked.pairs))
            case "search":
                return self._prepare_search(asked)
            case "create":
                return self._prepare_create(asked)
            case "update" | "patch" | "delete":
                return self._prepare_change(asked)
            case "operation":
                return self._prepare_operation(asked)
        raise ForeignPatientError(f"A {name} is not about a single patient.")

    def check(self, asked: Interaction, response: HTTPResponse) -> HTTPResponse:
        """
        Reject the response unless each resource is the patient's or no patient's.

        Returns the parsed response, or one without a resource as it is.

        Raises:
            MalformedFHIRResponseError: a read returned another resource, or none.
        """
        if asked.name == "capabilities" or not 200 <= response.status_code < 300:
            return response
        if asked.name in {"read", "vread"}:
            resource: dict[str, Any] | None = process_read_response(response, asked)
        else:
            resource = parse_resource(response.body)
        if resource is None:
            return response
        path = asked.path.partition("?")[0]
        # A page that site code follows, without a path, is no stored Bundle either.
        is_made = (asked.name == "get" and not asked.path) or (
            "$" in path and not path.startswith("Bundle/")
        )
        letters = f"rs{get_letters(asked.name)}"
        left_out = record_check(resource, self.record, letters, is_made=is_made)
        return ParsedResponse(
            status_code=response.status_code,
            headers=response.headers,
            body=dump_json(resource) if left_out else response.body,
            url=response.url,
            resource=resource,
        )

    # Reading

    def _check_place(self, asked: Interaction) -> None:
        """Refuse the path of another patient, and of a new one."""
        name, parts = asked.name, asked.parts
        if parts[0] != "Patient":
            return
        is_search = len(parts) == 1 or parts[1].startswith(("_", "$"))
        if not is_search and parts[1] != self.record.patient_id:
            raise ForeignPatientError("This is not the patient of this launch.")
        # The server chooses its id, also of an update whose search finds nothing.
        if name == "create" or (name == "update" and len(parts) == 1):
            raise ForeignPatientError(
                "A new Patient is not the patient of this launch; update it by its id."
            )

    def _prepare_search(self, asked: Interaction) -> Interaction:
        kind, pairs = asked.resource_type, asked.pairs
        is_in_record = asked.parts[0] == "Patient" and len(asked.parts) > 2
        if not isinstance(asked.body, bytes):
            pairs = self.record.narrow(kind, pairs, is_in_record=is_in_record)
            return asked.with_pairs(pairs)
        form = parse_query(asked.body.decode("utf-8", "replace"))
        form = self.record.narrow(kind, form, is_in_record=is_in_record)
        asked = replace(asked, body=write_query(form).encode())
        return asked.with_pairs(self.record.complete(kind, pairs))

    def _prepare_operation(self, asked: Interaction) -> Interaction:
        kind, parts, pairs = asked.resource_type, asked.parts, asked.pairs
        is_about_one = len(parts) == 3
        if parts == ["Patient", "$everything"] or (
            parts[-1] == "$export" and not is_about_one
        ):
            raise ForeignPatientError("This would cover every patient.")
        if asked.body is not None:
            self._check_body(asked)
            # Site code may send the Patient itself; a script has to refer to it.
            is_script = self.record.is_for_script
            told = iter_parameters(asked.body)
            self._refuse_others(pair for pair in told if pair[1] or is_script)
        self._refuse_others(pairs)
        if len(parts) == 2 and parts[-1] in _SEARCHING and asked.body is None:
            pairs = self.record.narrow(kind, pairs)
        else:
            pairs = self.record.complete(kind, pairs)
        if is_about_one:
            self._read_target(asked)
        return asked.with_pairs(pairs)

    def _refuse_others(self, pairs: Iterable[tuple[str, str]]) -> None:
        for name, value in pairs:
            is_named = name.strip().casefold() in SUBJECT_NAMES
            if is_named and not self.record.is_own(value):
                raise ForeignPatientError(
                    f'"{name}" does not name the patient of this launch.'
                )

    # What is read first

    def _read_target(self, asked: Interaction) -> None:
        """Refuse what is asked about another patient's resource."""
        kind = asked.resource_type
        if kind == "Patient" or is_shared(kind):
            return  # its path was checked, or it is nobody's
        self._require(self._find_missing(kind, "r"))
        self._read(kind, asked.parts[1], "r")

    def _find_missing(self, kind: str, letters: str) -> str:
        """The scope without which a type cannot be read first, if it is missing."""
        scopes = self.record.scopes.resource_scopes
        missing = [
            one for one in letters if scopes and not self.record.get_scopes(kind, one)
        ]
        return f"patient/{kind}.{''.join(missing)}" if missing else ""

    def _require(self, missing: str) -> None:
        if missing:
            raise InsufficientScopeError(
                "The resource must be read first, which requires the scope "
                f"{missing}; nothing was sent.",
                missing=missing,
            )

    def _read(
        self, kind: str, resource_id: str, letters: str
    ) -> tuple[dict[str, Any], HTTPResponse]:
        asked = build_read(kind, resource_id)
        response = self.fetch(asked)
        resource = process_read_response(response, asked)
        record_check(resource, self.record, letters)
        return resource, response

    # Writing

    def _check_body(self, asked: Interaction) -> None:
        """Refuse a resource of another patient before it is sent."""
        check_body(asked.body, self.record, get_letters(asked.name))

    def _check_links(self, asked: Interaction, current: Any) -> None:
        """Refuse the body of a script that adds a link to what may be another's."""
        if self.record.is_for_script:
            check_links(asked.body, current, self.record)

    def _prepare_create(self, asked: Interaction) -> Interaction:
        self._check_body(asked)
        self._check_links(asked, None)
        asked = asked.with_pairs([])
        if asked.conditions is None:
            return asked
        pairs = self.record.narrow(asked.resource_type, asked.conditions)
        headers = {**asked.headers, "If-None-Exist": write_query(pairs)}
        return replace(asked, headers=headers)

    def _prepare_change(self, asked: Interaction) -> Interaction:
        kind, name, parts = asked.resource_type, asked.name, asked.parts
        if name == "update":
            self._check_body(asked)
        elif name == "patch":
            self._check_patch(asked.body, kind)
        is_conditional = len(parts) == 1
        pairs: list[tuple[str, str]] = []
        if is_conditional:
            # Others are left out, such as _cascade=delete.
            pairs = [pair for pair in asked.pairs if _is_condition(pair[0])]
            if not pairs:
                raise FHIRRequestError("Name the resource by its id or by a search.")
            pairs = self.record.narrow(kind, pairs)
        asked = asked.with_pairs(pairs)
        missing = self._find_missing(kind, "rs" if is_conditional else "r")
        if missing and self.rules.may_write_unread:
            return asked
        self._require(missing)
        return self._pin_found(asked) if is_conditional else self._pin(asked, parts[1])

    def _pin_found(self, asked: Interaction) -> Interaction:
        """Search as the server would, and change what was found by its id."""
        kind = asked.resource_type
        search = Interaction(
            name="search", method="GET", path=asked.path, resource_type=kind
        )
        bundle = process_bundle_response(
            self.fetch(search), type="searchset", what=f"search of {kind}"
        )
        record_check(bundle, self.record, get_letters(asked.name))
        found = [entry.get("resource") for entry in bundle["entry"]]
        found = [one for one in found if one and one.get("resourceType") == kind]
        if len(found) != 1:
            # None or several: what the server does with its condition.
            self._check_links(asked, None)
            return asked
        found_id = validate_id(found[0].get("id"))
        body = asked.body
        if asked.name == "update":
            body = {"id": found_id, **body}
        asked = replace(asked, path=f"{kind}/{found_id}", id=found_id, body=body)
        return self._pin(asked, found_id)

    def _pin(self, asked: Interaction, resource_id: str) -> Interaction:
        """Read and check the target, and name the version to change."""
        if asked.name == "update" and asked.body.get("id") != resource_id:
            raise FHIRRequestError("The resource has a different id.")
        letters = get_letters(asked.name)
        current, response = self._read(asked.resource_type, resource_id, letters)
        self._check_links(asked, current)
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

    def _check_patch(self, patch: Any, kind: str) -> None:
        """
        Refuse a patch that touches what the resource is, and whose it is.

        Its steps are plain, so that all servers read them in the same way.  Some add a
        missing slash, and ignore the case of members (Microsoft.AspNetCore.JsonPatch,
        2026).
        """
        if not isinstance(patch, list):  # Only the server can evaluate a FHIRPath.
            raise FHIRRequestError(
                "A patch under patient/ scopes must be a JSON Patch: a list of "
                "operations."
            )
        subjects = {*get_compartment(kind).subjects, *SUBJECT_NAMES}
        kept = {path.partition(".")[0].removesuffix("[]").lower() for path in subjects}
        kept |= {"contained", "id", "resourcetype"}
        members = {"op", "path", "value"}
        if not self.record.is_for_script:
            # By a copy or move, a script could turn a text into a link.
            members.add("from")
        for step in patch:
            if not isinstance(step, Mapping) or not step.keys() <= members:
                names = ", ".join(sorted(members))
                raise FHIRRequestError(f"A step of the patch may only have {names}.")
            # Where it moves or copies from is changed as well, or kept.
            for pointer in (step.get("path"), step.get("from", "/_x")):
                if not isinstance(pointer, str) or not _POINTER.fullmatch(pointer):
                    raise FHIRRequestError(
                        "A step of the patch has no plain path, such as /status."
                    )
                if pointer.split("/")[1].lower() in kept:
                    raise ForeignPatientError(
                        "The patch changes whose the resource is, its id or its type."
                    )

    def _prepare_bundle(self, bundle: Any) -> Any:
        """The Bundle with each entry as it may be sent."""
        asked = parse_entries(bundle)
        prepared = []
        for entry, each in zip(bundle.get("entry", []), asked, strict=True):
            rest = {n: v for n, v in entry.items() if n not in {"request", "resource"}}
            prepared.append(rest | self.prepare(each).as_entry())
        return {**bundle, "entry": prepared}


def _is_condition(name: str) -> bool:
    """Whether a parameter selects resources; others would hide some of them."""
    bare = name.partition(":")[0]
    return not bare.startswith("_") or bare in _CONDITIONS
