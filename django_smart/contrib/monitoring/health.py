"""How the grants of each server are doing: what admin, health view and metrics show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Count, Min, Q
from django.utils import timezone

from ...models import FHIRServer, TokenGrant

__all__ = ["ServerHealth", "read_health"]

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
        server.pk: _build(server, now, stopped=server.stopped)
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
