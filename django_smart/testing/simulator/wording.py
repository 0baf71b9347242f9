"""Scopes in words, for the person who is asked."""

from __future__ import annotations

from typing import Any

from django_smart.testing.simulator.scopes import ResourceScope, parse_scope

__all__ = ["describe_scopes"]

_PLAIN = {
    "launch": "Know which chart it was opened from",
    "launch/patient": "Know which patient is chosen",
    "launch/encounter": "Know which visit is chosen",
    "openid": "Recognize you when you come back",
    "fhirUser": "See your own entry: who you are here",
    "profile": "See your name",
    "online_access": "Keep access for as long as you are signed in here",
    "offline_access": "Keep access when you are away, until it is taken back",
}
_TYPES = {
    "*": "everything in the record",
    "AllergyIntolerance": "allergies",
    "Condition": "problems and diagnoses",
    "DocumentReference": "documents",
    "Encounter": "visits",
    "MedicationRequest": "prescriptions",
    "Observation": "measurements and test results",
    "Organization": "organizations",
    "Patient": "name, birth date, address and phone",
    "Practitioner": "clinicians",
}
_VERBS = {"c": "add", "r": "read", "u": "change", "d": "delete", "s": "search"}
_LEVELS = {
    "patient": "of this patient",
    "user": "of every patient that you can see",
    "system": "of all patients",
}


def describe_scopes(scopes: list[str]) -> list[dict[str, Any]]:
    """For each scope: the ``text`` to show, the ``scope`` itself, and ``writes``."""
    described = []
    for item in scopes:
        resource = parse_scope(item)
        described.append(
            {
                "scope": item,
                "text": _describe(item, resource),
                "writes": resource is not None
                and bool(set("cud") & {*resource.letters}),
            }
        )
    return described


def _describe(item: str, resource: ResourceScope | None) -> str:
    if resource is None:
        bare = item.partition("?")[0]
        return _PLAIN.get(bare, f"Know which {bare.removeprefix('launch/')} is chosen")
    verbs = [_VERBS[letter] for letter in resource.letters]
    *first, last = verbs
    phrase = f"{', '.join(first)} and {last}" if first else last
    kind = _TYPES.get(resource.resource_type, f"{resource.resource_type} entries")
    text = f"{phrase.capitalize()} {kind} {_LEVELS[resource.level]}"
    if resource.params:
        limits = [
            f"{name} is {value.rpartition('|')[2]}" for name, value in resource.params
        ]
        text += f", only where {' and '.join(limits)}"
    return text
