"""How the grants of each server are doing: what admin, health view and metrics show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from django.db import connections, router
from django.db.models import Count, Min, Q
from django.utils import timezone

from ..models import FHIRServer, TokenGrant

if TYPE_CHECKING:
    from prometheus_client.metrics_core import GaugeMetricFamily

__all__ = ["GrantCollector", "ServerHealth", "read_health"]

_ACTIVE = TokenGrant.Status.ACTIVE
_COLUMNS = (
    "slug",
    "is_active",
    "refresh_paused_until",
    "last_refresh_at",
    "last_refresh_failure_at",
    "last_refresh_error",
)


@dataclass(kw_only=True, slots=True)
class ServerHealth:
    """Counts and times of one server's grants; nothing of a person."""

    slug: str
    is_active: bool
    #: Number of grants for each of ``TokenGrant.Status``, zero included.
    grants: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(TokenGrant.Status.values, 0)
    )
    #: Offline grants that are to be refreshed by now.
    due: int = 0
    #: Since when the one that waits longest is due.
    oldest_due_at: datetime | None = None
    #: Active grants whose last refresh failed.
    failing: int = 0
    #: Until when the server is left alone, after an outage or as it asked for.
    paused_until: datetime | None = None
    #: Registrations whose credentials it refused; their grants are not counted as due.
    stopped_registrations: int = 0
    #: When a refresh last brought tokens, when one last failed, and of what.
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_error: str = ""

    def get_overdue(self, now: datetime) -> timedelta:
        """How long the oldest due grant has waited; zero if none is due."""
        if self.oldest_due_at is None:
            return timedelta(0)
        return max(now - self.oldest_due_at, timedelta(0))


def read_health(
    server_ids: Iterable[int] | None = None, *, now: datetime | None = None
) -> dict[int, ServerHealth]:
    """
    The health of each server, or of those named, by primary key.

    Three queries however many servers there are.  One of them counts every grant: ask
    every half minute, not every second.
    """
    now = now or timezone.now()
    servers = FHIRServer.objects.order_by("slug")
    grants = TokenGrant.objects.order_by()
    if server_ids is not None:
        chosen = list(server_ids)
        servers = servers.filter(pk__in=chosen)
        grants = grants.filter(registration__server__in=chosen)
    stopped = Count(
        "registrations", filter=Q(registrations__refresh_stopped_at__isnull=False)
    )
    health = {
        server.pk: _build(server, now, stopped=server.stopped)  # type: ignore[attr-defined]
        for server in servers.only(*_COLUMNS).annotate(stopped=stopped)
    }
    counted = grants.values("registration__server_id", "status").annotate(
        number=Count("pk"),
        failing=Count("pk", filter=Q(status=_ACTIVE, refresh_failures__gt=0)),
    )
    due = (
        grants.usable()
        .offline()
        .filter(refresh_due_at__lte=now, registration__refresh_stopped_at__isnull=True)
        .values("registration__server_id")
        .annotate(number=Count("pk"), oldest=Min("refresh_due_at"))
    )
    for row in counted:
        # A server that was added since the first query waits for the next reading.
        if one := health.get(row["registration__server_id"]):
            one.grants[row["status"]] = row["number"]
            one.failing += row["failing"]
    for late in due:
        if one := health.get(late["registration__server_id"]):
            one.due, one.oldest_due_at = late["number"], late["oldest"]
    return health


def _build(server: FHIRServer, now: datetime, *, stopped: int) -> ServerHealth:
    paused_until = server.refresh_paused_until
    return ServerHealth(
        slug=server.slug,
        is_active=server.is_active,
        paused_until=paused_until if paused_until and paused_until > now else None,
        stopped_registrations=stopped,
        last_success_at=server.last_refresh_at,
        last_failure_at=server.last_refresh_failure_at,
        last_error=server.last_refresh_error,
    )


_HELP = {
    "grants": "Grants by status.",
    "grants_due": "Offline grants that are to be refreshed by now.",
    "grants_failing": "Active grants whose last refresh failed.",
    "grants_oldest_overdue_seconds": "How long the oldest due grant has waited.",
    "refresh_paused": "1 while the server is left alone after an outage.",
    "registrations_stopped": "Registrations whose credentials the server refused.",
    "last_success_timestamp_seconds": "When a refresh last brought tokens.",
    "last_failure_timestamp_seconds": "When a refresh last failed.",
}


class GrantCollector:
    """
    Register it once: ``prometheus_client.REGISTRY.register(GrantCollector())``.

    Labels are the server's slug and the grant's status, and nothing of a person.
    """

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The names alone, so that registering asks no database."""
        yield from self._build().values()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the numbers."""
        _tidy_connection()
        try:
            health = read_health()
        finally:
            _tidy_connection()
        now = timezone.now()
        families = self._build()
        for one in health.values():
            values = {
                "grants_due": one.due,
                "grants_failing": one.failing,
                "grants_oldest_overdue_seconds": one.get_overdue(now).total_seconds(),
                "refresh_paused": float(one.paused_until is not None),
                "registrations_stopped": one.stopped_registrations,
            }
            for name, moment in (
                ("last_success_timestamp_seconds", one.last_success_at),
                ("last_failure_timestamp_seconds", one.last_failure_at),
            ):
                if moment is not None:
                    values[name] = moment.timestamp()
            for name, value in values.items():
                families[name].add_metric([one.slug], value)
            for status, number in one.grants.items():
                families["grants"].add_metric([one.slug, status], number)
        yield from families.values()

    @staticmethod
    def _build() -> dict[str, GaugeMetricFamily]:
        from prometheus_client.metrics_core import GaugeMetricFamily  # the extra's

        return {
            name: GaugeMetricFamily(
                f"django_smart_{name}",
                text,
                labels=["server", "status"] if name == "grants" else ["server"],
            )
            for name, text in _HELP.items()
        }


def _tidy_connection() -> None:
    # The thread that serves a scrape may be none of Django's, which does this itself
    # before and after each request.
    connection = connections[router.db_for_read(TokenGrant)]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()
