"""Health of each server's grants, for the admin, the health view and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db import connections, router
from django.db.models import Count, F, Min, Q
from django.utils import timezone

from ..grants.counting import BUCKETS, LOST_REASONS, SUCCESS
from ..grants.deployment import is_owner
from ..models import (
    ClientRegistration,
    FHIRServer,
    RefreshCount,
    ServerState,
    TaskRun,
    TokenGrant,
)
from ..models.clock import DatabaseNow
from ..models.task_run import REFRESH

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["GrantCollector", "ServerHealth", "read_health"]

_ACTIVE = TokenGrant.Status.ACTIVE
_LATELY = timedelta(hours=1)
# Fewer failing grants at a server, or no more than this share, are no alarm.
_SOME_FAILING, _SHARE_FAILING = 5, 0.2
_COLUMNS = (
    "slug",
    "is_active",
    "paused",
    "state__paused_until",
    "state__last_success_at",
    "state__last_failure_at",
    "state__last_error",
)


@dataclass(kw_only=True, slots=True)
class ServerHealth:
    """Counts and times of one server's grants, without personal data."""

    slug: str
    is_active: bool
    #: When it was read, in the database's time, like all other times.
    read_at: datetime = field(default_factory=timezone.now)
    #: Number of grants for each of ``TokenGrant.Status``, zero included.
    grants: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(TokenGrant.Status.values, 0)
    )
    #: Offline grants that are due for a refresh.
    due: int = 0
    #: When the longest-waiting grant became due.
    oldest_due_at: datetime | None = None
    #: Active grants whose last refresh failed.
    failing: int = 0
    #: Offline grants that workers refresh, and those of them that are failing.
    offline: int = 0
    offline_failing: int = 0
    #: End of the pause after an outage, or that the server requested.
    paused_until: datetime | None = None
    #: Whether an operator has paused it.
    paused: bool = False
    #: Whether its last answers were failures.
    is_failing: bool = False
    #: Registrations whose refreshes are stopped; their grants are not counted as due.
    stopped_registrations: int = 0
    #: Of them, those whose server refuses nearly all grants.
    refused_registrations: int = 0
    #: Grants lost in the last hour, other than at their known end.
    lost: int = 0
    #: Offline grants whose known end is near or past.
    ending: int = 0
    #: When a refresh last returned tokens, when one last failed, and its error code.
    last_success_at: datetime | None = None
    last_failure_at: datetime | None = None
    last_error: str = ""

    @property
    def overdue(self) -> timedelta:
        """How long the oldest due grant has been waiting; zero if none is due."""
        if self.oldest_due_at is None:
            return timedelta(0)
        return max(self.read_at - self.oldest_due_at, timedelta(0))

    @property
    def many_failing(self) -> bool:
        """Whether more grants fail than single users' troubles explain."""
        return (
            self.offline_failing >= _SOME_FAILING
            and self.offline_failing > self.offline * _SHARE_FAILING
        )

    def get_status(self, *, overdue_after: timedelta, many_lost: int) -> str:
        """
        What is wrong, the cause before its effects; ``ok`` if nothing is.

        ``ehr_paused`` may be an operator's wish, or a moment's outage: whether grants
        wait for longer than *overdue_after* is another question.
        """
        if self.refused_registrations or self.lost >= many_lost:
            return "many_lost"
        if self.stopped_registrations:
            return "stopped"
        is_overdue = self.overdue > overdue_after
        if self.paused or self.paused_until or (is_overdue and self.is_failing):
            return "ehr_paused"
        if is_overdue:
            return "overdue"
        return "failing" if self.many_failing else "ok"


