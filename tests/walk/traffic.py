"""What browsers have asked for and not been told yet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["Traffic"]

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


class Traffic:
    """
    Counts requests at all servers of a walk.

    Attributes:
        under_way: how many are not answered.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self._lock = threading.Lock()

    def watch(self, answer: Callable[_Given, _Answer]) -> Callable[_Given, _Answer]:
        """*answer*, counted as long as it takes."""

        def watched(*args: _Given.args, **kwargs: _Given.kwargs) -> _Answer:
            self._add(1)
            try:
                return answer(*args, **kwargs)
            finally:
                self._add(-1)

        return watched

    def watch_asgi(self, application: Any) -> Any:
        """The same for an ASGI *application*."""

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            self._add(1)
            try:
                await application(scope, receive, send)
            finally:
                self._add(-1)

        return watched

    def _add(self, number: int) -> None:
        with self._lock:
            self.under_way += number
