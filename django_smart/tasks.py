"""
Celery tasks: each takes at most primary keys, and is idempotent.

No task carries an EHR's token, because brokers and result stores keep messages.
"""

from __future__ import annotations

from celery import shared_task

from .grants.ending import revoke_pending
from .grants.engine import run_tick
from .grants.turn import serve
from .launches.held import end_expired_launches
from .launches.purge import purge as _purge
from .servers import discovery, signing_keys

__all__ = [
    "purge",
    "refresh_due_grants",
    "refresh_grants",
    "refresh_servers",
    "rotate_keys",
]


# In place of a site's limits, in seconds, which are for its own tasks: a minute ends a
# purge that waits for EHRs.
_SOFT_LIMIT, _LIMIT = 3600, 3900


@shared_task(ignore_result=True)
def refresh_due_grants() -> None:
    """
    Send the workers a message for each server with due grants.

    After that, revoke at their EHRs the tokens of grants that have ended here.
    """
    run_tick(refresh_grants.delay)
    revoke_pending()


# Safe to run twice, and to retry after a worker was killed: its leases expire.  The
# soft limit waits for tokens that the database cannot take; the other would lose them.
@shared_task(
    ignore_result=True,
    acks_late=True,
    reject_on_worker_lost=True,
    soft_time_limit=_SOFT_LIMIT,
    time_limit=86400,
)
def refresh_grants(server_id: int, token: str = "") -> None:
    """
    Refresh due grants of a server for about ten seconds, unless another process does.

    Args:
        server_id: primary key of the server.
        token: names the turn to share, for a server with several ``turns``.
    """
    serve(server_id, token=token, send=refresh_grants.delay)


@shared_task(ignore_result=True)
def refresh_servers() -> None:
    """
    Fetch configurations and keys again before they expire.

    First, end launches that nobody decided in time.
    """
    # No message per launch with a countdown: a worker holds it until its time, and with
    # RabbitMQ's quorum queues, two of them can keep it from taking others.
    try:
        end_expired_launches()
    finally:
        discovery.refresh_servers()


@shared_task(ignore_result=True)
def rotate_keys() -> None:
    """Publish, rotate and remove signing keys according to ``SMART_KEY_ROTATION``."""
    signing_keys.rotate_due_keys()


@shared_task(ignore_result=True, soft_time_limit=_SOFT_LIMIT, time_limit=_LIMIT)
def purge() -> None:
    """
    End expired launches, revoke tokens, delete old rows and announce ends of grants.

    The same as ``smart_purge``; see ``SMART_PURGE_AFTER``.
    """
    _purge()