def read_health(
    server_ids: Iterable[int] | None = None, *, active_only: bool = False
) -> dict[int, ServerHealth]:
    """
    Return the health of all servers, or of those given by primary key.

    This takes three queries for any number of servers.  One of them counts every grant:
    read every half minute, not every second.

    Args:
        active_only: count no grants that have ended, which may be millions.
    """
    servers = FHIRServer.objects.order_by("slug")
    grants = TokenGrant.objects.order_by()
    if server_ids is not None:
        chosen = list(server_ids)
        servers = servers.filter(pk__in=chosen)
        grants = grants.filter(registration__server__in=chosen)
    stopped = Q(registrations__refresh_stopped_at__isnull=False)
    reason = ClientRegistration.StopReason.GRANTS_REFUSED
    refused = stopped & Q(registrations__refresh_stop_reason=reason)
    health = {
        server.pk: _build(server)
        for server in servers.select_related("state")
        .only(*_COLUMNS)
        .annotate(
            stopped=Count("registrations", filter=stopped),
            refused=Count("registrations", filter=refused),
            database_now=DatabaseNow(),
        )
    }
    wanted = grants.active() if active_only else grants
    ending = Q(status=_ACTIVE, is_offline=True, ends_soon_at__lte=DatabaseNow())
    lost = Q(
        Q(ends_at__isnull=True) | Q(ends_at__gt=F("ended_at")),
        status=TokenGrant.Status.NEEDS_REAUTHORIZATION,
        ended_at__gt=DatabaseNow(-_LATELY),
    )
    offline = Q(
        status=_ACTIVE,
        is_offline=True,
        registration__is_active=True,
        registration__server__is_active=True,
    )
    counted = wanted.values("registration__server_id", "status").annotate(
        number=Count("pk"),
        failing=Count("pk", filter=Q(status=_ACTIVE, refresh_failures__gt=0)),
        lost=Count("pk", filter=lost),
        ending=Count("pk", filter=ending),
        offline=Count("pk", filter=offline),
        offline_failing=Count("pk", filter=offline & Q(refresh_failures__gt=0)),
    )
    due = (
        grants.refreshable()
        .filter(refresh_due_at__lte=DatabaseNow())
        .values("registration__server_id")
        .annotate(number=Count("pk"), oldest=Min("refresh_due_at"))
    )
    for row in counted:
        # A server that was added after the first query is left for the next reading.
        if one := health.get(row["registration__server_id"]):
            one.grants[row["status"]] = row["number"]
            one.failing += row["failing"]
            one.lost += row["lost"]
            one.ending += row["ending"]
            one.offline += row["offline"]
            one.offline_failing += row["offline_failing"]
    for late in due:
        if one := health.get(late["registration__server_id"]):
            one.due, one.oldest_due_at = late["number"], late["oldest"]
    return health


def _build(server: Any) -> ServerHealth:
    read_at = server.database_now
    state = getattr(server, "state", ServerState())
    paused_until = state.paused_until
    return ServerHealth(
        slug=server.slug,
        is_active=server.is_active,
        read_at=read_at,
        paused=server.paused,
        paused_until=paused_until if paused_until and paused_until > read_at else None,
        is_failing=paused_until is not None,
        stopped_registrations=server.stopped,
        refused_registrations=server.refused,
        last_success_at=state.last_success_at,
        last_failure_at=state.last_failure_at,
        last_error=state.last_error,
    )


_HELP = {
    "grants": "Grants by status.",
    "grants_due": "Offline grants that are due for a refresh.",
    "grants_failing": "Active grants whose last refresh failed.",
    "grants_oldest_overdue_seconds": "Seconds the oldest due grant has waited.",
    "grants_lost_last_hour": "Grants that the server has refused in the last hour.",
    "grants_ending": "Offline grants whose known end is near or past.",
    "refresh_paused": "1 while refreshes are paused, by an operator or an outage.",
    "refresh_paused_by_operator": "1 while an operator has paused the server.",
    "registrations_stopped": "Registrations whose refreshes are stopped.",
    "registrations_refused": "Stopped registrations whose grants the server refuses.",
    "last_success_timestamp_seconds": "Time of the last refresh that returned tokens.",
    "last_failure_timestamp_seconds": "When a worker last found the server down.",
}
_RECORDS_HELP = {
    "records": "Whole records by the status of their latest run.",
    "records_oldest_seconds": "Seconds since the oldest record was read to its end.",
}
_SITE_HELP = {
    "deployment_adopted": "0 if another deployment owns the grants, or none may.",
    "last_run_timestamp_seconds": "When a worker or cron last looked for due grants.",
}


