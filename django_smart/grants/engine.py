"""What workers do, each callable without Celery too."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic

from django.utils import timezone

from ..conf import conf
from ..models import FHIRServer, Launch, TokenGrant
from ..models.clock import DatabaseNow
from ..models.grant import TokenGrantQuerySet
from .batch import RefreshResult, refresh_grants
from .ending import (
    disconnect_grant,
    find_unused_grants,
    revoke_at_server,
    supersede_grants,
)
from .server_limits import BATCH_SIZE, get_batch_size, get_claim_limit

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

# Seconds of a run that telling EHRs of ended grants may take: another run comes.
_REVOKING = 600.0

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
    Tell the EHRs of ended grants, for ten minutes at most.

    A server that does not answer is not asked again, nor is one whose refreshes are
    paused.

    Returns:
        How many are closed.  The others are tried again by :func:`purge`.
    """
    return _revoke(TokenGrant.objects.filter(pk__in=list(grant_ids)))


def _revoke(grants: TokenGrantQuerySet) -> int:
    deadline = monotonic() + _REVOKING
    # In no order: what fails each time must not keep the others from their turn.
    pending = (
        grants.awaiting_revocation()
        .exclude(registration__server__refresh_paused_until__gt=DatabaseNow())
        .order_by("?")
        .values_list("pk", "registration__server_id")
    )
    closed, away = 0, set[int]()
    for grant_id, server_id in list(pending):
        if monotonic() >= deadline:
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


def purge() -> PurgeResult:
    """
    Tidy up: late callbacks, deactivated users, what is long over, open revocations.

    Rows are kept for ``SMART_PURGE_AFTER`` after their end.  Revocations that could not
    be made until then are given up, after a last try unless the EHR is away: the tokens
    go with the row.
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
    _, launches = Launch.objects.filter(ended_at__lte=limit).delete()
    old = TokenGrant.objects.filter(ended_at__lte=limit)
    _, closed = old.filter(is_revocation_pending=False).delete()
    # EHRs last: they can take long, or not be there.
    finished = _revoke(TokenGrant.objects.all())
    _, tried = old.delete()
    label = TokenGrant._meta.label
    return PurgeResult(
        launches_failed=failed,
        launches_deleted=launches.get(Launch._meta.label, 0),
        grants_deleted=closed.get(label, 0) + tried.get(label, 0),
        revocations_finished=finished,
    )
