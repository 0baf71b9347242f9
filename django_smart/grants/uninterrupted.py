"""Signals that wait until what an EHR has answered is stored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

__all__ = ["uninterrupted"]

# Time limits of workers, and what ends a process; not all exist on Windows.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGALRM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1")
    if hasattr(signal, name)
]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Let signals wait until the end of the block; one that comes twice does not wait.

    Their handlers run in the main thread, at any line of it, and can raise: a time
    limit between a response and its UPDATE would lose the tokens, which exist nowhere
    else.  In other threads there is nothing to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    handlers: dict[int, Any] = {}

    def wait(number: int, _: FrameType | None) -> None:
        if number in waiting:
            waiting.remove(number)
            signal.signal(number, handlers[number])
            signal.raise_signal(number)
        else:
            waiting.append(number)

    with ExitStack() as stack:
        stack.callback(_deliver, waiting)
        for number in _SIGNALS:
            handler = handlers[number] = signal.getsignal(number)
            # Others are ignored, or are not Python's.
            if callable(handler) or handler is signal.SIG_DFL:
                signal.signal(number, wait)
                stack.callback(signal.signal, number, handler)
        yield


def _deliver(waiting: list[int]) -> None:
    while waiting:
        signal.raise_signal(waiting.pop(0))
