"""Celery tasks; ``smart_sync`` does the same without Celery."""

from __future__ import annotations

import logging
from datetime import timedelta

from celery import shared_task

from django_smart.exceptions import NoGrantError, RecordBusyError
from django_smart.models import TokenGrant

from . import sync_record
from .due import EVERY, build_sink, find_due_grants, forget_ended_records
from .schedule import TICK

__all__ = ["sync_due_records", "sync_record_of_grant"]

logger = logging.getLogger(__name__)

# In place of a site's limits, in seconds, which are for its own tasks.
_SOFT_LIMIT, _LIMIT = 3600, 3900


@shared_task(ignore_result=True)
def sync_due_records(hours: float = EVERY / timedelta(hours=1)) -> None:
    """
    Send a message for each record that is due, and forget those that have ended.

    Args:
        hours: how long after a run the next one is due.
    """
    sink = build_sink()
    forget_ended_records(sink)
    for grant_id in find_due_grants(sink, every=timedelta(hours=hours)):
        # The next tick sends it again, so the queue does not grow.
        sync_record_of_grant.apply_async((grant_id,), expires=TICK)


# Safe to run twice: two runs of one record exclude each other. After a killed worker,
# the next tick continues the run.
@shared_task(ignore_result=True, soft_time_limit=_SOFT_LIMIT, time_limit=_LIMIT)
def sync_record_of_grant(grant_id: int) -> None:
    """Read the record of a grant into the sink that ``SMART_RECORDS_SINK`` names."""
    grant = TokenGrant.objects.select_related("registration__server").get(pk=grant_id)
    try:
        sync_record(grant, build_sink())
    except (NoGrantError, RecordBusyError) as exc:
        logger.info("Grant %s: the record was not read (%s)", grant_id, exc.code)
