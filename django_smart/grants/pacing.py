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
from http import HTTPStatus

from ..exceptions import (
    DiscoveryError,
    MalformedTokenResponseError,
    SMARTError,
    TokenServerError,
    TransportError,
)
from ..models import TokenGrant

__all__ = [
    "FEW_FAILURES",
    "Breaker",
    "Pace",
    "find_outage_codes",
    "is_outage",
    "is_to_blame",
]

FEW_FAILURES = 2
"""A grant that has failed more often is likely to fail again."""

# Consecutive failures after which a turn sends nothing more.
_ENOUGH = 5
# Seconds: the longest pause after failures, and the longest accepted Retry-After.
_LONGEST_PAUSE = 30.0
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


def is_outage(error: SMARTError) -> bool:
    """Return whether *error* concerns the server rather than the grant."""
    return isinstance(error, _OUTAGES)


def find_outage_codes() -> list[str]:
    """Return the codes of all errors that concern the server."""
    return sorted({code for error in _OUTAGES for code in _find_codes(error)})


def is_to_blame(grant: TokenGrant, error: SMARTError) -> bool:
    """
    Return whether another failure of *grant* says little about its server.

    A server that does not respond in time may be down whatever the grant.
    """
    is_answer = not isinstance(error, TransportError)
    return is_answer and grant.refresh_failures > FEW_FAILURES


class Breaker:
    """
    Counts the failures of a turn, and says when the server needs a pause.

    Attributes:
        is_probe: the server has paused, and one request tests whether it works again.
        is_open: a pause was learned, and nothing more may be sent.
        error_code: of the last failure, or "".
    """

    def __init__(self, *, is_probe: bool = False) -> None:
        self.is_probe = is_probe
        self.is_open = False
        self.error_code = ""
        self._streak = 0
        self._is_there = False

    def note_response(self) -> bool:
        """Note a response, also a refusal; return whether it ends an outage."""
        is_end = self.is_probe and not self.is_open
        self.is_probe = self.is_probe and self.is_open
        self._streak = 0
        self._is_there = True
        return is_end

    def note_outage(self, error: SMARTError, *, of_grant: bool = False) -> float | None:
        """
        Count a failure; return for how many seconds to leave the server alone, if so.

        Args:
            of_grant: the grant is likely to blame (:func:`is_to_blame`), which does not
                count unless the server is known to be down.
        """
        rest = _get_rest(error)
        if of_grant and rest is None and not self.is_probe:
            return None
        self._streak += 1
        self.error_code = error.code
        # A later response may ask for a longer pause.
        if self.is_open and not rest:
            return None
        if rest is None and not self.is_probe and self._streak < _ENOUGH:
            return None
        return self._open(rest or 0.0)

    def note_end(self) -> float | None:
        """Return the seconds of a pause, if the turn has met nothing but failures."""
        if self.is_open or self._is_there or not self._streak:
            return None
        return self._open(0.0)

    def _open(self, rest: float) -> float:
        self.is_open = True
        jitter = random.uniform(0.1, 1)  # noqa: S311 (spreads load, no secret)
        return max(jitter * _LONGEST_PAUSE, rest)


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
    return 0.0 if error.status_code == HTTPStatus.TOO_MANY_REQUESTS else None


def _find_codes(error: type[SMARTError]) -> list[str]:
    return [
        error.code,
        *error.codes,
        *(c for sub in error.__subclasses__() for c in _find_codes(sub)),
    ]
