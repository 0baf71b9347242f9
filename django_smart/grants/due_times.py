"""When the worker refreshes a grant, and when it tries again."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from ..conf import conf
from ..models import TokenGrant

__all__ = ["get_refresh_due_at", "get_retry_at"]

# What the end of a token has to leave: beat looks every ten seconds, and a message to
# the worker, its queue and the request to the server take time as well.
_MARGIN = timedelta(seconds=15)
# Of a refresh token whose life is not known, as it may end unused.
_KEEP_ALIVE = timedelta(days=7)
_FIRST_RETRY = timedelta(seconds=10)
_LAST_RETRY = timedelta(hours=1)


def get_refresh_due_at(grant: TokenGrant) -> datetime:
    """
    A time in the last part of the access token's life, at random within a tenth of it.

    Of a life of less than a minute, a time that the worker still sees before the end.
    Sooner if the refresh token would die unused; later, as it alone demands, if nobody
    has used the grant for long.  Never sooner after the tokens came than the server's
    least refresh interval and ``SMART_REFRESH_FLOOR``.
    """
    received_at: datetime = grant.received_at
    server = grant.registration.server
    wait = _get_keep_alive(server.refresh_token_lifetime)
    if not _is_idle(grant):
        wait = min(wait, _get_renewal(grant.expires_at - received_at))
    least = max(conf.SMART_REFRESH_FLOOR, server.min_refresh_interval or timedelta(0))
    return received_at + max(wait, least)


def get_retry_at(
    *, failures: int, now: datetime, retry_after: float | None = None
) -> datetime:
    """Exponential back-off with full jitter, and never before *retry_after* seconds."""
    doubled: int = 2 ** min(failures, 10)
    limit = min(_LAST_RETRY, _FIRST_RETRY * doubled)
    jitter = random.uniform(0, 1)  # noqa: S311 (spreads load, no secret)
    wait = max(jitter * limit, timedelta(seconds=retry_after or 0))
    return now + min(wait, timedelta(days=1))


def _get_renewal(lifetime: timedelta) -> timedelta:
    return max(min(_take_part(lifetime), lifetime - _MARGIN), timedelta(0))


def _get_keep_alive(lifetime: timedelta | None) -> timedelta:
    return _take_part(lifetime) if lifetime else _KEEP_ALIVE


def _take_part(lifetime: timedelta) -> timedelta:
    early = random.uniform(0, 0.1)  # noqa: S311 (spreads load, no secret)
    return lifetime * max(conf.SMART_REFRESH_FRACTION - early, 0)


def _is_idle(grant: TokenGrant) -> bool:
    limit = conf.SMART_REFRESH_IDLE_AFTER
    if not limit:
        return False
    used_at = grant.created_at if grant.last_used_at is None else grant.last_used_at
    return grant.received_at - used_at >= limit
