"""What workers do with grants: claim those that are due, refresh them, revoke them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta

from ..models import FHIRServer, TokenGrant
from ..models.clock import DatabaseNow
from ..models.grant import TokenGrantQuerySet
from .batch import RefreshResult, refresh_grants
from .ending import revoke_at_server
from .server_limits import BATCH_SIZE, get_batch_size, get_claim_limit

__all__ = [
    "BATCH_SIZE",
    "CLAIM_LENGTH",
    "RefreshResult",
    "claim_due_batches",
    "refresh_grants",
    "revoke_grants",
    "revoke_pending",
]

logger = logging.getLogger(__name__)

#: How long a message may wait for a worker.
CLAIM_LENGTH = timedelta(seconds=45)
# Grants that are claimed at once: what is due is put in order for each time.  The first
# few are soon with the workers, who refresh them while the next are claimed.
_FIRST_CLAIM_SIZE = 2 * BATCH_SIZE
_CLAIM_SIZE = 10 * BATCH_SIZE

# Seconds of a run of revocations: what is left waits for the next run.
_REVOKING = 600.0


def claim_due_batches(*, limit: int = 100 * BATCH_SIZE) -> Iterator[list[int]]:
    """
    Claim due grants: primary keys in batches of one server each.

    Those come first whose access token ends first.  A server that is paused gets none,
    and one with a rate limit what it can take until the next call.  What is not taken
    up within :data:`CLAIM_LENGTH` is claimed again.

    Args:
        limit: grants of each server, at most.
    """
    waiting = TokenGrant.objects.count_due()
    if not waiting:
        return
    servers = FHIRServer.objects.annotate(database_now=DatabaseNow()).in_bulk(
        [server_id for server_id, _, _ in waiting]
    )
    for server_id, number, claimed in waiting:
        server = servers[server_id]
        there_now = server.database_now  # type: ignore[attr-defined]  # annotated
        free = get_claim_limit(server, claimed=claimed, now=there_now)
        left = min(limit, number, free)
        due = TokenGrant.objects.due().filter(registration__server_id=server_id)
        claim_size = _FIRST_CLAIM_SIZE
        while left > 0:
            grant_ids = due.claim(limit=min(left, claim_size), length=CLAIM_LENGTH)
            if not grant_ids:
                break
            left -= len(grant_ids)
            claim_size = _CLAIM_SIZE
            size = get_batch_size(server)
            for start in range(0, len(grant_ids), size):
                yield grant_ids[start : start + size]


def revoke_grants(grant_ids: Iterable[int]) -> int:
    """Revoke these grants at their EHRs; see :func:`revoke_pending`."""
    return revoke_pending(TokenGrant.objects.filter(pk__in=list(grant_ids)))


def revoke_pending(grants: TokenGrantQuerySet) -> int:
    """
    Revoke at their EHRs those of *grants* that have ended here, in ten minutes at most.

    A server that does not answer is asked once in a run, and one whose refreshes are
    paused is not asked.

    Returns:
        How many are closed; the next purge tries the others again.
    """
    deadline = time.monotonic() + _REVOKING
    # In no order: what fails each time must not keep the others from their turn.
    pending = (
        grants.awaiting_revocation()
        .exclude(registration__server__refresh_paused_until__gt=DatabaseNow())
        .order_by("?")
        .values_list("pk", "registration__server_id")
    )
    closed, away = 0, set[int]()
    for grant_id, server_id in list(pending):
        if time.monotonic() >= deadline:
            logger.warning("Not all EHRs are told of ended grants yet: out of time")
            break
        if server_id in away:
            continue
        # Read now: another worker may have told of it meanwhile.
        grant = (
            TokenGrant.objects.awaiting_revocation()
            .select_related("registration__server")
            .filter(pk=grant_id)
            .first()
        )
        if grant is not None:
            closed += revoke_at_server(grant, away=away)
    return closed
