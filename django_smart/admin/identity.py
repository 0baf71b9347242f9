"""Admin of identities."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ..models import Identity
from .base import ReadOnlyAdmin
from .trust import has_trust

__all__ = ["IdentityAdmin"]


@admin.register(Identity)
class IdentityAdmin(ReadOnlyAdmin):
    """
    Who is who.  Deleting one unlinks the account at the EHR from the user here.

    Lists hold no ``fhir_user``: of a patient it is the patient's id.
    """

    list_display = ("person", "issuer", "may_sign_in", "created_at", "last_seen_at")
    list_display_links = ("person", "issuer")
    list_select_related = ("user",)
    search_fields = ("issuer",)
    search_help_text = _("Issuer or user name")
    list_filter = ("may_sign_in", "is_connected", "created_at")
    fields = (
        *("account", "server", "issuer", "subject", "fhir_user"),
        *("may_sign_in", "is_connected"),
        *("created_at", "last_seen_at"),
    )
    # Whoever may change it may let the account sign in, and nothing else.
    readonly_fields = tuple(name for name in fields if name != "may_sign_in")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Django's, with *trust*: the account may be of whoever changes it."""
        return has_trust(request) and super().has_change_permission(request, obj)
