"""
Whose record a resource belongs to, and what scopes for one patient let through.

The facts are those of ``compartment.tsv``: for each type of R4 the elements that say
whose a resource is, and all that may name a patient.  Whatever the server checks, what
is not known to be the patient's is refused.

Spec: FHIR R4, "CompartmentDefinition", http://hl7.org/fhir/R4/compartmentdefinition-patient.html;
SMART App Launch 2.2, "Scopes for requesting FHIR Resources".
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote

from django_smart.exceptions import FHIRRequestError, ForeignPatientError
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import resolve_link, validate_resource_type
from django_smart.protocol.scopes import ResourceScope, ScopeSet, required_letter
from django_smart.protocol.urls import is_within_base

__all__ = [
    "ABOUT_OTHERS",
    "Compartment",
    "PatientBoundary",
    "Record",
    "find_patient_parameter",
    "find_values",
    "get_compartment",
    "get_letters",
    "is_shared",
    "iter_values",
    "read_reference",
    "selects",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compartment:
    """
    What FHIR says of a resource type.

    Attributes:
        parameter: search parameter that names the patient; empty if there is none.
        subjects: elements that say whose a resource is; ``[]`` follows a list.
        referring: all elements that may refer to a patient.
    """

    parameter: str = ""
    subjects: tuple[str, ...] = ()
    referring: frozenset[str] = frozenset()

    @property
    def is_shared(self) -> bool:
        """Whether resources of this type belong to no patient."""
        return not self.subjects

    @property
    def names(self) -> frozenset[str]:
        """Search parameters that name the patient of a resource."""
        return _NAMES.intersection(self.subjects) | {self.parameter} - {""}

    @property
    def sole_names(self) -> frozenset[str]:
        """Those by which a resource has one patient, and no other."""
        # The first one: a Communication may also be known by its recipients.
        if any("[]" in path for path in self.subjects[:1]):
            return frozenset()
        # Also the only subject by a name of its own, such as Coverage.beneficiary.
        return self.names.union(self.subjects if len(self.subjects) == 1 else ())


# Of another version of FHIR: nothing but the usual names is known.
_UNKNOWN = Compartment(parameter="patient", subjects=("patient", "subject"))


@cache
def _read_table() -> dict[str, Compartment]:
    table = {}
    text = files(__package__).joinpath("compartment.tsv").read_text("utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            name, parameter, subjects, referring = line.split("\t")
            table[name] = Compartment(
                parameter=parameter,
                subjects=tuple(subjects.split()),
                referring=frozenset(referring.split()),
            )
    return table


def get_compartment(resource_type: str) -> Compartment:
    """What is known of a type; of one that is not R4's, the usual names."""
    return _read_table().get(resource_type, _UNKNOWN)


def is_shared(resource_type: str) -> bool:
    """Whether resources of this type belong to no patient, nor hold any that do."""
    is_container = resource_type in _CONTAINERS
    return not is_container and get_compartment(resource_type).is_shared


def find_patient_parameter(resource_type: str) -> str:
    """
    The search parameter that names the patient.

    Raises:
        FHIRRequestError: resources of this type belong to no patient in R4.
    """
    known = _read_table().get(validate_resource_type(resource_type))
    if known is None or not known.parameter:
        raise FHIRRequestError(
            f"{resource_type} is not in R4's patient compartment: use "
            "search(), and name the parameter that selects the patient."
        )
    return known.parameter


