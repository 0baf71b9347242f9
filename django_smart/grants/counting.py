"""
Counts of refreshes and of lost grants, kept in the database for all processes together.

They are used only for monitoring. A count that cannot be written is discarded: it must
neither keep tokens from being stored nor wait for a lock of the caller's transaction.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

from django.db import DatabaseError, router, transaction

from ..exceptions import ContextChangedError, TokenResponseError
from ..models import RefreshCount, TokenGrant
from ..tracing import span
from .separate_connection import is_in_transaction

__all__ = [
    "BUCKETS",
    "LOST_REASONS",
    "SUCCESS",
    "Outcomes",
    "count_lost",
    "count_refresh",
]

logger = logging.getLogger(__name__)

SUCCESS = "ok"
"""The code of a successful refresh."""
LOST_REASONS = (*TokenResponseError.FINAL, ContextChangedError.code, "known_end")
"""Why grants are lost; the last is a refusal after the known end."""
# Seconds; the longest call takes 20 unless SMART_HTTP_TIMEOUT says otherwise.
_LIMITS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
BUCKETS = (*map(str, _LIMITS), "+Inf")
"""Upper bounds for the seconds a request took, as Prometheus writes them."""

_Kind = RefreshCount.Kind


class Outcomes:
    """The outcomes of a turn's refreshes at one server, to be written together."""

    def __init__(self, server_id: int) -> None:
        self._server_id = server_id
        self._counts: dict[tuple[str, str], tuple[int, float]] = {}

    def add(self, code: str, *, seconds: float | None = None, number: int = 1) -> None:
        """
        Count an outcome; *seconds* is the duration of the request, if one was sent.
        """
        bucket = "" if seconds is None else BUCKETS[bisect_left(_LIMITS, seconds)]
        before, total = self._counts.get((code, bucket), (0, 0.0))
        self._counts[code, bucket] = (before + number, total + (seconds or 0.0))

    def add_refresh(
        self, grant: TokenGrant, code: str, *, seconds: float | None
    ) -> None:
        """Count the refresh of *grant*, and trace it if a request was sent."""
        self.add(code, seconds=seconds)
        if seconds is not None:
            error = "" if code == SUCCESS else code
            server = grant.registration.server.slug
            with span("smart refresh", seconds=seconds, server=server, error=error):
                pass

    def write(self) -> None:
        """Add them to those of the other processes."""
        # In order, so that no two processes wait for each other.
        for (code, bucket), (number, seconds) in sorted(self._counts.items()):
            _write(
                partial(
                    RefreshCount.objects.add,
                    self._server_id,
                    kind=_Kind.REFRESH,
                    code=code,
                    number=number,
                    bucket=bucket,
                    seconds=seconds,
                )
            )
        self._counts.clear()


def count_refresh(grant: TokenGrant, code: str, *, seconds: float) -> None:
    """Count a refresh that was not part of a turn."""
    outcomes = Outcomes(grant.registration.server_id)
    outcomes.add_refresh(grant, code, seconds=seconds)
    outcomes.write()


def count_lost(grant: TokenGrant, reason: str) -> None:
    """Count a grant that ended because of the EHR's response."""
    add = RefreshCount.objects.add
    server_id = grant.registration.server_id
    _write(partial(add, server_id, kind=_Kind.LOST, code=reason))


def _write(add: Callable[[], None]) -> None:
    def write() -> None:
        try:
            add()
        except DatabaseError as exc:
            logger.info("A refresh was not counted (%s)", type(exc).__name__)

    if is_in_transaction():
        # All processes write these rows: no transaction may keep one locked.
        transaction.on_commit(write, using=router.db_for_write(RefreshCount))
    else:
        write()
