"""Admin of identities."""

from __future__ import annotations

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from ..models import Identity
from .base import ReadOnlyAdmin

__all__ = ["IdentityAdmin"]


@admin.register(Identity)
class IdentityAdmin(ReadOnlyAdmin):
    """
    Who is who.  Deleting one unlinks the account at the EHR from the user here.

    Lists hold no ``fhir_user``: of a patient it is the patient's id.
    """

    list_display = ("user", "issuer", "created_at", "last_seen_at")
    list_display_links = ("user", "issuer")
    list_select_related = ("user",)
    search_fields = ("issuer",)
    search_help_text = _("Issuer or user name")
    list_filter = ("created_at",)
    fields = ("user", "issuer", "subject", "fhir_user", "created_at", "last_seen_at")
