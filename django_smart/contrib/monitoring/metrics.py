"""
The health of each server's grants, for Prometheus.

Needs the extra ``prometheus``.  Each number is read from the database at the scrape, so
one process that is scraped is enough, and several tell the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from django.db import connections, router
from django.utils import timezone

from ...models import TokenGrant
from .health import read_health

if TYPE_CHECKING:
    from prometheus_client.metrics_core import GaugeMetricFamily

__all__ = ["GrantCollector"]

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
