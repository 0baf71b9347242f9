"""
Celery tasks: each takes primary keys at most, does one flow call, and may run twice.

No task carries a token: brokers and result stores keep what they are given.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery import shared_task
from django.utils import timezone

from .grants import engine
from .launches.purge import purge as _purge
from .models import TaskRun
from .models.task_run import BEAT_TASK
from .servers import discovery, signing_keys

__all__ = [
    "purge",
    "refresh_due_grants",
    "refresh_grants",
    "refresh_servers",
    "revoke_grants",
    "rotate_keys",
]


@shared_task(ignore_result=True)
def refresh_due_grants() -> None:
    """Send the due grants to the workers, a batch of one server a message."""
    for grant_ids in engine.claim_due_batches():
        # What no worker took up by then is claimed, and sent, again.
        refresh_grants.apply_async(
            (grant_ids,), expires=engine.CLAIM_LENGTH.total_seconds()
        )


# Safe twice, and after a worker that was killed over it: its leases run out.
@shared_task(ignore_result=True, acks_late=True, reject_on_worker_lost=True)
def refresh_grants(grant_ids: Sequence[int]) -> None:
    """Refresh those of the grants that are still due."""
    engine.refresh_grants(grant_ids)


@shared_task(ignore_result=True, acks_late=True)
def revoke_grants(grant_ids: Sequence[int]) -> None:
    """Tell the EHRs of grants that ended here."""
    engine.revoke_grants(grant_ids)


@shared_task(ignore_result=True)
def refresh_servers() -> None:
    """Fetch configurations and keys again before they are outdated."""
    TaskRun.objects.note(BEAT_TASK, now=timezone.now())
    discovery.refresh_servers()


@shared_task(ignore_result=True)
def rotate_keys() -> None:
    """Publish, rotate and remove signing keys, as ``SMART_KEY_ROTATION`` says."""
    signing_keys.rotate_due_keys()


@shared_task(ignore_result=True)
def purge() -> None:
    """Delete what is long over, and finish what was left open."""
    _purge()
