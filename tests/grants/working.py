"""What a worker does, and what it must not log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from django_smart.grants.engine import run_tick
from django_smart.grants.turn import RefreshResult, serve
from django_smart.models import FHIRServer, TokenGrant
from django_smart.models.clock import DatabaseNow
from django_smart.testing import EHRSimulator
from tests.factories import find_due
from tests.known import CLIENT_SECRET, PATIENT


def tick() -> list[int]:
    """One tick of beat: the servers for which it sends a message."""
    sent: list[int] = []
    run_tick(sent.append)
    return sent


def refresh_due() -> RefreshResult:
    """One tick of beat, and the worker's part."""
    return _add(serve(pk) for pk in tick())


def refresh_grants(grant_ids: Iterable[int]) -> RefreshResult:
    """Serve the servers while these grants are due, and no others."""
    asked = list(grant_ids)
    servers = FHIRServer.objects.filter(registrations__grants__in=asked).distinct()
    with _postponed(set(asked)):
        result = _add(serve(server.pk) for server in servers.order_by("pk"))
    skipped = len(asked) - result.refreshed - result.failed
    return RefreshResult(
        refreshed=result.refreshed, failed=result.failed, skipped=skipped
    )


@contextmanager
def _postponed(asked: set[int]) -> Iterator[None]:
    due = find_due().exclude(pk__in=asked)
    others = dict(due.values_list("pk", "refresh_due_at"))
    later = TokenGrant.objects.filter(pk__in=others)
    later.update(refresh_due_at=DatabaseNow(timedelta(days=1)))
    try:
        yield
    finally:
        for pk, due_at in others.items():
            TokenGrant.objects.filter(pk=pk).update(refresh_due_at=due_at)


def _add(results: Iterable[RefreshResult]) -> RefreshResult:
    each = list(results)
    return RefreshResult(
        refreshed=sum(one.refreshed for one in each),
        skipped=sum(one.skipped for one in each),
        failed=sum(one.failed for one in each),
    )


def check_log(ehr: EHRSimulator, log: str) -> None:
    """No secret and no patient is in *log*."""
    for secret in (
        CLIENT_SECRET,
        PATIENT,
        *ehr.store.access_tokens,
        *ehr.store.refresh_tokens,
    ):
        assert secret not in log
