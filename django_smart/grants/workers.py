"""Hand tasks to the workers while somebody waits for a page."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from django.db import connections

if TYPE_CHECKING:
    from celery import Task

__all__ = ["hand_to_worker"]

# Seconds.  Not every client library has a limit of its own: to a Redis that does not
# respond, the operating system connects for two minutes, and a read never ends.
_MAX_WAIT = 2.0
# One thread a minute, while they do not come back.
_PAUSE = 60.0

# The last thread that was not waited for any longer, and when that was.
_late: tuple[Thread, float] | None = None


def hand_to_worker(task: Task[..., Any], *args: Any) -> None:
    """
    Send *task* to the broker once, and wait for two seconds at most.

    The message may still arrive after that.

    Args:
        args: of the task.

    Raises:
        TimeoutError: the broker takes no messages; while an earlier one waits for it,
            nothing is sent for a minute.
        Exception: of Celery or the broker's client library.
    """
    global _late
    # Looked up here: Celery's current app is that of a thread.
    send = partial(task.apply_async, args, retry=False)
    if task.app.conf.task_always_eager:
        send()
        return
    if _late is not None:
        thread, since = _late
        if thread.is_alive() and time.monotonic() - since < _PAUSE:
            raise TimeoutError("the broker has not taken an earlier message")
    sent: Future[None] = Future()
    # A daemon, which does not keep the process from ending.
    run = partial(copy_context().run, _send, send, sent)
    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        sent.result(_MAX_WAIT)
    except TimeoutError:
        _late = thread, time.monotonic()
        raise


def _send(send: Callable[[], object], sent: Future[None]) -> None:
    try:
        send()
    except BaseException as exc:  # noqa: BLE001 (raised again by who waits)
        sent.set_exception(exc)
    else:
        sent.set_result(None)
    finally:
        # A receiver of Celery's signals may have opened one.
        connections.close_all()
