"""Scopes in words, for those whose records they open: ``{% load scope_words %}``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from django import template
from django.utils.translation import gettext_lazy as _

from ..protocol.scopes import OtherScope, ResourceScope, ScopeSet

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["in_words", "register"]

register = template.Library()

# The types that apps ask for most; another one is called by its own name.
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
    "Location": _("places of care"),
    "Medication": _("medicines"),
    "MedicationAdministration": _("medicines given"),
    "MedicationDispense": _("medicines handed out"),
    "MedicationRequest": _("prescriptions"),
    "MedicationStatement": _("medicines taken"),
    "Observation": _("test results and measurements"),
    "Organization": _("organisations"),
    "Patient": _("name, date of birth and other details"),
    "Practitioner": _("clinicians"),
    "PractitionerRole": _("roles of clinicians"),
    "Procedure": _("procedures"),
    "Provenance": _("where records come from"),
    "Questionnaire": _("questionnaires"),
    "QuestionnaireResponse": _("answers to questionnaires"),
    "RelatedPerson": _("family and carers"),
    "ServiceRequest": _("orders and referrals"),
    "Specimen": _("samples"),
}
_OTHERS: dict[str, StrOrPromise] = {
    "openid": _("Know who you are there"),
    "fhirUser": _("Know who you are there"),
    "offline_access": _("Do so while you are not here as well"),
}
_SENTENCES: dict[tuple[bool, bool], StrOrPromise] = {
    # (is about everyone the user has access to, is about writing)
    (False, False): _("See: %(what)s"),
    (False, True): _("Add or change: %(what)s"),
    (True, False): _("See, of everyone you have access to: %(what)s"),
    (True, True): _("Add or change, of everyone you have access to: %(what)s"),
}


@register.filter
def in_words(scopes: ScopeSet | str) -> list[str]:
    """
    What *scopes* allow, a sentence each: ``{{ grant.scopes|in_words }}``.

    Letters are told apart as far as people are concerned: seeing, and changing.
    Parameters that narrow a scope are left out, so nothing looks smaller than it is.
    """
    if isinstance(scopes, str):
        scopes = ScopeSet.parse(scopes)
    sentences = [*_tell_resources(scopes), *_tell_others(scopes)]
    return list(dict.fromkeys(sentences))


def _tell_resources(scopes: ScopeSet) -> Iterator[str]:
    for (is_wide, is_write), sentence in _SENTENCES.items():
        letters = set("cud" if is_write else "rs")
        names = [
            str(_TYPES.get(scope.type, scope.type))
            for scope in scopes.resource_scopes
            if _is_wide(scope) is is_wide and letters.intersection(scope.letters)
        ]
        if names:
            # Not with commas: some of the names have one.
            yield str(sentence) % {"what": "; ".join(dict.fromkeys(names))}


def _is_wide(scope: ResourceScope) -> bool:
    return scope.level != "patient"


def _tell_others(scopes: ScopeSet) -> Iterator[str]:
    names = {scope.name for scope in scopes if isinstance(scope, OtherScope)}
    yield from (str(words) for name, words in _OTHERS.items() if name in names)