# A reference to a patient in any spelling that some server may understand.
_PATIENT = re.compile(r"(?:^|[/\s:])patient\s*(?:[/?|#]|$)")
# As the value of a search parameter, which may be the URL of a profile as well.
_PATIENT_VALUE = re.compile(r"(?:^|/)patient\s*[/?]")
_PATIENT_URL = re.compile(r"(?:^|/)patient/([a-z0-9\-.]{1,64})(?:[/?]|$)")
# What may follow a reference; a version of a patient is the same patient.
_VERSION = re.compile(r"/_history/[A-Za-z0-9\-.]{1,64}$")
# A URI need not be a reference; only one that looks like it is taken for one.
_PATIENT_URI = re.compile(r"(?:.*/)?Patient/[A-Za-z0-9\-.]{1,64}(?:/_history/.*)?")
# Elements of data types: extensions, answers, annotations and signatures.
_REFERRING = frozenset({"authorReference", "onBehalfOf", "valueReference", "who"})
_URIS = frozenset({"valueCanonical", "valueUri", "valueUrl"})
#: Known by what they are about, which may be other entries of their Bundle.
ABOUT_OTHERS = frozenset({"AuditEvent", "Provenance"})
_CONTAINERS = frozenset({"Bundle", "Parameters"})
# Kinds of Bundles that are resources of their own.
_STORED = frozenset({"collection", "document", "message"})
_NAMES = frozenset({"patient", "subject"})
_MAX_DECODED = 4
# Search parameters by which something else may lead to a patient.
_CHAINED = frozenset(
    {"actor", "beneficiary", "individual", "member", "patient", "subject"}
)
_INCLUSIONS = frozenset({"_include", "_revinclude"})
# The parts of a parameter's name: of a chain, a type or a modifier.
_STEPS = re.compile("[.:]")
# Search parameters that lead to types that belong to no patient, whatever is searched.
_TO_SHARED = frozenset(
    {
        *("authenticator", "custodian", "endpoint", "facility", "general-practitioner"),
        *("ingredient", "insurer", "location", "manufacturer", "medication"),
        *("organization", "participating-organization", "partof"),
        *("performing-organization", "practitioner", "primary-organization"),
        *("provider", "questionnaire", "service", "service-provider", "site", "slot"),
        "study",
        # Of a slot; whose schedule it is has to be named.
        "schedule",
    }
)
_REFERENCE = re.compile(r"([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}")
# Search parameters that look at more than the resources that are searched for.
_SELECTING_BY_OTHERS = frozenset({"_contained", "_containedtype", "_in", "_list"})
# Modifiers of R5 that look at what is in a list, which says for whom it was made.
_MEMBERSHIPS = frozenset({"in", "not-in"})
_LISTED = re.compile(r"(?:^|[/,])(?:careteam|group|list)/[a-z0-9\-.]")
# Those that may do so wherever they are.
_SELECTING_BY_ANY = frozenset({"_filter", "_has", "_query"})
_REVERSE_TYPE = re.compile("_has:([^:]*)", re.IGNORECASE)
_REVERSE = re.compile(r"_has:([A-Za-z]+):([a-z\-]+):[^:.]+(?::[a-z\-]+)?")
# Values of _summary that leave out no element that names the patient, or every entry.
_WHOLE_SUMMARIES = frozenset({"count", "data", "false"})
# Characters of the scopes with parameters for one type; more of them select nothing.
_LONGEST_SCOPES = 10_000


