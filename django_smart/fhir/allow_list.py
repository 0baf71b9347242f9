"""
What a script may ask of the launch's FHIR server: an allow-list.

A script may be that of a patient with developer tools.  So each part of its request is
listed here or by an attribute of the view, or it is refused before anything is sent:
method, type, operation, each parameter with its modifier and value.

Spec: FHIR R4, "RESTful API", http://hl7.org/fhir/R4/http.html, and "Search",
http://hl7.org/fhir/R4/search.html.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NoReturn

from django_smart.exceptions import (
    FHIRRequestError,
    ForeignPatientError,
    InsufficientScopeError,
)
from django_smart.fhir.compartment import (
    REFERENCE,
    SUBJECT_NAMES,
    Record,
    build_unlisted_error,
    find_missing_scope,
    get_compartment,
    is_shared,
)
from django_smart.fhir.interactions import (
    BUNDLES,
    WRITES,
    Interaction,
    iter_parameters,
    parse_entries,
    parse_query,
)

__all__ = ["OPERATIONS", "AllowList"]

# The columns of search.tsv, and the modifiers of each kind of parameter.
_MODIFIERS: Mapping[str, Collection[str]] = {
    "token": {"missing", "not", "text"},
    "date": {"missing"},
    "number": {"missing"},
    "quantity": {"missing"},
    "string": {"contains", "exact", "missing"},
    "uri": {"above", "below", "missing"},
    "reference": {"missing"},
}
# Search parameters that all types have.
_OF_ALL = {
    "_id": "token",
    "_lastUpdated": "date",
    "_profile": "uri",
    "_security": "token",
    "_source": "uri",
    "_tag": "token",
}
# Parameters that select nothing, and their values.
_DATE = re.compile(r"[0-9]{4}[0-9T:.Z+ \-]{0,40}")
_CONTROLS = {
    "_at": _DATE,
    "_count": re.compile("[1-9][0-9]{0,5}"),
    "_elements": re.compile("[A-Za-z][A-Za-z.,]*"),
    # A plus sign that was not encoded is a space.
    "_format": re.compile("json|application/(?:fhir[+ ])?json"),
    "_pretty": re.compile("true|false"),
    "_since": _DATE,
    "_summary": re.compile("count|data|false|text|true"),
    "_total": re.compile("accurate|estimate|none"),
}
# Others would hide whose the resources are that an operation returns.
_OPERATION_CONTROLS = frozenset({"_count", "_format", "_pretty"})
# A script must not send the server many times as many requests.
_MAX_ENTRIES = 100

# Operations with the types that have them, and their parameters, none of which leads
# to a patient.
_CODE = "code coding date displayLanguage system version"
_OPERATIONS: Mapping[str, tuple[Collection[str], str]] = {
    "docref": ({"DocumentReference"}, "end on-demand profile start type"),
    "everything": ({"Patient"}, "_since _type end start"),
    "expand": (
        {"ValueSet"},
        "activeOnly check-system-version count date designation displayLanguage "
        "exclude-system excludeNested excludeNotForUI excludePostCoordinated filter "
        "force-system-version includeDefinition includeDesignations offset "
        "system-version url valueSetVersion",
    ),
    # And what an Observation can be searched by.
    "lastn": ({"Observation"}, "max"),
    "lookup": ({"CodeSystem"}, f"{_CODE} property"),
    "validate": ((), "mode profile resource"),
    "validate-code": (
        {"CodeSystem", "ValueSet"},
        f"{_CODE} abstract codeableConcept display systemVersion url valueSetVersion",
    ),
}
#: What scripts may call unless the view lists other operations.
OPERATIONS = frozenset(_OPERATIONS)
# They read nothing of a patient, so that their parameters may also be in a body.
_WITH_BODY = frozenset({"expand", "lookup", "validate", "validate-code"})

_INCLUSION = re.compile("([A-Z][A-Za-z]+):([a-z-]+)(?::[A-Z][A-Za-z]+)?")
_PATIENT = re.compile(r"patient\s*[/%?\\]", re.IGNORECASE)
# Parameters by which a server might leave out the resources, which say whose they are.
_HIDING = re.compile("_|.*:")
# The parts of a parameter: of a chain, a type, a modifier.
_STEPS = re.compile("[.:]")
# Parameters that name a patient in some type, or at the end of a chain.
_WHO = SUBJECT_NAMES | {"actor", "beneficiary", "individual", "member"}
# Types that are patients, or of which patients are members.
_PERSONS = frozenset({"Group", "Patient", "Person", "RelatedPerson"})


@cache
def _read_table() -> dict[str, dict[str, str]]:
    """The kind of each search parameter, for each type of R4."""
    table = {}
    text = files(__package__).joinpath("search.tsv").read_text("utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            resource_type, *columns = line.split("\t")
            table[resource_type] = {
                name: kind
                for kind, names in zip(_MODIFIERS, columns, strict=True)
                for name in names.split()
            }
    return table


def _find_kind(resource_type: str, name: str) -> tuple[str, bool]:
    """Kind of a search parameter, and whether it leads to shared types alone."""
    found = _read_table().get(resource_type, {})
    marked = found.get(f"{name}*")
    return marked or found.get(name) or _OF_ALL.get(name, ""), marked is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowList:
    """
    What a view's scripts may ask under the scopes of their launch.

    Args:
        record: of the patient; what its scopes leave to the server, that decides about.

    The others are attributes of the view, and list what a refusal says they would open:

        methods: of HTTP.
        batch: kinds of Bundles that may be sent.
        resource_types: by default, those of R4, of which those that belong to no
            patient can only be read.
        operations: without ``$``.
        parameters: of searches, beside those of the table, as ``Slot.schedule``.
    """

    record: Record
    methods: Collection[str]
    batch: Collection[str] = ()
    resource_types: Collection[str] | None = None
    operations: Collection[str] = OPERATIONS
    parameters: Collection[str] = ()

    def check(self, asked: Interaction) -> None:
        """
        Refuse a request that is not allowed in all its parts, or in its entries.

        Raises:
            FHIRRequestError: with the code ``fhir_not_allowed``; the message says which
                attribute of the view would allow it.
            ForeignPatientError: it may lead to another patient, so that none would.
            InsufficientScopeError: the scopes do not allow it.
        """
        asked_for = [asked]
        if asked.name in BUNDLES:
            self._require("batch", asked.name)
            asked_for = parse_entries(asked.body, limit=_MAX_ENTRIES)
        scopes = self.record.scopes
        for one in asked_for:
            self._check(one)
            missing = find_missing_scope(scopes, one.name, one.resource_type)
            if missing and scopes.resource_scopes:
                raise InsufficientScopeError(
                    f"This requires the scope {missing}.", missing=missing
                )

    def _check(self, asked: Interaction) -> None:
        name, kind, parts = asked.name, asked.resource_type, asked.parts
        self._require("methods", asked.method)
        if kind and (self.resource_types is not None or kind not in _read_table()):
            self._require("resource_types", kind)
        if name == "operation":
            self._require("operations", parts[-1].removeprefix("$"))
        if self.record.is_open(name, kind):
            self._check_open(asked)
        elif name == "search":
            if len(parts) > 2 and parts[0] != "Patient":
                raise ForeignPatientError("This is not the patient of this launch.")
            pairs = asked.pairs
            if isinstance(asked.body, bytes):
                pairs += parse_query(asked.body.decode("utf-8", "replace"))
            self._check_search(kind, pairs)
        elif name == "operation":
            self._check_operation(asked)
        elif name in WRITES:
            self._check_write(asked)
        else:
            for parameter, value in asked.pairs:
                self._check_control(parameter, value)

    def _require(self, attribute: str, value: str) -> None:
        """Refuse what an attribute of the view has to list, and does not."""
        if value not in (getattr(self, attribute) or ()):
            raise build_unlisted_error(attribute, value)

    def _check_open(self, asked: Interaction) -> None:
        """The server decides about this type, which is not to say about others."""
        if asked.name == "search" and self.record.scopes.are_for_patient:
            for parameter, _ in asked.pairs:
                if "_has" in parameter.lower():
                    self._require("parameters", f"{asked.resource_type}.{parameter}")

    def _check_control(self, parameter: str, value: str) -> None:
        known = _CONTROLS.get(parameter)
        if known is None or not known.fullmatch(value):
            _refuse(f'"{parameter}" with this value')

    # Searches

    def _check_search(self, kind: str, pairs: list[tuple[str, str]]) -> None:
        for parameter, value in pairs:
            if parameter in {"_include", "_revinclude"}:
                self._check_inclusion(kind, parameter, value)
            elif parameter == "_sort":
                for key in value.split(","):
                    known, _ = _find_kind(kind, key.removeprefix("-"))
                    if not known:
                        _refuse('"_sort" by this')
            elif parameter in _CONTROLS:
                self._check_control(parameter, value)
            else:
                self._check_criterion(kind, parameter, value)

    def _check_criterion(self, kind: str, parameter: str, value: str) -> None:
        """One parameter that selects resources, also for a conditional change."""
        bare, _, modifier = parameter.partition(":")
        ends = {bare, _STEPS.split(parameter)[-1]}
        is_own = self.record.is_own(value)
        if ends & (get_compartment(kind).names | _WHO) and not (
            is_own or (self.record.is_to_shared(value) and not ends & SUBJECT_NAMES)
        ):
            raise ForeignPatientError(
                f'"{parameter}" does not name the patient of this launch.'
            )
        known, is_to_shared = _find_kind(kind, bare)
        if known == "reference" and modifier != "missing":
            is_allowed = (is_own and modifier in {"", "Patient"}) or (
                self.record.is_to_shared(value, modifier, is_known=is_to_shared)
            )
        else:
            is_allowed = bool(known) and modifier in {"", *_MODIFIERS[known]}
            is_allowed &= modifier != "missing" or value in {"true", "false"}
        if not is_allowed:
            self._refuse_others(parameter, value)
            self._require("parameters", f"{kind}.{parameter}")

    def _refuse_others(self, parameter: str, value: str) -> None:
        """Refuse a value that may lead to another patient, whatever the view lists."""
        kinds = {found[1] for found in map(REFERENCE.match, value.split(",")) if found}
        if not self.record.is_own(value) and (
            kinds & _PERSONS or _PATIENT.search(value)
        ):
            raise ForeignPatientError(f'"{parameter}" may name another patient.')

    def _check_inclusion(self, kind: str, parameter: str, value: str) -> None:
        """Refuse to include what is not of *kind*, or what many patients have."""
        found = _INCLUSION.fullmatch(value)
        is_known = found and _find_kind(found[1], found[2])[0] == "reference"
        is_about = found and found[1] == kind
        if found and parameter == "_revinclude":
            # What refers to a patient in another role may be in another record.
            own = get_compartment(found[1]).names | SUBJECT_NAMES
            is_about = not is_shared(kind) and (kind != "Patient" or found[2] in own)
        if not (is_known and is_about):
            _refuse(f'"{parameter}" with this value')

    # Operations

    def _check_operation(self, asked: Interaction) -> None:
        operation, kind = asked.parts[-1].removeprefix("$"), asked.resource_type
        pairs = asked.pairs
        is_known = operation in _OPERATIONS
        types, names = _OPERATIONS.get(operation, ((), ""))
        if not kind or (types and kind not in types):
            _refuse(f"${operation} of this")
        if asked.body is not None:
            if is_known and operation not in _WITH_BODY:
                _refuse(f"A body for ${operation}")
            pairs = [*pairs, *iter_parameters(asked.body)]
        for parameter, value in pairs:
            if parameter in SUBJECT_NAMES:
                continue  # The guard checks whose they are.
            if parameter in _OPERATION_CONTROLS:
                self._check_control(parameter, value)
            elif parameter in names.split() or not (
                is_known or _HIDING.match(parameter)
            ):
                self._refuse_others(parameter, value)
            elif operation == "lastn":
                self._check_criterion(kind, parameter, value)
            else:
                _refuse(f'"{parameter}" of ${operation}')

    # Changes

    def _check_write(self, asked: Interaction) -> None:
        kind, name, pairs = asked.resource_type, asked.name, asked.pairs
        if is_shared(kind):
            self._require("resource_types", kind)
        if name == "create":
            pairs = asked.conditions or []
        # Without effect where an id names the resource.
        for parameter, value in pairs if len(asked.parts) == 1 else ():
            self._check_criterion(kind, parameter, value)


def _refuse(what: str) -> NoReturn:
    raise FHIRRequestError(f"{what} is not allowed.", code="fhir_not_allowed")
