"""Users of this site are named as the EHR names them."""

from __future__ import annotations

from typing import Any

from django_smart.backends import SMARTAuthenticationBackend
from django_smart.templatetags.fhir import human_name

__all__ = ["NamingBackend"]


class NamingBackend(SMARTAuthenticationBackend):
    """Reads who signed in, if the EHR lets it (``user/Practitioner.r``)."""

    def fill_user(self, user: Any, claims: Any, fhir: Any) -> None:
        """Store the name for the header of the pages; known names are kept."""
        if user.get_full_name() or not claims.get("fhirUser"):
            return
        name = human_name(fhir.resolve(claims["fhirUser"]))
        limit = user._meta.get_field("last_name").max_length
        user.last_name = name[:limit]
        user.save(update_fields=["last_name"])