class GrantCollector:
    """
    Prometheus collector for the grants of each server (extra ``prometheus``).

    Register it once: ``prometheus_client.REGISTRY.register(GrantCollector())``.  Each
    scrape queries the database.  Labels are the server's slug, a status, a code or a
    reason; none contains personal data.
    """

    def describe(self) -> Iterator[Metric]:
        """Return only the names, so that registering needs no database."""
        yield from _build_families().values()

    def collect(self) -> Iterator[Metric]:
        """Read the numbers."""
        families = _build_families()
        _tidy_connection()
        try:
            health = read_health()
            _add_gauges(families, health.values())
            _add_counts(families, {pk: one.slug for pk, one in health.items()})
            if apps.is_installed("django_smart.contrib.records"):
                _add_records(families, health)
            families["deployment_adopted"].add_metric([], is_owner())
            if ran_at := TaskRun.objects.get_time(REFRESH):
                name = "last_run_timestamp_seconds"
                families[name].add_metric([], ran_at.timestamp())
        finally:
            _tidy_connection()
        yield from families.values()


def _add_gauges(families: dict[str, Any], health: Iterable[ServerHealth]) -> None:
    for one in health:
        values = {
            "grants_due": one.due,
            "grants_failing": one.failing,
            "grants_oldest_overdue_seconds": one.overdue.total_seconds(),
            "grants_lost_last_hour": one.lost,
            "grants_ending": one.ending,
            "refresh_paused": float(one.paused or one.paused_until is not None),
            "refresh_paused_by_operator": float(one.paused),
            "registrations_stopped": one.stopped_registrations,
            "registrations_refused": one.refused_registrations,
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


def _add_counts(families: dict[str, Any], slugs: Mapping[int, str]) -> None:
    refreshes, lost, buckets = Counter[Any](), Counter[Any](), Counter[Any]()
    seconds: dict[int, float] = dict.fromkeys(slugs, 0.0)
    for server_id in slugs:
        # A rate needs a zero before the first event.
        refreshes[server_id, SUCCESS] = 0
        lost.update({(server_id, reason): 0 for reason in LOST_REASONS})
    for row in RefreshCount.objects.filter(server__in=slugs):
        if row.kind == RefreshCount.Kind.LOST:
            lost[row.server_id, row.code] += row.number
            continue
        refreshes[row.server_id, row.code] += row.number
        buckets[row.server_id, row.bucket] += row.number
        seconds[row.server_id] += row.seconds
    for name, counts in (("refreshes", refreshes), ("grants_lost", lost)):
        for (server_id, code), number in counts.items():
            families[name].add_metric([slugs[server_id], code], number)
    for server_id, slug in slugs.items():
        numbers = accumulate(buckets[server_id, bucket] for bucket in BUCKETS)
        families["refresh_seconds"].add_metric(
            [slug], list(zip(BUCKETS, numbers, strict=True)), seconds[server_id]
        )


def _add_records(families: dict[str, Any], health: Mapping[int, ServerHealth]) -> None:
    from .records.models import SyncRun

    for row in SyncRun.objects.filter(server__in=health).summarize():
        one = health[row["server_id"]]
        for status in ("finished", "reading", "waiting"):
            families["records"].add_metric([one.slug, status], row[status])
        if row["oldest"] is not None:
            age = (one.read_at - row["oldest"]).total_seconds()
            families["records_oldest_seconds"].add_metric([one.slug], age)


def _build_families() -> dict[str, Any]:
    # Of the extra.
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    by_status = ["server", "status"]
    labels = {"grants": by_status, "records": by_status}
    families: dict[str, Any] = {
        name: GaugeMetricFamily(
            f"django_smart_{name}", text, labels=labels.get(name, ["server"])
        )
        for name, text in (_HELP | _RECORDS_HELP).items()
    }
    for name, text in _SITE_HELP.items():
        families[name] = GaugeMetricFamily(f"django_smart_{name}", text)
    for name, text, label in (
        ("refreshes", "Refreshes by outcome.", "code"),
        ("grants_lost", "Grants lost, by reason.", "reason"),
    ):
        families[name] = CounterMetricFamily(
            f"django_smart_{name}", text, labels=["server", label]
        )
    families["refresh_seconds"] = HistogramMetricFamily(
        "django_smart_refresh_seconds",
        "How long the EHR took for a request for new tokens.",
        labels=["server"],
    )
    return families


def _tidy_connection() -> None:
    # Django closes connections around its requests; this thread may be another
    # server's.
    connection = connections[router.db_for_read(TokenGrant)]
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()
