"""
How fast one process asks a server for tokens, and when it leaves the server alone.

Both are plain objects of the process whose turn it is: nobody else asks meanwhile, so
there is nothing to agree on.  A pause is written to the server's state when it is
learned, as the processes that come later need it.
"""

from __future__ import annotations

import random
import sys
import time

from ..exceptions import (
    DiscoveryError,
    MalformedTokenResponseError,
    SMARTError,
    TokenServerError,
    TransportError,
)
from ..models import TokenGrant
from ..models.server_state import DOWN_AFTER

__all__ = [
    "FEW_FAILURES",
    "Breaker",
    "Pace",
    "find_outage_codes",
    "get_rank",
    "is_outage",
    "is_to_blame",
]

FEW_FAILURES = 2
"""A grant that has failed more often is likely to fail again."""

# Seconds.
_FIRST_PAUSE = 2.0
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
# The longest accepted Retry-After.
_LONGEST_RETRY_AFTER = 3600.0
# Requests are spaced evenly, at nine tenths of the limit, and one that comes late makes
# up for at most this many seconds: so no second exceeds the limit.
_SHARE = 0.9
_LATEST = 0.05

_OUTAGES = (
    DiscoveryError,
    MalformedTokenResponseError,
    TokenServerError,
    TransportError,
)
_TOO_MANY = 429


def is_outage(error: SMARTError) -> bool:
    """Return whether *error* concerns the server rather than the grant."""
    return isinstance(error, _OUTAGES)


def find_outage_codes() -> list[str]:
    """Return the codes of all errors that concern the server."""
    return sorted({code for error in _OUTAGES for code in _find_codes(error)})


def get_rank(grant_failures: int, *, is_probe: bool) -> int:
    """
    Return which grants of a server go first: those with the lowest rank.

    A grant that its server never renews has the token that expired first, and would
    always go first. What tests a server that was down is the grant that failed least.
    """
    return grant_failures if is_probe else max(grant_failures - FEW_FAILURES, 0)


def is_to_blame(grant: TokenGrant, error: SMARTError) -> bool:
    """
    Return whether another failure of *grant* says little about its server.

    A server that does not respond in time may be down whatever the grant.
    """
    is_answer = not isinstance(error, TransportError)
    return is_answer and grant.refresh_failures > FEW_FAILURES


class Breaker:
    """
    Counts the failures of a server, and says when it needs a pause.

    Attributes:
        is_open: a pause was learned, and nothing more may be sent.
        error_code: of the last failure, or "".
    """

    def __init__(self, *, failures: int = 0, was_there: bool = False) -> None:
        """
        Go on where the last turn ended.

        Args:
            failures: consecutive ones until now.
            was_there: whether the server has issued tokens lately.
        """
        self.is_open = False
        self.error_code = ""
        self._before, self._streak = failures, 0
        self._was_there = was_there and not self.is_probe
        self._is_there = False

    @property
    def is_probe(self) -> bool:
        """Whether the server was down, and one request tests whether it still is."""
        return self._before >= DOWN_AFTER

    @property
    def failures(self) -> int:
        """The consecutive failures that the next turn begins with."""
        failures = self._before + self._streak
        return max(failures, DOWN_AFTER) if self.is_open else failures

    def note_response(self) -> bool:
        """Count a response, also a refusal; return whether it ends an outage."""
        is_end = self.is_probe and not self.is_open
        if not self.is_open:
            self._before = 0
        self._streak = 0
        self._is_there = True
        return is_end

    def note_outage(self, error: SMARTError, *, of_grant: bool = False) -> float | None:
        """
        Count a failure; return for how many seconds to leave the server alone, if so.

        Args:
            of_grant: the grant is likely to blame (:func:`is_to_blame`). The error
                does not count if the server has just responded to others.
        """
        rest = _get_rest(error)
        if of_grant and rest is None and (self._is_there or self._was_there):
            return None
        self._streak += 1
        self.error_code = error.code
        # A later response may ask for a longer pause.
        if self.is_open and not rest:
            return None
        if rest is None and self.failures < DOWN_AFTER:
            return None
        self.is_open = True
        doubled = _FIRST_PAUSE * 2 ** min(self.failures - DOWN_AFTER, 10)
        jitter = random.uniform(0, min(_LONGEST_PAUSE, doubled))  # noqa: S311 (no secret)
        return max(jitter, _SHORTEST_PAUSE, rest or 0.0)


class Pace:
    """
    Spaces the requests of a turn.

    A turn ends when the next request may be sent, so the next turn begins with one.
    """

    def __init__(self, rate: float | None) -> None:
        """Take the most requests per second, or ``None`` for no limit."""
        self._spacing = 1 / (_SHARE * rate) if rate else 0.0
        self._next = time.monotonic()

    def get_wait(self) -> float:
        """Return the seconds until the next request may be sent."""
        return max(self._next - time.monotonic(), 0.0) if self._spacing else 0.0

    def note_sent(self) -> None:
        """Count a request."""
        self._next = max(self._next, time.monotonic() - _LATEST) + self._spacing

    def count_within(self, seconds: float) -> int:
        """Return how many requests may be sent in so many seconds."""
        return max(int(seconds / self._spacing), 1) if self._spacing else sys.maxsize


def _get_rest(error: SMARTError) -> float | None:
    """Return the seconds for which the server asks to be left alone, if any."""
    if not isinstance(error, TokenServerError):
        return None
    if error.retry_after is not None:
        return min(error.retry_after, _LONGEST_RETRY_AFTER)
    return 0.0 if error.status_code == _TOO_MANY else None


def _find_codes(error: type[SMARTError]) -> list[str]:
    return [
        error.code,
        *error.codes,
        *(c for sub in error.__subclasses__() for c in _find_codes(sub)),
    ]
