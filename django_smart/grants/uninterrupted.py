"""Signals that wait until what an EHR has answered is stored."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

__all__ = ["is_asked_to_stop", "uninterrupted"]

# Time limits of tasks and requests, and what ends a process; Windows has few of them.
_SIGNALS = [
    getattr(signal, name)
    for name in (
        *("SIGUSR1", "SIGALRM", "SIGABRT"),
        *("SIGTERM", "SIGQUIT", "SIGHUP", "SIGINT"),
    )
    if hasattr(signal, name)
]

_Handler = Callable[[int, FrameType | None], object]

# While a block runs, in the main thread: the signals that wait for its end.
_waiting: list[int] | None = None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Let signals wait until the end of the block; one that comes twice does not wait.

    Python calls their handlers in the main thread, at any line of it, and they can
    raise: a time limit between a response and its UPDATE would lose the tokens, which
    exist nowhere else.  In other threads, and in a block within a block, there is
    nothing to do.
    """
    global _waiting
    if (
        _waiting is not None
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    waiting: list[int] = []
    handlers: dict[int, _Handler] = {}

    def wait(number: int, frame: FrameType | None) -> None:
        if number in waiting:
            waiting.remove(number)
            handlers[number](number, frame)
        else:
            waiting.append(number)

    with ExitStack() as stack:
        stack.callback(_deliver, waiting)
        stack.callback(_forget)
        _waiting = waiting
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # Only Python's own: what C code installed could not be put back.
            if callable(handler) and handler is not signal.default_int_handler:
                handlers[number] = handler
                # The first is put back last: it may be the next to raise.
                stack.callback(signal.signal, number, handler)
                signal.signal(number, wait)
        yield


def is_asked_to_stop() -> bool:
    """Return whether a signal waits, so that nothing more should begin."""
    return bool(_waiting)


def _forget() -> None:
    global _waiting
    _waiting = None


def _deliver(waiting: list[int]) -> None:
    if waiting:
        try:
            signal.raise_signal(waiting.pop(0))
        finally:
            _deliver(waiting)
