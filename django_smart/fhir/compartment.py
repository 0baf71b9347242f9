"""
Whose record a resource belongs to, and what scopes for one patient let through.

The facts are those of ``compartment.tsv``: for each type of R4 the elements that say
whose a resource is.  Whatever the server checks, what is not known to be the patient's
is refused.

Spec: FHIR R4, "CompartmentDefinition", http://hl7.org/fhir/R4/compartmentdefinition-patient.html;
SMART App Launch 2.2, "Scopes for requesting FHIR Resources".
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache

from django_smart.exceptions import FHIRRequestError, ForeignPatientError
from django_smart.fhir.messages import is_id, validate_resource_type
from django_smart.protocol.id_token import FHIR_USER_TYPES
from django_smart.protocol.scopes import (
    ResourceScope,
    ScopeSet,
    read_compartment_table,
    required_letter,
)

__all__ = [
    "REFERENCE",
    "SUBJECT_NAMES",
    "Compartment",
    "Record",
    "build_unlisted_error",
    "find_missing_scope",
    "find_patient_parameter",
    "get_compartment",
    "get_letters",
    "is_shared",
]

#: What elements and parameters that say whose a resource is are called in most types.
SUBJECT_NAMES = frozenset({"patient", "subject"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Compartment:
    """
    What FHIR says of a resource type.

    Attributes:
        parameter: search parameter that names the patient; empty if there is none.
        subjects: elements that say whose a resource is; ``[]`` follows a list.
    """

    parameter: str = ""
    subjects: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Search parameters that name the patient of a resource."""
        return SUBJECT_NAMES.intersection(self.subjects) | {self.parameter} - {""}


# Of another version of FHIR: nothing but the usual names is known.
_UNKNOWN = Compartment(parameter="patient", subjects=("patient", "subject"))


@cache
def _read_table() -> dict[str, Compartment]:
    table = {}
    for name, parameter, subjects in read_compartment_table():
        table[name] = Compartment(parameter=parameter, subjects=tuple(subjects.split()))
    return table


def get_compartment(resource_type: str) -> Compartment:
    """Return a type's entry, or the usual element names for a type that R4 lacks."""
    return _read_table().get(resource_type, _UNKNOWN)


def is_shared(resource_type: str) -> bool:
    """Whether resources of this type belong to no patient, nor hold any that do."""
    is_container = resource_type in _CONTAINERS
    return not is_container and not get_compartment(resource_type).subjects


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


