"""Hand tasks to the workers while somebody waits for a page."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
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

# Threads that were not waited for any longer.
_late: list[Thread] = []


def hand_to_worker(task: Task[..., Any], *args: Any, **options: Any) -> None:
    """
    Send *task* to the broker once, and wait for two seconds at most.

    The message may still arrive after that.

    Args:
        args: of the task.
        options: of ``apply_async()``.

    Raises:
        TimeoutError: the broker takes no messages; nothing is sent while an earlier
            message waits for it.
        Exception: of Celery or the broker's client library.
    """
    # Looked up here: Celery's current app is that of a thread.
    send = partial(task.apply_async, args, retry=False, **options)
    if task.app.conf.task_always_eager:
        send()
        return
    if any(thread.is_alive() for thread in _late):
        raise TimeoutError("the broker has not taken an earlier message")
    _late.clear()
    sent: Future[None] = Future()
    # A daemon, which does not keep the process from ending.
    thread = Thread(target=_send, args=(send, sent), daemon=True)
    thread.start()
    try:
        sent.result(_MAX_WAIT)
    except TimeoutError:
        _late.append(thread)
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
