"""
Messages to the workers.

Celery takes as long to load as half of this package: a web process loads it when it has
something to send, and not at its start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.db import transaction

__all__ = ["enqueue_revocations"]

logger = logging.getLogger(__name__)


def enqueue_revocations(grant_ids: Sequence[int]) -> None:
    """
    Have the EHRs told, by a worker and after the transaction.

    Without a broker nothing is lost: ``purge`` finds what is left open.
    """
    if grant_ids:
        transaction.on_commit(lambda: _send_revocations(list(grant_ids)))


def _send_revocations(grant_ids: list[int]) -> None:
    from .tasks import revoke_grants

    try:
        # No retry: a person is waiting for the page that ended the grants.
        revoke_grants.apply_async((grant_ids,), retry=False)
    except Exception as exc:  # noqa: BLE001 (any broker, any client library)
        logger.warning(
            "Revocations are left to the next purge: no broker (%s)", type(exc).__name__
        )
