"""Admin of launches."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..grants.ending import end_launches, enqueue_revocations
from ..models import Launch
from .base import ReadOnlyAdmin, as_scopes

__all__ = ["LaunchAdmin"]

_REASON = "ended_by_staff"


@admin.register(Launch)
class LaunchAdmin(ReadOnlyAdmin):
    """What became of each launch.  No page holds its context, key or secrets."""

    list_display = (
        "created_at",
        "server",
        "status",
        "error_code",
        "user",
        "kind",
        "intent",
        "completed_at",
        "ended_at",
    )
    # Without date_hierarchy: it reads the date of every row for each page.
    list_filter = ("status", "kind", "intent", "created_at")
    list_select_related = ("registration__server", "user")
    search_fields = (
        "registration__server__name",
        "registration__server__slug",
        "error_code",
    )
    search_help_text = _("Server, error code or user name")
    actions = ("end",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "registration",
                    ("kind", "intent"),
                    ("status", "error_code"),
                    ("user", "identity"),
                    "grant",
                )
            },
        ),
        (_("Scope"), {"fields": (("asked", "granted"),)}),
        (
            _("Times"),
            {
                "fields": (
                    ("created_at", "expires_at"),
                    ("consumed_at", "completed_at"),
                    ("last_used_at", "ended_at"),
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Launch]:
        """Without what no page shows."""
        return Launch.objects.defer("code_verifier", "nonce", "context", "next_url")

    @admin.display(description=_("FHIR server"), ordering="registration__server__name")
    def server(self, obj: Launch) -> str:
        """Where it came from."""
        return str(obj.registration.server)

    @admin.display(description=_("asked scope"))
    def asked(self, obj: Launch) -> SafeString | str:
        """One scope a line."""
        return as_scopes(obj.scope_asked)

    @admin.display(description=_("granted scope"))
    def granted(self, obj: Launch) -> SafeString | str:
        """One scope a line."""
        return as_scopes(obj.scope_granted)

    @admin.action(description=_("End the selected launches"), permissions=["operate"])
    def end(self, request: HttpRequest, queryset: QuerySet[Launch]) -> None:
        """End open launches and those under way, and the grants that go with them."""
        now = timezone.now()
        launches = Launch.objects.filter(
            pk__in=list(queryset.values_list("pk", flat=True))
        )
        with transaction.atomic():
            count = launches.fail(error_code=_REASON, now=now)
            count += launches.open().count()
            enqueue_revocations(end_launches(launches, reason=_REASON, now=now))
        if count:
            message = ngettext(
                "%(count)d launch was ended. A worker revokes its tokens at the EHR, "
                "unless they outlive the sign-in.",
                "%(count)d launches were ended. A worker revokes their tokens at the "
                "EHRs, unless they outlive the sign-in.",
                count,
            ) % {"count": count}
            self.message_user(request, message, messages.SUCCESS)
        else:
            message = gettext("None of the selected launches was open.")
            self.message_user(request, message, messages.WARNING)
