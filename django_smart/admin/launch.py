"""Admin of launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from ..error_pages.words import ENDINGS, TURNS, find_stored, get_title
from ..launches.held import end_at_any_stage
from ..models import Launch, TokenGrant
from .base import EMPTY, AuthorizationAdmin, as_code, as_list

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

__all__ = ["LaunchAdmin"]

_OVER = (Launch.Status.FAILED, Launch.Status.ENDED)


@admin.register(Launch)
class LaunchAdmin(AuthorizationAdmin):
    """What became of each launch.  No page holds its context, key or secrets."""

    list_display = (
        "id",
        "created_at",
        "server",
        "status",
        "outcome",
        "person",
        "kind",
    )
    # Without date_hierarchy: it reads the date of every row for each page.
    list_display_links = ("id", "created_at")
    list_filter = ("status", "kind", "intent", "created_at")
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
                    ("status", "question"),
                    "explained_outcome",
                    "found_deviations",
                    ("account", "identity"),
                    "grant",
                )
            },
        ),
        (_("Scope"), {"fields": ("scopes",)}),
        (
            _("Times"),
            {
                "fields": (
                    ("created_at", "expires_at"),
                    ("completed_at", "last_used_at"),
                    "ended_at",
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Launch]:
        """Without what no page shows."""
        return Launch.objects.defer(
            "code_verifier", "nonce", "held", "context", "next_url"
        )

    def get_row_actions(self, obj: Launch) -> dict[str, StrOrPromise]:
        """End it, while there is something to end."""
        return {} if obj.status in _OVER else {"end": _("End this launch")}

    def get_obstacle(self, obj: Launch) -> StrOrPromise:
        """Whoever ends it has a worker revoke the tokens that it holds."""
        if obj.status == Launch.Status.HELD:
            return _("its tokens have not been revoked at the EHR yet")
        return ""

    @admin.display(description=_("outcome"), ordering="error_code")
    def outcome(self, obj: Launch) -> str:
        """How it ended: an error, or a reason such as a sign-out."""
        return obj.error_code or EMPTY

    @admin.display(description=_("outcome"))
    def explained_outcome(self, obj: Launch) -> SafeString | str:
        """An error with a link to the reference, and with what its page says."""
        code = obj.error_code
        if obj.status != Launch.Status.FAILED or not code or code in ENDINGS:
            return code or EMPTY
        link = as_code(code)
        known = find_stored(code)
        if known is None or known.page is None:
            return link
        name = obj.registration.server.name
        page = gettext("The error page says: “%(title)s.” Whose turn: %(turn)s.") % {
            "title": get_title(known.page, name),
            "turn": TURNS[known.turn],
        }
        return format_html("{}<br>{}", link, page)

    @admin.display(description=_("deviations"))
    def found_deviations(self, obj: Launch) -> SafeString | str:
        """What the EHR did differently, without any value that it sent."""
        return as_list(
            format_html("{} {}", as_code(code), evidence)
            for code, evidence in obj.deviations
        )

    @admin.action(description=_("End the selected launches"), permissions=["operate"])
    def end(self, request: HttpRequest, queryset: QuerySet[Launch]) -> None:
        """End open launches and those under way, and the grants that go with them."""
        launches = Launch.objects.filter(
            pk__in=list(queryset.values_list("pk", flat=True))
        )
        with transaction.atomic(using=router.db_for_write(Launch)):
            rows = list(launches.exclude(status__in=_OVER))
            end_at_any_stage(launches, reason="ended_by_staff")
            grants = TokenGrant.objects.awaiting_revocation().filter(launches__in=rows)
            self.log_action(request, [*rows, *grants.distinct()], "status")
        done = ngettext(
            "%(count)d launch was ended. A worker revokes its tokens at the EHR, "
            "unless they outlive the sign-in.",
            "%(count)d launches were ended. A worker revokes their tokens at the "
            "EHRs, unless they outlive the sign-in.",
            len(rows),
        )
        nothing = gettext("None of the selected launches was open.")
        self.tell_result(request, len(rows), done=done, nothing=nothing)