class _Names:
    """
    Names in a Bundle, and those around it.

    These are not copied: a server may send any number of names and Bundles.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, inner: Container[str], outer: Container[str]) -> None:
        self._inner, self._outer = inner, outer

    def __contains__(self, name: object) -> bool:
        return name in self._inner or name in self._outer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What the resources of one answer, or of one request, know of each other."""

    own: Container[str] = field(repr=False)
    """References to the patient."""
    known: Container[str] = field(default=frozenset(), repr=False)
    """References to resources that are known to be the patient's."""
    urns: Container[str] = field(default=frozenset(), repr=False)
    """``urn:`` names of other entries."""
    is_written: bool = False
    is_made: bool = False
    """Whether an operation made them, so that no Bundle is a stored one."""
    left_out: list[str] | None = None
    """Types of the included resources that were left out; ``None`` to keep them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """
    The record of the patient that ``patient/`` scopes were granted for.

    Scopes of other levels without search parameters leave their types to the server.

    Args:
        patient_id: of the patient in context; ``None`` if there is none.
        base_url: of the server.
        scopes: that were granted.
    """

    patient_id: str | None = field(repr=False)
    base_url: str
    scopes: ScopeSet
    own: frozenset[str] = field(init=False, repr=False, compare=False)
    """The references that name the patient, and no other form of them."""
    _by_type: dict[str, list[tuple[frozenset[str], ResourceScope]]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        own = set[str]()
        if self.patient_id is not None:
            reference = f"Patient/{self.patient_id}"
            own = {reference, f"{self.base_url}/{reference}"}
        object.__setattr__(self, "own", frozenset(own))
        # A server can send thousands of scopes, and of resources to compare them with.
        seen, lengths = set[object](), Counter[str]()
        for scope in self.scopes.resource_scopes:
            name = scope.type.lower()
            lengths[name] += len(scope.text) if scope.query else 0
            key = (name, scope.level, scope.letters, scope.query)
            if key in seen or (scope.query and lengths[name] > _LONGEST_SCOPES):
                continue
            seen.add(key)
            found = self._by_type.setdefault(name, [])
            found.append((frozenset(scope.letters), scope))

    # Scopes

    def is_open(self, interaction: str, resource_type: str) -> bool:
        """Whether the server alone decides: a scope is not for one patient."""
        scopes = self.get_open_scopes(get_letters(interaction), resource_type)
        return any(not scope.query for scope in scopes)

    def get_open_scopes(self, letters: str, resource_type: str) -> list[ResourceScope]:
        """The scopes with any of *letters* that are not for one patient."""
        granted = self._get_scopes(resource_type, letters)
        return [scope for scope in granted if scope.level != "patient"]

    def has_scope(self, resource_type: str, letter: str) -> bool:
        """Whether a scope has *letter* for the type, or none is about resources."""
        granted = self._get_scopes(resource_type, letter)
        return any(granted) or not self.scopes.resource_scopes

    def _get_scopes(self, resource_type: str, letters: str) -> Iterator[ResourceScope]:
        for name in {"*", resource_type.lower()}:
            for granted, scope in self._by_type.get(name, ()):
                if not granted.isdisjoint(letters):
                    yield scope

    # Searches

    def narrow(
        self,
        resource_type: str,
        pairs: list[tuple[str, str]],
        *,
        is_in_record: bool = False,
    ) -> list[tuple[str, str]]:
        """
        Add the patient to the parameters of a search.

        Args:
            is_in_record: whether the path of the search selects the patient already.

        Raises:
            ForeignPatientError: a parameter names another patient, or nothing selects
                one among resources of this type.
        """
        compartment = get_compartment(resource_type)
        is_named = is_in_record or is_shared(resource_type)
        for name, value in pairs:
            bare = name.removesuffix(":Patient")
            if bare in compartment.names | compartment.sole_names:
                # A Schedule may be that of a doctor or a room.
                if not (self._is_own(value) or self.is_to_shared(value)):
                    _refuse(f'"{name}" does not name the patient of this launch.')
                is_named |= bare in compartment.names
        if not is_named:
            if not compartment.parameter:
                _refuse(f"No search parameter of {resource_type} selects the patient.")
            is_id = compartment.parameter in {"patient", "_id"}
            own = f"{'' if is_id else 'Patient/'}{self.patient_id}"
            pairs = [*pairs, (compartment.parameter, own)]
        return self.complete(resource_type, pairs)

    def refuse_others(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Refuse a patient or subject who is not the patient of this launch."""
        for name, value in pairs:
            if name.strip().casefold() in _NAMES and not self._is_own(value):
                _refuse(f'"{name}" does not name the patient of this launch.')

    def _is_own(self, value: str) -> bool:
        return value in {self.patient_id, *self.own}

    def is_to_shared(self, value: str) -> bool:
        """Whether each reference of a parameter is to what belongs to no patient."""
        references = (
            _REFERENCE.fullmatch(one.removeprefix(f"{self.base_url}/"))
            for one in value.split(",")
        )
        return all(found and is_shared(found[1]) for found in references)

    def complete(
        self, resource_type: str, pairs: list[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """Leave out, or extend, what would hide whose the resources are."""
        includes = any(
            name.partition(":")[0].lower() in _INCLUSIONS for name, _ in pairs
        )
        paths = get_compartment(resource_type).subjects
        subjects = [path.partition(".")[0].removesuffix("[]") for path in paths]
        completed = []
        for name, value in pairs:
            bare = name.partition(":")[0].lower()
            if bare == "_summary" and value not in _WHOLE_SUMMARIES:
                continue
            if bare == "_elements":
                if includes or name != "_elements":
                    continue
                wanted = [*value.split(","), *subjects]
                value = ",".join(dict.fromkeys(filter(None, wanted)))
            completed.append((name, value))
        return completed


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientBoundary(Record):
    """
    The record, for the requests of a script.

    Args:
        other_patients: elements that may name other patients all the same, such as
            ``Coverage.subscriber``.
        trusts_binaries: whether a ``Binary`` that does not say whose it is may be read.
    """

    other_patients: Collection[str] = ()
    trusts_binaries: bool = False

    # Searches

    def narrow(
        self,
        resource_type: str,
        pairs: list[tuple[str, str]],
        *,
        is_in_record: bool = False,
    ) -> list[tuple[str, str]]:
        """
        Parameters of a search that finds the patient's resources alone.

        Args:
            is_in_record: whether the path of the search selects the patient already.

        Raises:
            ForeignPatientError: a parameter names another patient, or nothing selects
                one among resources of this type.
        """
        is_named = self.check_parameters(resource_type, pairs)
        compartment = get_compartment(resource_type)
        is_named |= is_in_record or is_shared(resource_type)
        if not is_named:
            if not compartment.parameter:
                _refuse(f"No search parameter of {resource_type} selects the patient.")
            is_id = compartment.parameter in {"patient", "_id"}
            own = f"{'' if is_id else 'Patient/'}{self.patient_id}"
            pairs = [*pairs, (compartment.parameter, own)]
        return self.complete(
            resource_type, [*pairs, *self._get_scope_query(resource_type)]
        )

    def check_parameters(
        self, resource_type: str, pairs: list[tuple[str, str]]
    ) -> bool:
        """Refuse what names another patient; return whether this one is named."""
        compartment = get_compartment(resource_type)
        names = compartment.names
        is_named = False
        for name, value in pairs:
            # FHIR is case-sensitive here; not every server is.
            lower = name.lower()
            steps = set(_STEPS.split(lower))
            bare, _, modifier = lower.partition(":")
            last = lower.rpartition(":")[2]
            if (bare in names | _NAMES and modifier in {"", "patient"}) or (
                "_has" in steps and last in _NAMES
            ):
                # Of a Schedule, which then belongs to no patient, as the answer shows.
                is_open = name == "actor" and self.is_to_shared(value)
                if not (self._is_own(value) or is_open):
                    _refuse(f'"{name}" does not name the patient of this launch.')
                # A server may ignore a name, or a modifier, that it does not know.
                is_named |= name in names | {f"{n}:Patient" for n in names - {"_id"}}
            elif (
                (steps & _SELECTING_BY_ANY and not _is_about_own(resource_type, name))
                or (
                    # What refers to something shared, also at the end of a chain, is in
                    # every patient's record.
                    steps & _SELECTING_BY_OTHERS
                    and (compartment.is_shared or not resource_type or "." in lower)
                )
                or (steps & _MEMBERSHIPS and _LISTED.search(_fold(value)))
            ):
                _refuse(f'"{name}" may search in other records.')
            elif any(map(self._is_foreign_value, value.split(","))):
                _refuse(f'"{name}" names another patient.')
            elif "." in name:
                self._check_chain(name, value, compartment)
            elif bare == "_sort":
                for key in value.split(","):
                    if "." in key:
                        self._check_chain(key.strip().lstrip("-"), "", compartment)
        return is_named

    def check_open(self, pairs: list[tuple[str, str]]) -> None:
        """Refuse a search that the server decides about, but not about all it reads."""
        for name, value in pairs:
            if not (self.scopes.are_for_patient and "_has" in name.lower()):
                continue
            is_own = name.rpartition(":")[2] in _NAMES and self._is_own(value)
            if not is_own and not all(
                is_shared(kind) or self.is_open("search", kind)
                for kind in _REVERSE_TYPE.findall(name)
            ):
                _refuse(f'"{name}" may search in other records.')

    def _check_chain(self, name: str, value: str, compartment: Compartment) -> None:
        """
        Refuse a chain that may leave the record.

        What the patient's own resource refers to may be another's, also because
        somebody has written that it does.
        """
        *steps, last = name.split(".")
        for number, step in enumerate(steps):
            bare, _, kind = step.partition(":")
            is_own = number == 0 and bare.lower() in compartment.sole_names
            is_own = is_own and kind in {"", "Patient"}
            leads_to_shared = is_shared(kind) if kind else bare.lower() in _TO_SHARED
            if not (is_own or leads_to_shared):
                _refuse(f'"{name}" may search in other records.')
        bare, _, kind = last.partition(":")
        if bare.lower() in _CHAINED and not (
            self._is_own(value) or is_shared(kind) or self.is_to_shared(value)
        ):
            _refuse(f'"{name}" does not name the patient of this launch.')

    def _get_scope_query(self, resource_type: str) -> Iterator[tuple[str, str]]:
        """The parameters of the only scope for searching, which a server may forget."""
        scopes = list(self._get_scopes(resource_type, "s"))
        if len(scopes) == 1:
            yield from scopes[0].query

    def _is_foreign_value(self, value: str) -> bool:
        # "system|code" is no reference, whatever the system is called.
        is_patient = "|" not in value and _PATIENT_VALUE.search(_fold(value))
        return bool(is_patient) and not self._is_own(value)

    # Resources

    def check(
        self,
        resource: Any,
        letters: str = "rs",
        *,
        is_written: bool = False,
        is_made: bool = False,
        urns: frozenset[str] = frozenset(),
        left_out: list[str] | None = None,
    ) -> bool:
        """
        Refuse a resource that is not known to be the patient's.

        Args:
            resource: as written or received; Bundles and Parameters with all they hold.
            letters: any of which a scope has to have that is not for one patient alone.
            is_written: whether it is the body of a request.
            is_made: whether an operation made it, so that no Bundle is a stored one.
            urns: of further resources in the same transaction, none of them a Patient.
            left_out: if given, what a search included is removed instead of refused,
                and the types of what was removed are added to the list.

        Returns:
            Whether it is the patient's: not shared, nor left to the server.

        Raises:
            ForeignPatientError: it is another patient's, names one, or does not say.
        """
        around = _Around(
            own=self.own,
            urns=urns,
            is_written=is_written,
            is_made=is_made,
            left_out=left_out,
        )
        try:
            return self._check(resource, letters, around)
        except RecursionError:
            _refuse("The resource is nested too deeply.")

    def _check(self, resource: Any, letters: str, around: _Around) -> bool:
        """Refuse what is another's; return whether it is the patient's, not shared."""
        name = resource.get("resourceType") if isinstance(resource, Mapping) else None
        if not isinstance(name, str):
            _refuse("A resource has no type.")
        if name == "OperationOutcome":
            self._walk(resource, "", _Place(name, get_compartment(name), "", around))
            return False
        is_stored = name == "Bundle" and str(resource.get("type")) in _STORED
        # Of what carries other resources, each of which has its own scope.
        is_carrier = name in _CONTAINERS and (around.is_made or not is_stored)
        granted = [
            scope
            for scope in self._get_scopes(name, letters)
            if not is_carrier or (scope.type == "*" and not scope.query)
        ]
        if any(s.level != "patient" and selects(s, resource) for s in granted):
            return self._is_own_anyway(resource, name, around)
        if self.patient_id is None and name not in _CONTAINERS:
            _refuse("There is no patient in context.")
        granted = [scope for scope in granted if scope.level == "patient"]
        if granted and not any(selects(scope, resource) for scope in granted):
            _refuse(f"No granted scope selects this {name}.")
        if name == "Bundle":
            is_own = self._check_bundle(resource, letters, around)
            if not is_own and is_stored:
                _refuse("The Bundle is not known to be the patient's.")
            return is_own
        compartment = get_compartment(name)
        is_own = self._is_about_patient(resource, name, compartment, around)
        is_trusted = self.trusts_binaries and name == "Binary"
        is_trusted = is_trusted and "securityContext" not in resource
        if name == "Schedule" and "r" in letters and not around.is_written:
            is_trusted = self._is_of_staff(resource)
        if not (is_own or is_trusted or compartment.is_shared):
            _refuse(f"The {name} is not known to be the patient's.")
        self._walk(resource, "", _Place(name, compartment, letters, around))
        return is_own

    def _is_of_staff(self, schedule: Mapping[str, Any]) -> bool:
        """Whether all whom a schedule is for belong to no patient."""
        actors = list(_get_values(schedule, "actor[]"))
        texts = [one.get("reference") for one in actors if isinstance(one, Mapping)]
        return len(texts) == len(actors) > 0 and all(
            isinstance(text, str) and self.is_to_shared(text) for text in texts
        )

    def _is_own_anyway(
        self, resource: Mapping[str, Any], name: str, around: _Around
    ) -> bool:
        """Whether what the server decides about is also known to be the patient's."""
        if self.patient_id is None or name in _CONTAINERS:
            return False
        compartment = get_compartment(name)
        try:
            is_own = self._is_about_patient(resource, name, compartment, around)
            self._walk(resource, "", _Place(name, compartment, "", around))
        except (ForeignPatientError, RecursionError):
            return False
        return is_own

    def _check_bundle(
        self, bundle: Mapping[str, Any], letters: str, around: _Around
    ) -> bool:
        entries = bundle.get("entry") or []
        if not isinstance(entries, list):
            _refuse("The entries of a Bundle are not a list.")
        own, urns, known = set[str](), set[str](), set[str]()
        for entry in entries:
            resource, url = _read_entry(entry)
            is_patient = resource.get("resourceType") == "Patient"
            if is_patient and resource.get("id") == self.patient_id:
                own.update({url} if url.startswith("urn:") else ())
            elif not is_patient and url.startswith("urn:"):
                urns.add(url)
        # What is known grows with each entry.
        around = replace(
            around,
            own=_Names(own, around.own),
            urns=_Names(urns, around.urns),
            known=_Names(known, around.known),
        )
        is_own = False
        removed: list[Mapping[str, Any]] = []
        for entry in sorted(entries, key=_is_about_others):
            try:
                is_own |= self._check_entry(entry, letters, around, known)
            except ForeignPatientError:
                if around.left_out is None or not _is_included(entry):
                    raise
                removed.append(entry)
        if around.left_out is not None and removed:
            _leave_out(entries, removed)
            around.left_out.extend(map(_get_type, removed))
        rest = {name: value for name, value in bundle.items() if name != "entry"}
        compartment = get_compartment("Bundle")
        self._walk(rest, "", _Place("Bundle", compartment, letters, around))
        return is_own

    def _check_entry(
        self, entry: Any, letters: str, around: _Around, known: set[str]
    ) -> bool:
        self._check_addresses(entry)
        response = entry.get("response")
        if isinstance(response, Mapping) and response.get("outcome") is not None:
            self._check(response["outcome"], letters, around)
        resource, url = _read_entry(entry)
        reference = f"{resource.get('resourceType')}/{resource.get('id')}"
        names = {reference, f"{self.base_url}/{reference}", url}
        if self._is_elsewhere(url):
            # There, a relative reference is to another server's resource.
            own = frozenset(one for one in self.own if "://" in one)
            around, names = replace(around, own=own, known=frozenset()), {url}
        is_own = bool(resource) and self._check(resource, letters, around)
        if is_own:
            known |= names - {""}
        return is_own

    def _is_elsewhere(self, url: str) -> bool:
        """Whether the ``fullUrl`` of an entry is at another server."""
        if url.startswith(f"{self.base_url}/") or "://" not in url:
            return False
        return not is_within_base(resolve_link(self.base_url, url), self.base_url)

    def _check_addresses(self, entry: Mapping[str, Any]) -> None:
        """Refuse an entry whose addresses are those of another patient."""
        if self.is_open("get", "Patient"):
            return
        parts = [entry, entry.get("request"), entry.get("response")]
        for part in parts:
            for name in ("fullUrl", "url", "location") if part else ():
                text = part.get(name) if isinstance(part, Mapping) else None
                found = (
                    _PATIENT_URL.search(_fold(text)) if isinstance(text, str) else None
                )
                if found and found[1] != (self.patient_id or "").casefold():
                    _refuse("An entry is about another patient.")

    def _is_about_patient(
        self,
        resource: Mapping[str, Any],
        name: str,
        compartment: Compartment,
        around: _Around,
    ) -> bool:
        if name == "Patient":
            return f"Patient/{resource.get('id')}" in around.own
        found = find_values(resource, compartment.subjects)
        if not found and not around.is_written and not compartment.is_shared:
            # DSTU2 and STU3 had other names for some of them.
            found = find_values(resource, _UNKNOWN.subjects)
        is_own = False
        for path, value in found:
            reference = value.get("reference") if isinstance(value, Mapping) else None
            kind = value.get("type", "Patient") if isinstance(value, Mapping) else ""
            reference = read_reference(reference)
            if reference in around.own:
                is_own = is_own or kind == "Patient"
            elif reference in around.known and name in ABOUT_OTHERS:
                is_own = True
            elif "[]" not in path:
                _refuse(f"{name}.{path} does not name the patient of this launch.")
        return is_own

    def _walk(self, value: Any, path: str, place: _Place) -> None:
        """Refuse what names another patient, at any depth."""
        if isinstance(value, list):
            for item in value:
                self._walk(item, path, place)
        elif isinstance(value, str):
            if path in place.compartment.referring and self._is_foreign(
                value, place.around.own
            ):
                _refuse(f"{place.name}.{path} names another patient.")
        elif isinstance(value, Mapping):
            is_held = place.name in _CONTAINERS and path.endswith("resource")
            if path == "contained":
                self._check_contained(value, place)
            elif is_held:
                self._check(value, place.letters, place.around)
            else:
                self._walk_members(value, path, place)

    def _walk_members(self, value: Mapping[str, Any], path: str, place: _Place) -> None:
        for name, item in value.items():
            here = f"{path}.{name}" if path else name
            if name == "reference" and not isinstance(item, Mapping):
                self._check_reference(item, path, place)
            elif name in _URIS and isinstance(item, str):
                is_own = read_reference(item) in place.around.own
                if _PATIENT_URI.fullmatch(item) and not is_own:
                    _refuse(f"{place.name}.{here} names another patient.")
            else:
                self._walk(item, here, place)
        reference = read_reference(value.get("reference"))
        is_patient = bool(reference) and value.get("type") == "Patient"
        is_listed = self._is_listed(path, place)
        if is_patient and reference not in place.around.own and not is_listed:
            _refuse(f"{place.name}.{path} names another patient.")
        if "identifier" in value and "reference" not in value:
            is_other = isinstance(value.get("type"), str) and value["type"] != "Patient"
            if place.may_refer(path) and not is_other and not is_listed:
                _refuse(
                    f"{place.name}.{path} uses an identifier instead of a reference."
                )

    def _check_contained(self, value: Mapping[str, Any], place: _Place) -> None:
        kind = str(value.get("resourceType"))
        if kind.casefold() == "patient":
            _refuse("A contained Patient is not the patient of this launch.")
        inner = _Place(kind, get_compartment(kind), place.letters, place.around)
        self._walk_members(value, "", inner)

    def _check_reference(self, reference: Any, path: str, place: _Place) -> None:
        around = place.around
        if around.is_written and isinstance(reference, str) and "?" in _fold(reference):
            self._check_condition(reference, f"{place.name}.{path}")
        if reference is None or self._is_listed(path, place):
            return
        if not isinstance(reference, str):
            _refuse(f"{place.name}.{path} is not a reference.")
        if self._is_foreign(reference, around.own):
            _refuse(f"{place.name}.{path} names another patient.")
        is_urn = _fold(reference).startswith("urn:")
        if (
            is_urn
            and place.may_refer(path)
            and reference not in around.urns
            and reference not in around.own
        ):
            _refuse(
                f"{place.name}.{path} refers to a resource that is not in the request."
            )

    def _check_condition(self, reference: str, where: str) -> None:
        """Refuse a conditional reference, if the server may find another's resource."""
        # Servers look at the type alone, whatever is before it.
        url, _, query = reference.partition("?")
        resource_type = url.rpartition("/")[2]
        if not is_shared(resource_type):
            _refuse(f"{where} may find a resource in another record.")
        self.check_parameters(resource_type, parse_qsl(query, keep_blank_values=True))

    def _is_listed(self, path: str, place: _Place) -> bool:
        if (place.name, path) == ("Patient", "link.other"):
            # Another record of the same person, as after every merge.
            return not place.around.is_written
        return f"{place.name}.{path}" in self.other_patients and not any(
            path == subject.replace("[]", "") for subject in place.compartment.subjects
        )

    def _is_foreign(self, reference: str, own: Container[str]) -> bool:
        """Whether a reference names a patient in any way but as the launch's."""
        is_own = read_reference(reference) in own
        return not is_own and bool(_PATIENT.search(_fold(reference)))

    # Patches

    @property
    def _written(self) -> _Around:
        return _Around(own=self.own, is_written=True)

    def check_json_patch(self, patch: Any, resource_type: str) -> None:
        """Refuse a JSON Patch that could move an unread resource to another patient."""
        kept = self._get_kept_elements(resource_type)
        for step in patch if isinstance(patch, list) else ():
            if not isinstance(step, Mapping):
                raise FHIRRequestError("A step of the patch is not an object.")
            for pointer in (step.get("path"), step.get("from", step.get("path"))):
                if not isinstance(pointer, str) or pointer.split("/")[1:2] == []:
                    _refuse("The patch replaces the whole resource.")
                if pointer.split("/")[1].replace("~1", "/") in kept:
                    _refuse("The patch changes the patient reference, type or id.")
            if str(step.get("op")) in {"copy", "move"}:
                _refuse("The patch moves an element that was not read.")
            name = step["path"].rpartition("/")[2]
            self._walk(
                {name: step.get("value")},
                "",
                _Place(resource_type, _UNKNOWN, "u", self._written),
            )

    def _get_kept_elements(self, resource_type: str) -> set[str]:
        """What a patch must not touch: elements that say what and whose it is."""
        subjects = get_compartment(resource_type).subjects
        names = {path.partition(".")[0].removesuffix("[]") for path in subjects}
        return names | {"contained", "id", "resourceType"}

    def check_fhirpath_patch(self, patch: Any, resource_type: str) -> None:
        """
        Refuse a FHIRPath Patch that could move a resource to another patient.

        It is not carried out here, so it may neither touch what says whose the
        resource is nor have a path that is more than names, indexes and ``where()``.
        """
        if patch.get("resourceType") != "Parameters":
            raise FHIRRequestError("A FHIRPath Patch must be a Parameters resource.")
        kept = self._get_kept_elements(resource_type)
        referring = get_compartment(resource_type).referring
        kept |= {path.partition(".")[0] for path in referring}
        for value in iter_values(patch):
            for name, text in value.items() if isinstance(value, Mapping) else ():
                if not isinstance(text, str):
                    continue
                # A server may take the text of any type for it.
                is_path = name.startswith("value") and value.get("name") == "path"
                if is_path:
                    steps = _FILTER.sub("", text).split(".")
                    if not all(map(_STEP.fullmatch, steps)):
                        _refuse("The patch path is too complex to check.")
                    # With the type before it, or without.
                    names = {step.partition("[")[0] for step in steps[:2]}
                else:
                    is_name = value.get("name") == "name"
                    names = {text} if is_name and name.startswith("value") else set()
                    if self._is_foreign(text, self.own) and name.startswith("value"):
                        _refuse("The patch names another patient.")
                    if _is_condition(text):
                        self._check_condition(text, "The patch")
                if names & kept:
                    _refuse("The patch changes the patient reference, type or id.")
        self._walk(patch, "", _Place("Parameters", _UNKNOWN, "u", self._written))


# Of a FHIRPath Patch.
_CONDITION = re.compile(r"\s*(?:[^?\s]*/)?([a-z]+)[\s/]*\?.*=.*", re.DOTALL)
_FILTER = re.compile(r"\.where\([^()]*\)")
_STEP = re.compile(r"[A-Za-z]+(?:\[[0-9]+\])?")


@dataclass(frozen=True, slots=True)
class _Place:
    """The resource that is walked through."""

    name: str
    compartment: Compartment
    letters: str
    around: _Around = field(repr=False)

    def may_refer(self, path: str) -> bool:
        """Whether a reference at *path* may be to a patient."""
        return (
            path in self.compartment.referring
            or path.rpartition(".")[2] in _REFERRING
            or self.compartment is _UNKNOWN
        )


# Bytes of JSON that one patch may copy: each copy can double the resource.
_MAX_COPIED = 1_000_000


def apply_json_patch(resource: Mapping[str, Any], patch: Any) -> Any:
    """
    Return the result of a JSON Patch on *resource*, which is not changed.

    Raises:
        FHIRRequestError: it does not fit the resource.

    Spec: RFC 6902.
    """
    document: Any = {"": copy.deepcopy(resource)}
    copied = 0
    try:
        for step in patch:
            path = _split_pointer(step["path"])
            match step["op"]:
                case "add" | "replace":
                    _put(document, path, copy.deepcopy(step["value"]), step["op"])
                case "remove":
                    _take(document, path)
                case "move":
                    _put(
                        document,
                        path,
                        _take(document, _split_pointer(step["from"])),
                        "add",
                    )
                case "copy":
                    found = _find(document, _split_pointer(step["from"]))
                    copied += len(dump_json(found))
                    if copied > _MAX_COPIED:
                        raise ValueError("copies of copies")
                    _put(document, path, copy.deepcopy(found), "add")
                case "test":
                    if _find(document, path) != step["value"]:
                        raise ValueError("another value")
                case _:
                    raise ValueError("no such operation")
        return document[""]
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise FHIRRequestError("The patch does not fit the resource.") from None


def _split_pointer(pointer: str) -> list[str]:
    """The names from the document that holds the resource; the first is empty."""
    names = pointer.split("/")
    if names[0]:
        raise ValueError("no JSON pointer")
    return [name.replace("~1", "/").replace("~0", "~") for name in names]


def _find(document: Any, path: list[str]) -> Any:
    for name in path:
        document = document[_index(name) if isinstance(document, list) else name]
    return document


def _put(document: Any, path: list[str], value: Any, op: str) -> None:
    holder, name = _find(document, path[:-1]), path[-1]
    if not isinstance(holder, list):
        if op == "replace":
            holder[name]
        holder[name] = value
    elif op == "replace":
        holder[_index(name)] = value
    else:
        holder.insert(len(holder) if name == "-" else _index(name), value)


def _index(name: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", name):
        raise ValueError("no index")
    return int(name)


def _take(document: Any, path: list[str]) -> Any:
    holder, name = _find(document, path[:-1]), path[-1]
    return holder.pop(_index(name) if isinstance(holder, list) else name)


def _is_about_own(resource_type: str, name: str) -> bool:
    """Whether *name* is about what has the patient as its only one."""
    found = _REVERSE.fullmatch(name)
    if found is None or resource_type != "Patient":
        return False
    return found[2] in get_compartment(found[1]).sole_names


def get_letters(interaction: str) -> str:
    """Letters of the scopes any of which allows it; reading for what has none."""
    return required_letter(interaction) or "rs"


def _refuse(reason: str) -> NoReturn:
    raise ForeignPatientError(reason)


def _fold(text: str) -> str:
    """*text* as a server might read it that is careless."""
    for _ in range(_MAX_DECODED):
        text = unquote(text)
    return text.strip().casefold().replace("\\", "/")


def read_reference(text: object) -> str:
    """A reference without its version; empty if it is no text."""
    return _VERSION.sub("", text) if isinstance(text, str) else ""


def _read_entry(entry: Any) -> tuple[Mapping[str, Any], str]:
    """Resource, or an empty one, and ``fullUrl`` of an entry."""
    if not isinstance(entry, Mapping):
        _refuse("An entry of a Bundle is not an object.")
    resource = entry.get("resource", {})
    if not isinstance(resource, Mapping):
        _refuse("An entry of a Bundle holds no resource.")
    url = entry.get("fullUrl")
    return resource, url if isinstance(url, str) else ""


def _get_type(entry: Mapping[str, Any]) -> str:
    return str(_read_entry(entry)[0].get("resourceType"))


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


def _is_condition(text: str) -> bool:
    """Whether some server may take *text* for a conditional reference."""
    found = _CONDITION.fullmatch(_fold(text))
    return found is not None and found[1] in map(str.casefold, _read_table())


def find_values(resource: Any, paths: Iterable[str]) -> list[tuple[str, Any]]:
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


def selects(scope: ResourceScope, resource: Mapping[str, Any]) -> bool:
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
