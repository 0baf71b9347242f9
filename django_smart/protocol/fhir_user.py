"""``fhirUser``: the FHIR resource of the person who signed in."""

from __future__ import annotations

import re

from django_smart.exceptions import IDTokenClaimError, InsecureURLError
from django_smart.protocol.urls import normalize_base_url

__all__ = ["FHIR_USER_TYPES", "parse_fhir_user"]

#: The types a ``fhirUser`` may have (IDT-08).
FHIR_USER_TYPES = (
    "Patient",
    "Practitioner",
    "PractitionerRole",
    "RelatedPerson",
    "Person",
)

_REFERENCE = re.compile(
    rf"(?:{'|'.join(FHIR_USER_TYPES)})/(?!\.{{1,2}}\Z)[A-Za-z0-9\-.]{{1,64}}"
)


def parse_fhir_user(value: str, *, base_url: str) -> str:
    """
    Bring ``fhirUser`` to a reference relative to the FHIR base URL.

    Args:
        value: such as ``https://ehr.example.org/fhir/Practitioner/123`` or
            ``Practitioner/123``.
        base_url: the ``aud`` of the authorization request.

    Returns:
        such as ``Practitioner/123``.

    Raises:
        IDTokenClaimError: another server, another type than the five, or no id.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context", Scopes for requesting
    identity data.
    """
    try:
        base = normalize_base_url(base_url)
        reference = normalize_base_url(value).removeprefix(f"{base}/")
    except InsecureURLError:
        # Not absolute; or with a query or dot segments, which no reference has.
        reference = value
    if not _REFERENCE.fullmatch(reference):
        raise IDTokenClaimError(
            "Expected a fhirUser at the FHIR server of this launch, of the type "
            f"{' or '.join(FHIR_USER_TYPES)}.",
            claim="fhirUser",
        )
    return reference
