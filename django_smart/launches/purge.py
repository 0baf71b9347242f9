"""Tidy up: launches and grants that are over, and revocations that are still open."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from django.utils import timezone

from ..conf import conf
from ..grants.ending import disconnect_grant, find_unused_grants, supersede_grants
from ..grants.engine import revoke_pending
from ..models import Launch, TokenGrant

__all__ = ["PurgeResult", "purge"]

# How long the row of a backend service is kept after its last token has ended.
_IDLE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgeResult:
    """Counts of one run."""

    launches_failed: int = 0
    launches_deleted: int = 0
    grants_deleted: int = 0
    revocations_finished: int = 0


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
    finished = revoke_pending(TokenGrant.objects.all())
    _, tried = old.delete()
    label = TokenGrant._meta.label
    return PurgeResult(
        launches_failed=failed,
        launches_deleted=launches.get(Launch._meta.label, 0),
        grants_deleted=closed.get(label, 0) + tried.get(label, 0),
        revocations_finished=finished,
    )
