"""What the granted scopes allow, as far as an app can tell before it asks."""

from __future__ import annotations

from django_smart.protocol.scopes import ScopeSet, required_letter

__all__ = ["find_missing_scope", "is_for_one_patient"]

# What ``fhirUser`` may refer to (IDT-07).
_PEOPLE = frozenset(
    {"Patient", "Person", "Practitioner", "PractitionerRole", "RelatedPerson"}
)


def find_missing_scope(scopes: ScopeSet, interaction: str, resource_type: str) -> str:
    """
    The scope that *interaction* needs and *scopes* do not have; empty if they do.

    A scope that is narrowed by parameters counts: what it lets through is the server's
    business, as is everything that no scope speaks of, such as most operations.

    Args:
        resource_type: empty for the whole server, which any type's scope is enough for.

    Spec: SMART App Launch 2.2, "Scopes for requesting FHIR Resources".
    """
    try:
        letter = required_letter(interaction)
    except ValueError:
        return ""
    granted = scopes.resource_scopes
    names = {"*", resource_type.lower()}
    for scope in granted:
        if letter in scope.letters and (
            not resource_type or scope.type.lower() in names
        ):
            return ""
    if interaction == "read" and resource_type in _PEOPLE and "fhirUser" in scopes:
        # Maybe the person who is signed in, whom this scope lets an app read.
        return ""
    level = granted[0].level if granted else "patient"
    return f"{level}/{resource_type or '*'}.{letter}"


def is_for_one_patient(scopes: ScopeSet) -> bool:
    """Whether all access is to the record of the patient in context (SCOPE-12)."""
    levels = {scope.level for scope in scopes.resource_scopes}
    return levels == {"patient"}
