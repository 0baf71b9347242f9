"""
Which searches read a record: what the scopes allow, as US Core names it.

Spec: US Core 6.1 and 7.0, "Capability Statements", search parameters by patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.compartment import find_patient_parameter
from django_smart.fhir.json import dump_json
from django_smart.fields import digest
from django_smart.protocol.scopes import ResourceScope, ScopeSet

__all__ = [
    "find_references",
    "get_categories",
    "get_meta",
    "get_version",
    "is_id",
    "plan_searches",
]

_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_INSTANT = re.compile(r"[0-9T:.Z+\-]{1,40}")
# Types that other resources refer to, which are read by their ids.
_REFERENCED = frozenset(
    {"Location", "Medication", "Organization", "Practitioner", "PractitionerRole"}
)
_US_CORE = (
    *("AllergyIntolerance", "CarePlan", "CareTeam", "Condition", "Coverage", "Device"),
    *("DiagnosticReport", "DocumentReference", "Encounter", "Goal", "Immunization"),
    *("MedicationDispense", "MedicationRequest", "Observation", "Patient", "Procedure"),
    *("QuestionnaireResponse", "RelatedPerson", "ServiceRequest", "Specimen"),
)
# For servers that refuse a search without a category.
_CATEGORIES = {
    "CarePlan": ("assess-plan",),
    "Condition": ("problem-list-item", "health-concern", "encounter-diagnosis"),
    "DiagnosticReport": ("LAB", "LP29684-5", "LP29708-2", "LP7839-6"),
    "DocumentReference": ("clinical-note",),
    "Observation": (
        *("laboratory", "vital-signs", "social-history", "survey", "imaging"),
        *("procedure", "exam", "therapy", "activity", "sdoh"),
    ),
    "ServiceRequest": (
        *("108252007", "363679005", "409063005", "409073007", "387713003", "sdoh"),
    ),
}


def plan_searches(
    scopes: ScopeSet,
    statement: Mapping[str, Any],
    types: Iterable[str] | None = None,
) -> list[tuple[str, str]]:
    """
    Return resource types with the query that a scope limits them to, or "".

    A type that a scope names is searched even if the ``CapabilityStatement`` omits it.

    Args:
        statement: the server's ``CapabilityStatement``; empty if it has none.
        types: only these.
    """
    wanted = None if types is None else set(types)
    offered = _get_offered(statement) or set(_US_CORE)
    found: dict[str, set[str]] = {}
    for scope in scopes.resource_scopes:
        names = offered if scope.type == "*" else {scope.type}
        for name in filter(_is_of_patient, names):
            if _can_read(scope, name) and (wanted is None or name in wanted):
                found.setdefault(name, set()).add(urlencode(scope.query))
    return [
        (name, query)
        for name in sorted(found, key=lambda name: (name != "Patient", name))
        for query in ([""] if "" in found[name] else sorted(found[name]))
    ]


def get_categories(resource_type: str) -> tuple[str, ...]:
    """Return the queries that read a type by category; empty for most types."""
    return tuple(f"category={name}" for name in _CATEGORIES.get(resource_type, ()))


def is_id(value: object) -> bool:
    """Return whether *value* is an id that every database can store."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def get_meta(resource: Mapping[str, Any]) -> dict[str, str]:
    """
    Return ``versionId`` and ``lastUpdated``, each "" if it is missing or odd.

    An odd one is no FHIR ``id`` or ``instant``, or very long.
    """
    meta = resource.get("meta")
    found = meta if isinstance(meta, Mapping) else {}
    return {
        name: value
        if isinstance(value := found.get(name), str) and pattern.fullmatch(value)
        else ""
        for name, pattern in (("versionId", _ID), ("lastUpdated", _INSTANT))
    }


def get_version(resource: Mapping[str, Any]) -> str:
    """Return a digest of the version, or of the content if the EHR names none."""
    meta = get_meta(resource)
    if meta["versionId"] and meta["lastUpdated"]:
        return digest(meta["versionId"], meta["lastUpdated"])
    return digest(dump_json(resource).decode())


def find_references(
    resources: Iterable[Mapping[str, Any]], base_url: str, *, attachments: bool
) -> set[tuple[str, str]]:
    """
    Return type and id of the resources that *resources* refer to, and that are read.

    Args:
        attachments: whether those include each ``Binary``.
    """
    wanted = {"reference": _REFERENCED}
    if attachments:
        wanted["url"] = frozenset({"Binary"})
    texts = set()
    left: list[Any] = [*resources]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for name in wanted:
                if name in value and isinstance(value[name], str):
                    texts.add((name, value[name]))
            left += value.values()
        elif isinstance(value, list):
            left += value
    found = set()
    for name, text in texts:
        kind, _, rest = text.removeprefix(f"{base_url}/").partition("/")
        id_ = rest.partition("/_history/")[0]
        if kind in wanted[name] and is_id(id_):
            found.add((kind, id_))
    return found


def _get_offered(statement: Mapping[str, Any]) -> set[str]:
    """Return the types that the server says it has."""
    return {
        each["type"]
        for rest in statement.get("rest") or ()
        if isinstance(rest, Mapping)
        for each in rest.get("resource") or ()
        if isinstance(each, Mapping) and isinstance(each.get("type"), str)
    }


def _is_of_patient(resource_type: str) -> bool:
    try:
        return find_patient_parameter(resource_type) != "actor"
    except FHIRRequestError:
        return False


def _can_read(scope: ResourceScope, resource_type: str) -> bool:
    letter = "r" if resource_type == "Patient" else "s"
    return scope.level != "system" and letter in scope.letters
