"""Clean up ended launches and grants."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError
from django.db.models import Model, Q, QuerySet

from ..conf import conf
from ..grants.ending import (
    announce_ends,
    end_unused_grants,
    revoke_pending,
    supersede_all,
)
from ..models import Launch, TaskRun, TokenGrant
from ..models.grant import LOST_TOKENS_KEPT, TokenGrantQuerySet
from ..models.task_run import PURGE
from .held import end_expired_launches

__all__ = ["PurgeResult", "purge"]

logger = logging.getLogger(__name__)

# How long the row of a backend service is kept after its last token expired.
_IDLE = timedelta(days=1)
# How long failed launches are kept: anybody can start one.
_FAILED = timedelta(days=1)
# Seconds for revocations, in a site where only the purge runs.
_REVOKING = 600.0
_CHUNK = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class PurgeResult:
    """Counts of one run."""

    launches_failed: int = 0
    launches_deleted: int = 0
    grants_deleted: int = 0
    revocations_finished: int = 0


def purge() -> PurgeResult:
    """
    Clean up late callbacks, deactivated users, old rows and open revocations.

    Rows are kept for ``SMART_PURGE_AFTER`` after their end, those of failed launches
    for a day at most. Revocations that did not succeed until then are
    abandoned: the tokens are deleted with the row.
    """
    # By the database's clock: a wrong one would end the launches of all users.
    now = TaskRun.objects.note_and_read(PURGE)
    limit = now - conf.SMART_PURGE_AFTER
    failed = Launch.objects.filter(expires_at__lte=now).fail(
        error_code="state_expired", now=now
    )
    undecided = end_expired_launches()
    Launch.objects.too_old(now).end(reason="lifetime", now=now)
    Launch.objects.idle(now).end(reason="idle", now=now)
    end_unused_grants(now=now)
    _find_idle_services(now).end(TokenGrant.Status.EXPIRED, now=now)
    refused = Q(status=TokenGrant.Status.NEEDS_REAUTHORIZATION)
    may_be_restored = refused & Q(ended_at__gt=now - LOST_TOKENS_KEPT)
    TokenGrant.objects.filter(refused, ~may_be_restored).exclude(
        refresh_token_digest=""
    ).forget_tokens()
    # Two tabs with one patient kept a grant each; now one may be enough.
    supersede_all(now=now)
    # By status and end, for which there is an index: most rows are younger.
    ended = Launch.objects.filter(status=Launch.Status.ENDED, ended_at__lte=limit)
    failed_until = max(limit, now - _FAILED)
    never_completed = Launch.objects.filter(
        status=Launch.Status.FAILED, ended_at__lte=failed_until
    )
    old = TokenGrant.objects.filter(ended_at__lte=limit).exclude(may_be_restored)
    revoked = old.filter(is_revocation_pending=False)
    launches, protected = _delete(ended, never_completed)
    _log_protected(Launch, protected)
    closed, _ = _delete(revoked)
    # EHRs last: they can be slow or unavailable.
    finished = revoke_pending(seconds=_REVOKING)
    tried, protected = _delete(revoked, old.awaiting_revocation())
    _log_protected(TokenGrant, protected)
    # Of those that the site protects.
    old.awaiting_revocation().forget_tokens()
    # Receivers after all else: slow ones use up the time limit of the task.
    announce_ends()
    return PurgeResult(
        launches_failed=failed + undecided,
        launches_deleted=launches,
        grants_deleted=closed + tried,
        revocations_finished=finished,
    )


def _find_idle_services(now: datetime) -> TokenGrantQuerySet:
    """Return active grants of backend services that have not been used for long."""
    return TokenGrant.objects.active().filter(
        Q(expires_at__lte=now - _IDLE)
        | Q(registration__is_active=False)
        | Q(registration__system_scope=""),
        kind=TokenGrant.Kind.CLIENT_CREDENTIALS,
    )


def _delete(*querysets: QuerySet[Any]) -> tuple[int, int]:
    """
    Delete rows a thousand at a time, since Django reads what it deletes.

    Returns:
        How many were deleted, and how many the site protects.
    """
    deleted = protected = 0
    for rows in querysets:
        pks_by_end = rows.order_by("ended_at", "pk").values_list("pk", flat=True)
        # Those that could not be deleted come first again.
        skip = 0
        while pks := list(pks_by_end[skip : skip + _CHUNK]):
            number = _delete_unprotected(rows.model, pks)
            deleted += number
            skip += len(pks) - number
        protected += skip
    return deleted, protected


def _delete_unprotected(model: type[Model], pks: Sequence[int]) -> int:
    """Delete rows, but not those that the site protects; return how many."""
    try:
        model._default_manager.filter(pk__in=pks).delete()
    except IntegrityError:  # such as ProtectedError and RestrictedError
        if len(pks) == 1:
            return 0
        return sum(_delete_unprotected(model, [pk]) for pk in pks)
    return len(pks)


def _log_protected(model: type[Model], number: int) -> None:
    if number:
        logger.warning(
            "Not deleted, because the site protects them: %s of %s; use SET_NULL in "
            "foreign keys to it",
            number,
            model._meta.label,
        )
