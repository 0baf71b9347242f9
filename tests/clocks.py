"""The clock that measures how long something takes."""

from __future__ import annotations

import time
from collections.abc import Callable


class HostClock:
    """How much later it is than the host says, for what measures how long it takes."""

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self.offset = 0.0

    def __call__(self) -> float:
        """Return what ``time.monotonic`` does then."""
        return self._read() + self.offset

    def stop(self) -> None:
        """Let no time pass but what is shifted."""
        stopped_at = self._read()
        self._read = lambda: stopped_at

    def shift(self, seconds: float) -> None:
        """Let that many seconds pass at once."""
        self.offset += seconds
