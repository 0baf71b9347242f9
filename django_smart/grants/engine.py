"""
The workers' tasks for grants: find servers with due grants, and refresh them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator

from django.db.models import BooleanField, ExpressionWrapper, F, OuterRef, Subquery

from ..models import ClientRegistration, ServerState, TokenGrant
from ..models.clock import DatabaseNow
from ..models.server_state import has_ended, is_silent
from .deployment import note_tick
from .turn import RefreshResult, serve

__all__ = ["refresh_for", "run_tick"]

logger = logging.getLogger(__name__)


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
