"""How a server's grants are doing, in its list and on its page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.http import HttpRequest
from django.template.defaultfilters import date
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timesince import timesince
from django.utils.translation import gettext_lazy as _

from ..contrib.monitoring import ServerHealth, read_health
from ..models import FHIRServer, TokenGrant
from .display import EMPTY

if TYPE_CHECKING:
    from datetime import datetime

    from django_stubs_ext import StrOrPromise

__all__ = ["HEALTH_COLUMNS", "HealthMixin"]

HEALTH_COLUMNS = ("active_grants", "due_grants", "overdue")


class _HealthChangeList(ChangeList):
    """Reads the health of all servers of a page at once."""

    def get_results(self, request: HttpRequest) -> None:
        """Django's, each row with its health."""
        super().get_results(request)
        servers: Any = self.result_list
        health = read_health([server.pk for server in servers])
        for server in servers:
            # One that was deleted between the two looks has no grants.
            server.health = health.get(server.pk) or _nothing(server)


class HealthMixin:
    """For the admin of FHIR servers."""

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """A list that knows the health of its rows."""
        return _HealthChangeList

    @admin.display(description=_("active grants"))
    def active_grants(self, obj: Any) -> int:
        """How many are in force."""
        return _get_health(obj).grants[TokenGrant.Status.ACTIVE]

    @admin.display(description=_("due"))
    def due_grants(self, obj: Any) -> int:
        """How many wait for a worker."""
        return _get_health(obj).due

    @admin.display(description=_("oldest waits for"))
    def overdue(self, obj: Any) -> str:
        """How long the one that is due longest has waited."""
        due_at = _get_health(obj).oldest_due_at
        return timesince(due_at) if due_at else EMPTY

    @admin.display(description=_("refresh"))
    def health(self, obj: Any) -> SafeString | str:
        """All that is known, as a list."""
        if obj.pk is None:
            return EMPTY
        rows = format_html_join("", "<dt>{}</dt><dd>{}</dd>", _describe(obj))
        return format_html('<dl class="smart-facts">{}</dl>', rows)


def _get_health(server: Any) -> ServerHealth:
    return server.health  # type: ignore[no-any-return]  # put there by the list


def _describe(server: FHIRServer) -> Iterator[tuple[StrOrPromise, object]]:
    health = read_health([server.pk]).get(server.pk) or _nothing(server)
    for status in TokenGrant.Status:
        yield status.label, health.grants[status]
    yield _("due"), health.due
    yield _("oldest waits for"), _ago(health.oldest_due_at)
    yield _("failing"), health.failing
    yield _("last success"), _at(health.last_success_at)
    yield _("last failure"), _at(health.last_failure_at)
    yield _("of what"), health.last_error or EMPTY
    yield _("paused until"), _at(health.paused_until)
    yield _("stopped registrations"), health.stopped_registrations


def _nothing(server: FHIRServer) -> ServerHealth:
    return ServerHealth(slug=server.slug, is_active=server.is_active)


def _ago(moment: datetime | None) -> str:
    return timesince(moment) if moment else EMPTY


def _at(moment: datetime | None) -> str:
    return date(timezone.localtime(moment), "DATETIME_FORMAT") if moment else EMPTY
