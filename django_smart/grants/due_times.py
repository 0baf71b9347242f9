"""Compute when a worker refreshes a grant, and when it retries."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from ..conf import conf
from ..models import TokenGrant

__all__ = ["get_refresh_due_at", "get_retry_at", "note_end"]

# Time to leave before a token expires: beat runs every ten seconds, and the message
# to the worker, its queue and the request to the server take time as well.
_MARGIN = timedelta(seconds=15)
# A refresh token with an unknown lifetime is used at least so often, since it may
# expire unused, and a known end is announced at most so long before.
_WEEK = timedelta(days=7)
# EHRs count in whole seconds, by their own clocks.
_SAME_END = timedelta(minutes=1)
# Of a token's lifetime, after which it is refreshed; a tenth earlier at random.
_FRACTION = 0.75
# Between two refreshes, even if tokens end sooner.
_FLOOR = timedelta(seconds=30)
_FIRST_RETRY = timedelta(seconds=10)
_LAST_RETRY = timedelta(hours=1)


def get_refresh_due_at(grant: TokenGrant) -> datetime:
    """
    Return a time late in the access token's lifetime, random within a tenth of it.

    For a lifetime of less than a minute, a time at which the worker still notices it
    before the end. Sooner if the refresh token would expire unused; later, only as
    often as the refresh token requires, if the grant has long been unused. Never sooner
    than half a minute after the tokens were received.
    """
    received_at: datetime = grant.received_at
    life = grant.registration.server.quirks.refresh_token_lifetime
    if grant.ends_at is not None:
        life = max(grant.ends_at - received_at, timedelta(0))
    wait = _WEEK if life is None else _take_part(life)
    if not _is_idle(grant):
        lifetime = grant.expires_at - received_at
        wait = min(wait, _take_part(lifetime), lifetime - _MARGIN)
    return received_at + max(wait, _FLOOR)


def note_end(
    grant: TokenGrant, *, reported: datetime | None, is_new: bool, now: datetime
) -> None:
    """
    Record when the refresh token of *grant* ends, and when to announce that.

    It is announced in the last tenth of its lifetime, at most a week before the end. So
    an end that each refresh postpones is not announced while refreshes succeed; a fixed
    end is.

    Args:
        reported: the end that the EHR has sent.
        is_new: the refresh token is another than before.
    """
    lifetime = grant.registration.server.quirks.refresh_token_lifetime
    if reported is None and is_new and lifetime:
        reported = now + lifetime
    elif reported is None and not is_new and not _is_disproven(grant.ends_at, now):
        return
    if reported is None:
        grant.ends_at = grant.ends_soon_at = None
        grant.end_announced = False
    elif grant.ends_at is None or abs(reported - grant.ends_at) > _SAME_END:
        grant.ends_at = reported
        grant.ends_soon_at = reported - min((reported - now) / 10, _WEEK)
        grant.end_announced = False


def _is_disproven(ends_at: datetime | None, now: datetime) -> bool:
    """Whether the EHR accepts a refresh token after its known end."""
    return ends_at is not None and now > ends_at + _SAME_END


def get_retry_at(
    *,
    failures: int,
    now: datetime,
    ends_at: datetime | None = None,
    retry_after: float | None = None,
) -> datetime:
    """
    Return an exponential backoff with full jitter, at least *retry_after* seconds.

    Args:
        ends_at: when the refresh token ends, if that is known. Until then, a retry
            waits for at most half of the time that is left.
    """
    doubled: int = 2 ** min(failures, 10)
    limit = min(_LAST_RETRY, _FIRST_RETRY * doubled)
    if ends_at is not None and ends_at > now:
        limit = min(limit, max((ends_at - now) / 2, _FIRST_RETRY))
    jitter = random.uniform(0, 1)  # noqa: S311 (spreads load, no secret)
    wait = max(jitter * limit, timedelta(seconds=retry_after or 0))
    return now + min(wait, timedelta(days=1))


def _take_part(lifetime: timedelta) -> timedelta:
    early = random.uniform(0, 0.1)  # noqa: S311 (spreads load, no secret)
    return lifetime * max(_FRACTION - early, 0)


def _is_idle(grant: TokenGrant) -> bool:
    limit = conf.SMART_REFRESH_IDLE_AFTER
    if not limit:
        return False
    used_at = grant.created_at if grant.last_used_at is None else grant.last_used_at
    return grant.received_at - used_at >= limit
