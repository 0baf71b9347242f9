"""What workers do, each callable without Celery too."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from django.utils import timezone

from ..conf import conf
from ..models import FHIRServer, Launch, TokenGrant
from ..models.clock import DatabaseNow
from .ending import (
    disconnect_grant,
    find_unused_grants,
    revoke_at_server,
    supersede_grants,
)
from .pace import BATCH_SIZE, get_batch_size, get_claim_limit
from .refresh_batch import RefreshResult, refresh_grants

__all__ = [
    "BATCH_SIZE",
    "CLAIM_LENGTH",
    "PurgeResult",
    "RefreshResult",
    "claim_due_batches",
    "purge",
    "refresh_grants",
    "revoke_grants",
]

logger = logging.getLogger(__name__)

#: How long a message may wait for a worker.
CLAIM_LENGTH = timedelta(seconds=45)
# Grants that are claimed at once: what is due is put in order for each time.  The first
# few are soon with the workers, who refresh them while the next are claimed.
_FIRST_CLAIM_SIZE = 2 * BATCH_SIZE
_CLAIM_SIZE = 10 * BATCH_SIZE

# How long the row of a backend service is kept after its last token has ended.
_IDLE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgeResult:
    """Counts of one run."""

    launches_failed: int = 0
    launches_deleted: int = 0
    grants_deleted: int = 0
    revocations_finished: int = 0


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
    """
    Tell the EHRs of ended grants.

    Returns:
        How many are closed.  The others are tried again by :func:`purge`.
    """
    grants = (
        TokenGrant.objects.awaiting_revocation()
        .filter(pk__in=list(grant_ids))
        .select_related("registration__server")
    )
    return sum(revoke_at_server(grant) for grant in grants)


def purge() -> PurgeResult:
    """
    Tidy up: late callbacks, deactivated users, open revocations, and what is long over.

    Rows are kept for ``SMART_PURGE_AFTER`` after their end.  Revocations that could not
    be made until then are given up: the tokens go with the row.
    """
    now = timezone.now()
    limit = now - conf.SMART_PURGE_AFTER
    failed = Launch.objects.filter(expires_at__lte=now).fail(
        error_code="state_expired", now=now
    )
    Launch.objects.too_old(now).end(reason="lifetime", now=now)
    Launch.objects.idle(now).end(reason="idle", now=now)
    for grant in TokenGrant.objects.of_deactivated_users():
        disconnect_grant(grant)
    for grant in find_unused_grants(now):
        disconnect_grant(grant)
    TokenGrant.objects.idle_services(now - _IDLE).end(
        TokenGrant.Status.EXPIRED, now=now
    )
    # Two tabs on one patient kept a grant each; now one may be enough.
    for grant in TokenGrant.objects.newest_of_several():
        supersede_grants(grant, now=now)
    pending = list(
        TokenGrant.objects.awaiting_revocation().values_list("pk", flat=True)
    )
    finished = revoke_grants(pending)
    _, launches = Launch.objects.filter(ended_at__lte=limit).delete()
    _, grants = TokenGrant.objects.filter(ended_at__lte=limit).delete()
    return PurgeResult(
        launches_failed=failed,
        launches_deleted=launches.get(Launch._meta.label, 0),
        grants_deleted=grants.get(TokenGrant._meta.label, 0),
        revocations_finished=finished,
    )
