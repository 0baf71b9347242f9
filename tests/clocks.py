"""The clock that measures how long something takes."""

from __future__ import annotations


class HostClock:
    """How much later it is than the host says, for what measures how long it takes."""

    def __init__(self) -> None:
        self.offset = 0.0

    def shift(self, seconds: float) -> None:
        """Let that many seconds pass at once."""
        self.offset += seconds
