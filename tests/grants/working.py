"""What a worker does, and what it must not log."""

from __future__ import annotations

from django_smart.grants.batch import RefreshResult, refresh_grants
from django_smart.grants.engine import claim_due_batches
from django_smart.testing import EHRSimulator
from tests.known import CLIENT_SECRET, PATIENT


def refresh_due() -> RefreshResult:
    """One tick of beat, and the worker's part."""
    results = [refresh_grants(batch) for batch in claim_due_batches()]
    return RefreshResult(
        refreshed=sum(each.refreshed for each in results),
        skipped=sum(each.skipped for each in results),
        failed=sum(each.failed for each in results),
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
