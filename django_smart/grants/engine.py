"""
The workers' tasks for grants: claim those that are due, refresh them, revoke them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import chain, islice
from math import ceil

from ..models import ClientRegistration, TaskRun, TokenGrant
from ..models.clock import DatabaseNow
from ..models.grant import TokenGrantQuerySet
from ..models.task_run import REFRESH
from .batch import RefreshResult, refresh_grants
from .deployment import is_owner, note_owned_elsewhere
from .ending import revoke_at_server
from .server_limits import (
    BATCH_SIZE,
    MOST_CLAIMED,
    get_batch_size,
    get_claim_limit,
    get_rank,
    is_hanging,
)

__all__ = [
    "BATCH_SIZE",
    "CLAIM_LENGTH",
    "RefreshResult",
    "claim_due_batches",
    "refresh_grants",
    "revoke_grants",
    "revoke_pending",
    "run_tick",
]

logger = logging.getLogger(__name__)

#: How long a message may wait for a worker until its grants are claimed again.
CLAIM_LENGTH = timedelta(seconds=45)
# Messages whose grants are claimed together: more would delay the first of them.
_CLAIMED_AT_ONCE = 2
# How long a tick may take between two claims, which is also how long one that lost its
# process or its connection keeps out the others, and the pause after it: of ticks that
# accumulated while no worker ran, most end immediately.  It is shorter than a batch,
# after which a tick claims the grants that are left.
_TICK_LENGTH = timedelta(seconds=30)
_TICK_PAUSE = timedelta(seconds=0.1)
# Seconds after which a tick that still runs extends its reservation.
_HELD_ANEW = 5.0
# Seconds for one run of revocations; the rest waits for the next run.
_REVOKING = 600.0
# After a revocation that took longer, a process leaves those of the server to the purge
# for a while: else, each sign-out there would occupy a worker for one or two calls.
_SLOW = 5.0
_PAUSE_OF_SLOW = 300.0
_slow_until: dict[int, float] = {}


def run_tick(send: Callable[[list[int], bool], object]) -> None:
    """
    Claim due grants and send each batch to a worker, unless another tick is running.

    Args:
        send: called with the grants, and with whether more grants of their server are
            due than were claimed, so that a tick after the batch finds work.
    """
    if not is_owner():
        note_owned_elsewhere()
        return
    if not TaskRun.objects.begin(REFRESH, within=_TICK_LENGTH):
        return
    held_at = time.monotonic()
    try:
        for grant_ids, has_more in _claim_in_turn(MOST_CLAIMED):
            send(grant_ids, has_more)
            if time.monotonic() - held_at > _HELD_ANEW:
                TaskRun.objects.hold(REFRESH, within=_TICK_LENGTH)
                held_at = time.monotonic()
    finally:
        TaskRun.objects.hold(REFRESH, within=_TICK_PAUSE)


def claim_due_batches(*, limit: int = MOST_CLAIMED) -> Iterator[list[int]]:
    """
    Claim due grants: primary keys in batches of one server each, the servers in turn.

    Grants whose access token expires first come first (:func:`get_rank` names the
    exceptions). A paused server gets none, one with a rate limit as many as it
    accepts until the next call, and a slow one as many as a single process can refresh
    until then; in total, no more than workers can refresh before the claims expire.
    Claims that no worker takes up within :data:`CLAIM_LENGTH` are claimed again.

    Args:
        limit: the maximum for each server.
    """
    return (grant_ids for grant_ids, _ in _claim_in_turn(limit))


def _claim_in_turn(limit: int) -> Iterator[tuple[list[int], bool]]:
    servers: dict[int, list[ClientRegistration]] = {}
    for each in TokenGrant.objects.find_due_registrations():
        servers.setdefault(each.server_id, []).append(each)
    hanging = _take_out_hanging(servers)
    # Equal shares, so that a server with many due grants does not take everything.
    share = max(MOST_CLAIMED // max(len(servers), 1), 1)
    queues = deque(_claim(each, min(limit, share)) for each in servers.values())
    while queues:
        queue = queues.popleft()
        for batch in islice(queue, 1):
            yield batch
            queues.append(queue)
    # Each test of a server that does not respond occupies a process for a whole call:
    # those of many, for example during an outage of a vendor's cloud, would keep the
    # workers from the rest.
    found = TokenGrant.objects.under_way([each[0].server_id for each in hanging])
    if hanging and not found.exists():
        batches = chain.from_iterable(_claim(each, limit) for each in hanging)
        yield from islice(batches, 1)


def _take_out_hanging(
    servers: dict[int, list[ClientRegistration]],
) -> list[list[ClientRegistration]]:
    """Move servers that do not respond from *servers* to a list in their order."""

    def get_turn(registrations: list[ClientRegistration]) -> datetime:
        server = registrations[0].server
        return server.state.paused_until or server.created_at

    hanging = [each for each in servers.values() if is_hanging(each[0].server)]
    for registrations in hanging:
        del servers[registrations[0].server_id]
    return sorted(hanging, key=get_turn)


def _claim(
    registrations: list[ClientRegistration], limit: int
) -> Iterator[tuple[list[int], bool]]:
    """Claim grants of one server, to which these registrations belong."""
    server = registrations[0].server
    now = registrations[0].database_now  # type: ignore[attr-defined]  # annotated
    if not get_claim_limit(server, busy=0, now=now):
        return
    due: list[tuple[int, datetime, int, bool]] = []
    for each in registrations:
        # Claimed grants are usually among those that expire first.
        rows = TokenGrant.objects.read_due(each, limit=2 * MOST_CLAIMED)
        if each.refresh_stopped_at is not None:
            # The grant that failed least shows whether it works again.
            rows = sorted(rows)[:1]
        due += [(get_rank(row[0], server), *row[1:]) for row in rows]
    due.sort()
    free = [pk for _, _, pk, is_free in due if is_free]
    busy = len(due) - len(free)
    left = min(get_claim_limit(server, busy=busy, now=now), max(limit - busy, 0))
    has_more = left < len(free)
    # Not kept in memory while this generator waits for its turns.
    del rows, due, free[left:]
    if not (number := len(free)):
        return
    # Equal messages: with a short last one, some processes would be done much earlier.
    size = ceil(number / ceil(number / get_batch_size(server)))
    for start in range(0, number, _CLAIMED_AT_ONCE * size):
        wanted = free[start : min(start + _CLAIMED_AT_ONCE * size, number)]
        claimed = TokenGrant.objects.claim(wanted, length=CLAIM_LENGTH)
        for first in range(0, len(claimed), size):
            yield claimed[first : first + size], has_more


def revoke_grants(grant_ids: Iterable[int]) -> int:
    """
    Revoke these grants at their EHRs; see :func:`revoke_pending`.

    For five minutes after a server took longer than five seconds, its grants wait for
    the purge.
    """
    now = time.monotonic()
    # A copy: other threads may add a server meanwhile.
    slow = {pk for pk, until in _slow_until.copy().items() if until > now}
    grants = TokenGrant.objects.filter(pk__in=list(grant_ids))
    return revoke_pending(grants, unless_slow=slow)


def revoke_pending(
    grants: TokenGrantQuerySet, *, unless_slow: Collection[int] | None = None
) -> int:
    """
    Revoke ended *grants* at their EHRs, for at most ten minutes.

    Slow servers come last. One that does not respond is contacted once per run, and one
    whose refreshes are paused not at all.

    Args:
        unless_slow: primary keys of slow servers, which are not contacted; others that
            turn out to be slow are contacted once. ``None`` to wait for all.

    Returns:
        The number of completed revocations; the next purge retries the others.
    """
    away = set(unless_slow or ())
    deadline = time.monotonic() + _REVOKING
    # In random order: grants that always fail must not block the others.
    pending = (
        grants.awaiting_revocation()
        .exclude(registration__server__state__paused_until__gt=DatabaseNow())
        .order_by("?")
        .values_list("pk", "registration__server_id")
    )
    # A slow server, once known, must not use up the time of the others.
    closed, slow = 0, set[int]()
    for grant_id, server_id in _put_last(list(pending), slow):
        if time.monotonic() >= deadline:
            logger.warning(
                "Not all ended grants were revoked at their EHRs: time limit reached"
            )
            break
        if server_id in away:
            continue
        # Read now: another worker may have revoked it in the meantime.
        grant = (
            TokenGrant.objects.awaiting_revocation()
            .select_related("registration__server")
            .filter(pk=grant_id)
            .first()
        )
        if grant is None:
            continue
        started = time.monotonic()
        closed += revoke_at_server(grant, away=away)
        ended = time.monotonic()
        if ended - started > _SLOW:
            _slow_until[server_id] = ended + _PAUSE_OF_SLOW
            (slow if unless_slow is None else away).add(server_id)
    return closed


def _put_last(
    pending: Iterable[tuple[int, int]], slow: Collection[int]
) -> Iterator[tuple[int, int]]:
    """Yield grants and their servers, those of *slow* servers last."""
    last = []
    for grant_id, server_id in pending:
        if server_id in slow:
            last.append((grant_id, server_id))
        else:
            yield grant_id, server_id
    yield from last