_CONTAINERS = frozenset({"Bundle", "Parameters"})
_INCLUSIONS = frozenset({"_include", "_revinclude"})
REFERENCE = re.compile(r"([A-Z][A-Za-z]+)/[A-Za-z0-9\-.]{1,64}")
# Values of _summary that leave out no element that names the patient, or every entry.
_WHOLE_SUMMARIES = frozenset({"count", "data", "false"})
# Characters of the scopes with parameters for one type; more of them select nothing.
_LONGEST_SCOPES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """
    The record of the patient that ``patient/`` scopes were granted for.

    Scopes of other levels without search parameters leave their types to the server.

    Args:
        patient_id: of the patient in context; ``None`` if there is none.
        base_url: of the server.
        scopes: that were granted.
        is_for_script: whether a script asks, which may be that of a patient with
            developer tools: scopes select what it may see, a ``Binary`` has to say
            whose it is, and a body may add no link to another patient or their file.
        types: that may be seen; ``None`` for all.
    """

    patient_id: str | None = field(repr=False)
    base_url: str
    scopes: ScopeSet
    is_for_script: bool = False
    types: Collection[str] | None = None

    @property
    def own(self) -> set[str]:
        """The references that name the patient, and no other form of them."""
        if self.patient_id is None:
            return set()
        reference = f"Patient/{self.patient_id}"
        return {reference, f"{self.base_url}/{reference}"}

    # Scopes

    def is_open(self, interaction: str, resource_type: str) -> bool:
        """Whether the server alone decides: a scope is not for one patient."""
        granted = self.get_scopes(resource_type, get_letters(interaction))
        return any(scope.level != "patient" and not scope.query for scope in granted)

    def get_scopes(self, resource_type: str, letters: str) -> list[ResourceScope]:
        """The granted scopes for a type that have any of *letters*."""
        names, found, length = {"*", resource_type.lower()}, [], 0
        for scope in self.scopes.resource_scopes:
            if scope.type.lower() in names and not set(letters).isdisjoint(
                scope.letters
            ):
                # A server can send thousands, and of resources to compare them with.
                length += len(scope.text) if scope.query else 0
                if not scope.query or length <= _LONGEST_SCOPES:
                    found.append(scope)
        return found

    # Searches

    def narrow(
        self,
        resource_type: str,
        pairs: list[tuple[str, str]],
        *,
        is_in_record: bool = False,
    ) -> list[tuple[str, str]]:
        """:meth:`select`, with what shows whose the resources are."""
        scopes = self.get_scopes(resource_type, "s")
        if self.is_for_script and len(scopes) == 1:
            # A server may forget the parameters of the only scope.
            pairs = [*pairs, *scopes[0].query]
        pairs = self.select(resource_type, pairs, is_in_record=is_in_record)
        return self.complete(resource_type, pairs)

    def select(
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
            if bare in compartment.names:
                # A Schedule may be that of a doctor or a room.
                if not (self.is_own(value) or self.is_to_shared(value)):
                    raise ForeignPatientError(
                        f'"{name}" does not name the patient of this launch.'
                    )
                is_named = True
        if not is_named:
            if not compartment.parameter:
                raise ForeignPatientError(
                    f"No search parameter of {resource_type} selects the patient."
                )
            is_id = compartment.parameter in {"patient", "_id"}
            own = f"{'' if is_id else 'Patient/'}{self.patient_id}"
            pairs = [*pairs, (compartment.parameter, own)]
        return pairs

    def is_own(self, value: str) -> bool:
        """Whether the value of a parameter names the patient."""
        return value in {self.patient_id, *self.own}

    def is_to_shared(
        self, value: str, modifier: str = "", *, is_known: bool = False
    ) -> bool:
        """
        Whether each of some references is to what belongs to no patient.

        Args:
            modifier: type of an id alone.
            is_known: whether the parameter leads to such types alone.
        """
        if modifier and not is_shared(modifier):
            return False
        for text in value.split(","):
            text = text.removeprefix(f"{self.base_url}/")
            found = REFERENCE.fullmatch(text)
            kind = found[1] if found else modifier
            may_be = is_shared(kind) if kind else is_known
            if not may_be or not (found or is_id(text)):
                return False
        return True

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


def get_letters(interaction: str) -> str:
    """Letters of the scopes any of which allows it; reading for what has none."""
    return required_letter(interaction) or "rs"


def find_missing_scope(scopes: ScopeSet, interaction: str, resource_type: str) -> str:
    """
    Return the scope that *interaction* needs and *scopes* lack, or "".

    A scope with parameters counts, because only the resources show which ones it
    allows.  The server decides about interactions without a scope, such as most
    operations.

    Args:
        resource_type: empty for the whole server, for which any type's scope suffices.

    Spec: SMART App Launch 2.2, "Scopes for requesting FHIR Resources".
    """
    letter = required_letter(interaction)
    if not letter:
        return ""
    granted = scopes.resource_scopes
    names = {"*", resource_type.lower()}
    for scope in granted:
        if letter in scope.letters and (
            not resource_type or scope.type.lower() in names
        ):
            return ""
    is_person = interaction == "read" and resource_type in FHIR_USER_TYPES
    if is_person and "fhirUser" in scopes:
        # Possibly the signed-in person, whom this scope lets an app read (IDT-07).
        return ""
    level = granted[0].level if granted else "patient"
    return f"{level}/{resource_type or '*'}.{letter}"


def build_unlisted_error(attribute: str, value: str) -> FHIRRequestError:
    """What an attribute of the proxy's view would have to list."""
    return FHIRRequestError(
        f'"{value}" is not allowed, unless the view\'s attribute {attribute} lists it.',
        code="fhir_not_allowed",
    )
