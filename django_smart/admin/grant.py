"""Admin of token grants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin, messages
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..grants.ending import disconnect_grant
from ..models import TokenGrant
from ..models.clock import DatabaseNow
from ..models.grant import TokenGrantQuerySet
from .base import AuthorizationAdmin

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["TokenGrantAdmin"]


@admin.register(TokenGrant)
class TokenGrantAdmin(AuthorizationAdmin):
    """
    Who gave this site access to what, and how long it lasts.

    No page holds a token, a digest or a lease; lists hold no patient id either.
    """

    list_display = (
        "id",
        "server",
        "status",
        "last_error",
        "refresh_due_at",
        "person",
        "ends_at",
    )
    list_display_links = ("id", "server")
    list_filter = (
        "status",
        "kind",
        "is_offline",
        ("ends_at", admin.EmptyFieldListFilter),
        "is_revocation_pending",
        # In place of date_hierarchy, which reads the date of every row for each page.
        "created_at",
    )
    search_fields = (
        "registration__server__name",
        "registration__server__slug",
        "last_error",
    )
    search_help_text = _("Server, last error or user name")
    actions = ("refresh", "revoke")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("registration", "kind"),
                    ("account", "identity"),
                    ("patient_id", "encounter_id"),
                    ("status", "is_offline", "is_revocation_pending"),
                    ("created_at", "ended_at"),
                )
            },
        ),
        (_("Scope"), {"fields": ("scopes",)}),
        (
            _("Refresh"),
            {
                "fields": (
                    ("received_at", "expires_at", "refresh_due_at", "ends_at"),
                    ("last_error", "refresh_failures"),
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[TokenGrant]:
        """Without the tokens: they are not even read."""
        return TokenGrant.objects.defer(
            "access_token", "refresh_token", "refresh_token_digest", "lease_owner"
        )

    def get_row_actions(self, obj: TokenGrant) -> dict[str, StrOrPromise]:
        """Refresh or revoke it, while it is good for something."""
        if obj.status not in TokenGrant.ENDABLE:
            return {}
        is_active = obj.status == TokenGrant.Status.ACTIVE
        refresh = {"refresh": _("Refresh now")} if is_active and obj.is_offline else {}
        return {**refresh, "revoke": _("Revoke this grant")}

    def get_obstacle(self, obj: TokenGrant) -> StrOrPromise:
        """Tokens not yet revoked at the EHR would stay valid there."""
        if obj.status == TokenGrant.Status.ACTIVE:
            return _("revoke it first")
        if obj.is_revocation_pending:
            return _("its tokens have not been revoked at the EHR yet")
        return ""

    @admin.action(
        description=_("Refresh the selected grants now"), permissions=["operate"]
    )
    def refresh(self, request: HttpRequest, queryset: QuerySet[TokenGrant]) -> None:
        """Make offline grants due, and have a worker refresh them."""
        selected = list(queryset.values_list("pk", flat=True))
        server = "registration__server"
        grants = TokenGrant.objects.usable().offline().filter(pk__in=selected)
        rows = list(
            grants.filter(
                registration__is_active=True, **{f"{server}__is_active": True}
            )
            .order_by("pk")
            .values_list("pk", f"{server}_id", f"{server}__paused")
        )
        TokenGrant.objects.filter(pk__in=[pk for pk, *_ in rows]).update(
            refresh_due_at=DatabaseNow()
        )
        going = [server_id for _, server_id, is_paused in rows if not is_paused]
        if left_out := len(selected) - len(going):
            message = ngettext(
                "%(count)d grant was left out: workers refresh only active offline "
                "grants, and none of a paused server until an operator resumes it.",
                "%(count)d grants were left out: workers refresh only active offline "
                "grants, and none of a paused server until an operator resumes it.",
                left_out,
            )
            text = message % {"count": left_out}
            self.message_user(request, text, messages.WARNING)
        if going:
            sent = gettext(
                "A worker refreshes them; reload the page to see the result."
            )
            unsent = gettext(
                "The message broker cannot be reached. The grants are due now: the "
                "next run of refresh_due_grants or smart_refresh refreshes them."
            )
            # Not by the next tick, which may be ten seconds away.
            ids = sorted({*going})
            self.send_task(request, "refresh_grants", *ids, sent=sent, unsent=unsent)

    @admin.action(description=_("Revoke the selected grants"), permissions=["operate"])
    def revoke(self, request: HttpRequest, queryset: TokenGrantQuerySet) -> None:
        """End grants, also lost ones, and the launches that use them."""
        with transaction.atomic(using=router.db_for_write(TokenGrant)):
            grants = list(queryset.endable())
            for grant in grants:
                disconnect_grant(grant)
            self.log_action(request, grants, "status")
        done = ngettext(
            "%(count)d grant was revoked. A worker will revoke its tokens at the EHR.",
            "%(count)d grants were revoked. A worker will revoke their tokens at the "
            "EHRs.",
            len(grants),
        )
        nothing = gettext("None of the selected grants was active.")
        self.tell_result(request, len(grants), done=done, nothing=nothing)
