"""
Whether a resource belongs to the launch's patient, or to no patient.

Whose a resource is, say the elements in the column ``subjects`` of ``compartment.tsv``,
for what comes and for what is sent.  Other elements may refer to anyone: a mother may
report her child's symptoms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any, NoReturn
from urllib.parse import unquote

from django_smart.exceptions import (
    FHIRRequestError,
    ForeignPatientError,
    MalformedFHIRResponseError,
)
from django_smart.fhir.compartment import (
    SUBJECT_NAMES,
    Record,
    build_unlisted_error,
    get_compartment,
    is_shared,
)
from django_smart.fhir.messages import resolve_link
from django_smart.protocol.scopes import ResourceScope
from django_smart.protocol.urls import is_within_base

__all__ = [
    "ABOUT_OTHERS",
    "check_body",
    "check_links",
    "is_of_patient",
    "iter_links",
    "iter_values",
    "record_check",
]

# What some server may take for a link to a patient or a file: in any spelling, with a
# version, or with a base that may be another name of the server.
_LINK = re.compile(r"(?:.*[/:])?(?:patient[/?%\\]|binary/).*", re.IGNORECASE)
# A conditional reference, and no question in a text.
_CONDITIONAL = re.compile(r"\s*(?:\S*/)?[A-Za-z]+\?\S")
# What may follow a reference; a version of a patient is the same patient.
_VERSION = re.compile(r"/_history/[A-Za-z0-9\-.]{1,64}$")
#: Known by what they are about, which may be other entries of their Bundle.
ABOUT_OTHERS = frozenset({"AuditEvent", "Provenance"})
# Kinds of Bundles that are resources of their own.
_STORED = frozenset({"collection", "document", "message"})


def record_check(
    resource: Any, record: Record, letters: str = "rs", *, is_made: bool = False
) -> list[str]:
    """
    Refuse what came, unless it belongs to the patient or to no patient.

    This covers the resource, what it contains, and each resource in a ``Bundle`` or
    ``Parameters``.  A resource that a search included, and that does not show whose it
    is, is removed from *resource* instead, which then has an ``OperationOutcome``.

    Args:
        letters: of the scopes that leave a type to the server.
        is_made: whether an operation made it, so that no Bundle is a stored one.

    Returns:
        The types of the resources that were removed.

    Raises:
        ForeignPatientError: it is another patient's, or does not say.
        MalformedFHIRResponseError: a Bundle whose resources cannot be found.
    """
    check = _Check(record, letters, is_made=is_made)
    check.run(resource)
    return check.left_out


class _Check:
    """One answer, or one body; its entries know each other's names."""

    def __init__(
        self,
        record: Record,
        letters: str,
        *,
        is_made: bool = False,
        is_written: bool = False,
    ) -> None:
        self.left_out: list[str] = []
        self._record = record
        self._letters = letters
        self._is_made = is_made
        self._is_written = is_written
        self._scopes: dict[str, list[ResourceScope]] = {}
        # References to the patient, and to resources that are known to be theirs.
        self._own = record.own
        self._known: set[str] = set()

    def run(self, resource: Any) -> bool:
        """Return whether it is the patient's: neither nobody's nor the server's."""
        try:
            return self._check(resource)
        except RecursionError:
            _refuse("The resource is nested too deeply.")

    def _check(self, resource: Any) -> bool:
        kind = resource.get("resourceType") if isinstance(resource, Mapping) else None
        if not isinstance(kind, str):
            _refuse("A resource has no type.")
        if kind == "Bundle":
            return self._check_bundle(resource)
        if kind == "Parameters":
            return self._check_parameters(resource.get("parameter"))
        listed = self._record.types
        if listed is not None and kind not in {*listed, "OperationOutcome"}:
            raise build_unlisted_error("resource_types", kind)
        if self._is_open(kind, resource):
            try:
                return self._is_own(resource, kind)
            except ForeignPatientError:
                return False  # which the server has allowed
        is_own = self._is_own(resource, kind)
        self._check_scopes(kind, resource)
        if "contained" in resource:
            self._check_contained(resource["contained"])
        if not (is_own or is_shared(kind) or self._is_nobodys(resource, kind)):
            _refuse(f"The {kind} is not known to be the patient's.")
        return is_own

    def _get_scopes(self, kind: str) -> list[ResourceScope]:
        if kind not in self._scopes:
            self._scopes[kind] = self._record.get_scopes(kind, self._letters)
        return self._scopes[kind]

    def _is_open(self, kind: str, resource: Mapping[str, Any]) -> bool:
        """Whether a scope that is not for one patient leaves it to the server."""
        return any(
            scope.level != "patient" and _selects(scope, resource)
            for scope in self._get_scopes(kind)
        )

    def _check_scopes(self, kind: str, resource: Mapping[str, Any]) -> None:
        """Refuse for a script what no scope selects; site code may rely on the EHR."""
        if not self._record.is_for_script:
            return
        own = [scope for scope in self._get_scopes(kind) if scope.level == "patient"]
        if own and not any(_selects(scope, resource) for scope in own):
            _refuse(f"No granted scope selects this {kind}.")

    def _is_nobodys(self, resource: Mapping[str, Any], kind: str) -> bool:
        """Whether one resource, unlike others of its type, belongs to no patient."""
        if kind == "Binary":
            is_unknown = "securityContext" not in resource
            return is_unknown and not self._record.is_for_script
        # A script may read the schedule of a doctor or a room, but not change it.
        if kind != "Schedule" or "r" not in self._letters:
            return False
        actors = [value for _, value in _find_values(resource, ("actor[]",))]
        references = [
            _read_reference(actor.get("reference"))
            if isinstance(actor, Mapping)
            else ""
            for actor in actors
        ]
        return bool(references) and all(map(self._record.is_to_shared, references))

    def _is_own(self, resource: Mapping[str, Any], kind: str) -> bool:
        """Whether it says that it is the patient's; refuse what says otherwise."""
        if kind == "Patient":
            if f"Patient/{resource.get('id')}" not in self._own:
                _refuse("This is not the patient of this launch.")
            return True
        subjects = get_compartment(kind).subjects
        found = _find_values(resource, subjects)
        if not found and subjects and not self._is_written:
            # DSTU2 and STU3 had other names for some of them.
            found = _find_values(resource, SUBJECT_NAMES)
        is_own = False
        for path, value in found:
            told = value if isinstance(value, Mapping) else {}
            reference = _read_reference(told.get("reference"))
            is_patient = told.get("type", "Patient") == "Patient"
            if (reference in self._own and is_patient) or (
                reference in self._known and kind in ABOUT_OTHERS
            ):
                is_own = True
                if "[]" not in path:
                    return True
            elif "[]" not in path or _is_to_patient(told, reference):
                _refuse(f"{kind}.{path} does not name the patient of this launch.")
        return is_own

    def _check_contained(self, contained: Any) -> None:
        # Some servers write an object in place of a list.
        for each in contained if isinstance(contained, list) else [contained]:
            kind = each.get("resourceType") if isinstance(each, Mapping) else None
            if not isinstance(kind, str):
                continue
            if kind.casefold() == "patient":
                _refuse("A contained Patient is not the patient of this launch.")
            if kind in {"Bundle", "Parameters"}:
                self._check(each)
            else:
                # Without a subject, it belongs to what contains it.
                self._is_own(each, kind)
            self._check_contained(each.get("contained", []))

    def _check_parameters(self, parameters: Any) -> bool:
        is_own = False
        # Some servers write an object in place of a list.
        for each in parameters if isinstance(parameters, list) else [parameters]:
            if isinstance(each, Mapping):
                if each.get("resource") is not None:
                    is_own |= self._check(each["resource"])
                is_own |= self._check_parameters(each.get("part"))
        return is_own

    def _check_bundle(self, bundle: Mapping[str, Any]) -> bool:
        # Absent when empty; null is what some servers write.
        entries = bundle.get("entry") or []
        if not isinstance(entries, list) or not all(map(_is_entry, entries)):
            if self._is_written:
                raise FHIRRequestError("An entry of the Bundle is malformed.")
            raise MalformedFHIRResponseError("An entry of a Bundle is malformed.")
        for entry in entries:
            url, resource = str(entry.get("fullUrl")), entry.get("resource", {})
            names = resource.get("resourceType"), resource.get("id")
            if url.startswith("urn:") and names == ("Patient", self._record.patient_id):
                self._own.add(url)
        is_stored = not self._is_made and str(bundle.get("type")) in _STORED
        if is_stored and self._is_open("Bundle", bundle):
            return False
        if is_stored:
            self._check_scopes("Bundle", bundle)
        is_own = False
        removed: list[Mapping[str, Any]] = []
        for entry in sorted(entries, key=_is_about_others):
            try:
                is_own |= self._check_entry(entry)
            except ForeignPatientError:
                if self._is_written or not _is_included(entry):
                    raise
                removed.append(entry)
        if removed:
            _leave_out(entries, removed)
            self.left_out.extend(map(_get_type, removed))
        if is_stored and not is_own:
            _refuse("The Bundle is not known to be the patient's.")
        return is_own

    def _check_entry(self, entry: Mapping[str, Any]) -> bool:
        outcome = (entry.get("response") or {}).get("outcome")
        if outcome is not None:
            self._check(outcome)
        resource = entry.get("resource")
        if not resource:
            return False
        url = str(entry.get("fullUrl", ""))
        reference = f"{resource.get('resourceType')}/{resource.get('id')}"
        names = {reference, f"{self._record.base_url}/{reference}", url}
        check = self
        if self._is_elsewhere(url):
            # There, a relative reference is to another server's resource.
            check = copy(self)
            check._own = {one for one in self._record.own if "://" in one}
            names = {url}
        is_own = check._check(resource)
        if is_own:
            self._known |= names
        return is_own

    def _is_elsewhere(self, url: str) -> bool:
        """Whether the ``fullUrl`` of an entry is at another server."""
        base_url = self._record.base_url
        if url.startswith(f"{base_url}/") or "://" not in url:
            return False
        return not is_within_base(resolve_link(base_url, url), base_url)


