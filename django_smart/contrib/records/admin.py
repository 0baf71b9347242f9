"""Admin of the runs: what was read, and what was refused."""

from __future__ import annotations

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_smart.admin.base import ReadOnlyAdmin, TabularInline

from .models import SyncedType, SyncRun

__all__ = ["SyncRunAdmin"]


class _SyncedTypeInline(TabularInline):
    model = SyncedType
    fields = readonly_fields = (
        *("resource_type", "query", "state", "reason"),
        *("newest", "foreign_count"),
    )
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(SyncRun)
class SyncRunAdmin(ReadOnlyAdmin):
    """
    The latest run of each record; lists show no patient id.

    Runs are made by tasks and deleted with the connection.
    """

    list_display = (
        *("id", "server", "user", "number", "started_at", "finished_at"),
        *("types_read", "last_error"),
    )
    list_filter = ("server", "last_error")
    list_select_related = ("server", "user")
    fields = readonly_fields = (
        *("server", "user", "patient_id", "sink", "number", "is_full"),
        *("started_at", "finished_at", "full_at", "last_error", "busy_until"),
    )
    inlines = (_SyncedTypeInline,)

    def get_queryset(self, request: HttpRequest) -> QuerySet[SyncRun]:
        """With the types, which the list counts."""
        return super().get_queryset(request).prefetch_related("types")

    @admin.display(description=_("types read"))
    def types_read(self, run: SyncRun) -> str:
        """How many types are complete, of how many."""
        return f"{len(run.complete)} / {len(run.states)}"
