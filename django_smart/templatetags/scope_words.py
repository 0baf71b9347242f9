"""Scopes in plain words: ``{% load scope_words %}``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from django import template
from django.utils.translation import gettext_lazy as _

from ..protocol.scopes import OtherScope, ScopeSet

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["in_words", "kinds_in_words", "register"]

register = template.Library()

# The most requested types; any other type is shown by its FHIR name.
_TYPES: dict[str, StrOrPromise] = {
    "*": _("all kinds of records"),
    "AllergyIntolerance": _("allergies"),
    "Appointment": _("appointments"),
    "CarePlan": _("care plans"),
    "CareTeam": _("care team"),
    "Condition": _("health problems"),
    "Coverage": _("insurance"),
    "Device": _("devices"),
    "DiagnosticReport": _("reports"),
    "DocumentReference": _("documents"),
    "Encounter": _("visits"),
    "Goal": _("goals"),
    "Immunization": _("vaccinations"),
    "Location": _("care locations"),
    "Medication": _("medications"),
    "MedicationAdministration": _("medications given"),
    "MedicationDispense": _("medications dispensed"),
    "MedicationRequest": _("prescriptions"),
    "MedicationStatement": _("medications taken"),
    "Observation": _("test results and measurements"),
    "Organization": _("organizations"),
    "Patient": _("name, date of birth and other details"),
    "Practitioner": _("clinicians"),
    "PractitionerRole": _("clinicians' roles"),
    "Procedure": _("procedures"),
    "Provenance": _("sources of records"),
    "Questionnaire": _("questionnaires"),
    "QuestionnaireResponse": _("answers to questionnaires"),
    "RelatedPerson": _("family and caregivers"),
    "ServiceRequest": _("orders and referrals"),
    "Specimen": _("samples"),
}
_OTHERS: dict[str, StrOrPromise] = {
    "openid": _("See who you are"),
    "fhirUser": _("See who you are"),
    "offline_access": _("Keep this access when you are not signed in"),
}
_SENTENCES: dict[tuple[bool, bool], StrOrPromise] = {
    # (is about everyone the user has access to, is about writing)
    (False, False): _("See: %(what)s"),
    (False, True): _("Add or change: %(what)s"),
    (True, False): _("See, for everyone you have access to: %(what)s"),
    (True, True): _("Add or change, for everyone you have access to: %(what)s"),
}


@register.filter
def in_words(scopes: ScopeSet | str) -> list[str]:
    """
    Return a sentence for each thing *scopes* allow: ``{{ grant.scopes|in_words }}``.

    Only seeing and changing are distinguished.  Parameters that narrow a scope are
    ignored, so that access never looks smaller than it is.
    """
    if isinstance(scopes, str):
        scopes = ScopeSet.parse(scopes)
    sentences = [*_tell_resources(scopes), *_tell_others(scopes)]
    return list(dict.fromkeys(sentences))


@register.filter
def kinds_in_words(types: Iterable[str]) -> str:
    """Return resource types in plain words: ``{{ types|kinds_in_words }}``."""
    # Not with commas: some of the names have one.
    return "; ".join(str(_TYPES.get(name, name)) for name in types)


def _tell_resources(scopes: ScopeSet) -> Iterator[str]:
    for (is_wide, is_write), sentence in _SENTENCES.items():
        letters = set("cud" if is_write else "rs")
        types = [
            scope.type
            for scope in scopes.resource_scopes
            if (scope.level != "patient") is is_wide
            and letters.intersection(scope.letters)
        ]
        if types:
            yield str(sentence) % {"what": kinds_in_words(dict.fromkeys(types))}


def _tell_others(scopes: ScopeSet) -> Iterator[str]:
    names = {scope.name for scope in scopes if isinstance(scope, OtherScope)}
    yield from (str(words) for name, words in _OTHERS.items() if name in names)