def _is_to_patient(told: Mapping[str, Any], reference: str) -> bool:
    """Whether one of several subjects is a patient, who is not the launch's."""
    if reference:
        return "patient/" in reference.casefold()
    return "identifier" in told and told.get("type", "Patient") == "Patient"


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return False
    response = entry.get("response") or {}
    return isinstance(entry.get("resource", {}), Mapping) and (
        isinstance(response, Mapping)
        and isinstance(response.get("outcome"), Mapping | None)
    )


def _get_type(entry: Mapping[str, Any]) -> str:
    return str(entry.get("resource", {}).get("resourceType"))


def _is_about_others(entry: Mapping[str, Any]) -> bool:
    return _get_type(entry) in ABOUT_OTHERS


def _is_included(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is no match of a search, but came with one."""
    search = entry.get("search")
    return isinstance(search, Mapping) and search.get("mode") == "include"


def _leave_out(entries: list[Any], removed: list[Mapping[str, Any]]) -> None:
    """Remove entries of a Bundle, and add one that says so."""
    places = set(map(id, removed))
    entries[:] = [entry for entry in entries if id(entry) not in places]
    counts = sorted(Counter(map(_get_type, removed)).items())
    types = ", ".join(f"{number} {name}" for name, number in counts)
    issue = {
        "severity": "warning",
        "code": "incomplete",
        "diagnostics": f"Left out, not known to be the patient's: {types}",
    }
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    entries.append({"resource": outcome, "search": {"mode": "outcome"}})


def check_body(resource: Any, record: Record, letters: str) -> None:
    """Refuse the body of a request as :func:`record_check` does what came."""
    _Check(record, letters, is_written=True).run(resource)


def check_links(body: Any, current: Any, record: Record) -> None:
    """
    Refuse a script's body that adds a link to another patient or to a file.

    Whoever may read what a resource of the patient's refers to could otherwise write
    that it refers to anything.

    Args:
        body: a resource or JSON Patch.
        current: the resource that it changes, whose links it may keep.
    """
    base = f"{record.base_url}/"
    # A system may look like a link, but is none.
    held = iter_links(current, "reference", "system", "url")
    known = record.own | {link.removeprefix(base) for link in held}
    for value in iter_values(body):
        if isinstance(value, Mapping):
            told = str(value.get("reference", ""))
            is_other = value.get("type") == "Patient" and told not in known
            # A patch step has its new value, such as a text or a reference, in "value".
            changed = str(value.get("value", "")) if isinstance(body, list) else ""
            if is_other or "?" in unquote(told) or _CONDITIONAL.match(unquote(changed)):
                _refuse("A reference in the body may lead to another patient.")
        # A text is no link.
        elif isinstance(value, str) and len(value.split()) == 1:
            link = value.strip().removeprefix(base)
            is_link = _LINK.fullmatch(unquote(link))
            if is_link and not {link, _read_reference(link)} & known:
                _refuse("The body adds a link to a Patient or a Binary.")


def iter_links(value: Any, *names: str) -> Iterator[str]:
    """The texts of members with these names, such as ``reference``."""
    for item in iter_values(value):
        if isinstance(item, Mapping):
            links = map(item.get, names)
            yield from (link for link in links if isinstance(link, str))


def is_of_patient(resource: Any, record: Record) -> bool:
    """Run :func:`record_check`; return whether *resource* says it is the patient's."""
    return _Check(record, "r").run(resource)


def _refuse(reason: str) -> NoReturn:
    raise ForeignPatientError(reason)


def _read_reference(text: object) -> str:
    """A reference without its version; empty if it is no text."""
    return _VERSION.sub("", text) if isinstance(text, str) else ""


def _find_values(resource: Any, paths: Iterable[str]) -> list[tuple[str, Any]]:
    """Each path with each value at it."""
    return [(path, value) for path in paths for value in _get_values(resource, path)]


def _get_values(value: Any, path: str) -> Iterator[Any]:
    """The value at *path*; a list where none belongs is a value that fits nothing."""
    step, _, rest = path.partition(".")
    name = step.removesuffix("[]")
    found = value.get(name) if isinstance(value, Mapping) else None
    items = found if isinstance(found, list) and name != step else [found]
    for item in items:
        if item is not None:
            if rest:
                yield from _get_values(item, rest)
            else:
                yield item


def iter_values(value: Any) -> Iterator[Any]:
    """Everything within *value*, which may be nested deeper than Python's stack."""
    values = [value]
    while values:
        item = values.pop()
        yield item
        if isinstance(item, Mapping | list):
            values += item.values() if isinstance(item, Mapping) else item


def _selects(scope: ResourceScope, resource: Mapping[str, Any]) -> bool:
    """
    Whether a scope's parameters let *resource* through.

    Those that look at a code in an element of the parameter's name are understood, as
    in ``category=laboratory``; others select nothing.
    """
    return all(_has_code(resource, *pair) for pair in scope.query)


def _has_code(resource: Mapping[str, Any], name: str, value: str) -> bool:
    element = re.sub("-([a-z])", lambda found: found[1].upper(), name)
    held = set(_iter_codes(resource.get(element)))
    # Without a system, or without a code, an option leaves it open.
    forms = {pair for s, c in held for pair in ((s, c), (s, None), (None, c))}
    for option in value.split(","):
        system, bar, code = option.rpartition("|")
        if (system if bar else None, code or None) in forms or (held and not option):
            return True
    return False


def _iter_codes(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for item in value:
            yield from _iter_codes(item)
    elif isinstance(value, Mapping):
        if "coding" in value:
            yield from _iter_codes(value["coding"])
        else:
            code = value.get("code", value.get("value"))
            yield str(value.get("system", "")), str(code)
    elif isinstance(value, str | bool):
        yield "", str(value).lower() if isinstance(value, bool) else value
