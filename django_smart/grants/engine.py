"""
The workers' tasks for grants: find servers with due grants, refresh and revoke them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator

from django.db.models import BooleanField, ExpressionWrapper, F, OuterRef, Subquery

from ..models import ClientRegistration, ServerState, TokenGrant
from ..models.clock import DatabaseNow
from ..models.grant import TokenGrantQuerySet
from ..models.server_state import has_ended, is_silent
from .deployment import note_tick
from .ending import revoke_at_server
from .turn import RefreshResult, serve

__all__ = [
    "RefreshResult",
    "refresh_for",
    "revoke_grants",
    "revoke_pending",
    "run_tick",
    "serve",
]

logger = logging.getLogger(__name__)

# Seconds for one run of revocations; the rest waits for the next run.
_REVOKING = 600.0
# After a revocation that took longer, a process leaves those of the server to the purge
# for a while: else, each sign-out there would occupy a worker for one or two calls.
_SLOW = 5.0
_PAUSE_OF_SLOW = 300.0
_slow_until: dict[int, float] = {}


def run_tick(send: Callable[[int], object]) -> None:
    """
    Send a message for each server with due grants that no process serves.

    Args:
        send: called with the primary key of a server.
    """
    if note_tick() and (waiting := _find_waiting()):
        # Before the first message leaves: a worker may be faster than this process.
        # A process that is killed in between leaves them to a later tick.
        ServerState.objects.announce(waiting)
        for server_id in waiting:
            send(server_id)


def _find_waiting() -> list[int]:
    """
    Return the servers with due grants that no process serves, by primary key.

    The one whose grants have been due for longest comes first.  Each test of a server
    that does not respond occupies a process for a whole call: of all such servers
    together, one is tried at a time.
    """
    due = TokenGrant.objects.usable().offline()
    due = due.filter(registration=OuterRef("pk"), refresh_due_at__lte=DatabaseNow())
    first_due_at = due.order_by("refresh_due_at").values("refresh_due_at")[:1]
    found = (
        ClientRegistration.objects.refreshable()
        .filter(has_ended("server__state__turn_until"))
        .exclude(server__state__paused_until__gt=DatabaseNow())
        .annotate(first_due_at=Subquery(first_due_at))
        .filter(first_due_at__isnull=False)
        .order_by("first_due_at", "pk")
        .annotate(
            is_silent=ExpressionWrapper(
                is_silent("server__state__"), output_field=BooleanField()
            ),
            paused_until=F("server__state__paused_until"),
        )
        .values_list("server_id", "is_silent", "paused_until")
    )
    silent = {pk: until for pk, is_silent, until in found if is_silent and until}
    servers = list(dict.fromkeys(pk for pk, *_ in found if pk not in silent))
    tried = ServerState.objects.filter(is_silent()).exclude(has_ended("turn_until"))
    if silent and not tried.exists():
        # The one whose pause ended first.
        servers.append(min(silent, key=silent.__getitem__))
    return servers


def refresh_for(seconds: float) -> Iterator[RefreshResult]:
    """Do what beat and a worker do, in this process; the next run goes on."""
    deadline = time.monotonic() + seconds
    messages: deque[int] = deque()

    def send(server_id: int, token: str = "") -> None:
        # There is no other process to share a turn with.
        if not token:
            messages.append(server_id)

    is_done = False
    while not is_done:
        is_done = True
        run_tick(send)
        while messages:
            yield (result := serve(messages.popleft(), send=send))
            if time.monotonic() > deadline:
                return
            is_done = is_done and result == RefreshResult()


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
