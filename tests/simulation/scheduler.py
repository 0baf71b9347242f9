"""
Simulated time: threads that pass a baton, so that one runs and each run is the same.

A thread gives the baton away where it waits: for a while, for the database, for a
server, for another thread.  There its process can be killed or stopped as well.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from queue import Empty
from typing import Any
from unittest import mock

from django.utils import timezone

from django_smart.grants import turn

__all__ = ["EPOCH", "Killed", "Process", "Queue", "Scheduler"]

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# Of the host's monotonic clock, which begins anywhere.
_BOOT = 1000.0


class Killed(BaseException):
    """The process of this thread is gone: nothing it does reaches anybody."""


class Process:
    """
    What can be killed or stopped.

    Args:
        ahead: seconds that the clock of its host is ahead.
    """

    def __init__(self, name: str, *, ahead: float = 0.0) -> None:
        self.name = name
        self.ahead = ahead
        self.is_dead = False
        self.stopped_until = 0.0
        self.resumed_at = -1e9
        self.fate: Callable[[], None] | None = None
        """Called at the call of a seam that :attr:`calls_left` counts down to."""
        self.calls_left = 0
        self.threads: dict[_Thread, None] = {}


class _Thread:
    """A real thread, which runs one function after another."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.baton = threading.Lock()
        self.baton.acquire()
        self.ticket = 0
        """Of the wait that may end; older ones are outdated."""
        self.process = Process("nobody")
        self.function: Callable[[], None] | None = None
        self.thread = threading.Thread(target=scheduler.serve, args=[self], daemon=True)
        self.thread.start()


class Scheduler:
    """The time, and whose turn it is."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self._waiting: list[tuple[float, int, _Thread, int]] = []
        self._number = 0
        self._idle: list[_Thread] = []
        self._threads: list[_Thread] = []
        self._current: _Thread | None = None
        self._is_over = threading.Event()
        self.is_ending = False
        self.failure: BaseException | None = None
        self.world = Process("world")

    # Of a run

    def run(self, function: Callable[[], None]) -> None:
        """Run *function*, and what it spawns, until *function* ends."""

        def run() -> None:
            try:
                function()
            finally:
                self._end_all()

        self.spawn(self.world, run)
        with self._patched():
            self._pass_on()
            self._is_over.wait()
        for thread in self._threads:
            thread.function = None
            thread.baton.release()
        for thread in self._threads:
            thread.thread.join()
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def _patched(self) -> Iterator[None]:
        # Not all of the module: libraries draw from it when they are first used.
        jitter = random.Random(self.random.random())
        with ExitStack() as stack:
            for where, name, value in (
                (random, "uniform", jitter.uniform),
                (time, "monotonic", self._get_monotonic),
                (time, "sleep", self._sleep),
                (timezone, "now", self._get_host_time),
                (turn, "SimpleQueue", lambda: Queue(self)),
                (turn, "ThreadPoolExecutor", lambda *_: _Executor(self)),
            ):
                stack.enter_context(mock.patch.object(where, name, value))
            yield

    def _sleep(self, seconds: float, _sleep: Any = time.sleep) -> None:
        if threading.get_ident() == self.current.thread.ident:
            self.wait(seconds)
        else:  # of the test runner
            _sleep(seconds)

    def _get_monotonic(self) -> float:
        return self.now + _BOOT + self.process.ahead

    def _get_host_time(self) -> datetime:
        return self.get_time() + timedelta(seconds=self.process.ahead)

    def get_time(self) -> datetime:
        """The true time, which the database has."""
        return EPOCH + timedelta(seconds=self.now)

    # Of a thread

    @property
    def process(self) -> Process:
        """Who runs."""
        return self.world if self._current is None else self._current.process

    def spawn(
        self, process: Process, function: Callable[[], None], *, after: float = 0.0
    ) -> None:
        """Run *function* beside the others, in *process*."""
        if self.is_ending:
            return
        if not self._idle:
            self._idle.append(_Thread(self))
            self._threads.append(self._idle[-1])
        thread = self._idle.pop()
        thread.process, thread.function = process, function
        process.threads[thread] = None
        self._push(thread, after)

    def serve(self, thread: _Thread) -> None:
        """Run what *thread* is given, until there is nothing."""
        while True:
            thread.baton.acquire()
            function = thread.function
            if function is None:
                return
            process = thread.process
            try:
                if not process.is_dead:
                    function()
            except Killed:
                pass
            except BaseException as exc:  # noqa: BLE001 (raised again by run)
                self.failure = self.failure or exc
                self._end_all()
            del process.threads[thread]
            thread.ticket += 1
            self._idle.append(thread)
            self._pass_on()

    def _end_all(self) -> None:
        self.is_ending = True
        for each in self._threads:
            self.kill(each.process)

    def wait(self, seconds: float) -> None:
        """Let time pass: a call of a seam."""
        assert self._current is not None
        thread = self._current
        self._strike(thread.process)
        self._push(thread, seconds)
        self._give_away(thread)

    def block(self, seconds: float | None) -> None:
        """Wait until somebody calls :meth:`wake`, or for *seconds*."""
        assert self._current is not None
        if seconds is not None:
            self._push(self._current, seconds)
        self._give_away(self._current)

    @property
    def current(self) -> _Thread:
        """The thread that runs, for :meth:`wake`."""
        assert self._current is not None
        return self._current

    def fail(self, error: Exception) -> None:
        """End the run with *error*."""
        self.failure = self.failure or error
        self._end_all()

    def wake(self, thread: _Thread) -> None:
        """Let *thread* go on."""
        self._push(thread, 0.0)

    def kill(self, process: Process) -> None:
        """End *process*: each of its threads finds out where it waits."""
        process.is_dead = True
        process.stopped_until = 0.0
        for thread in process.threads:
            if thread is not self._current:
                self.wake(thread)

    def check_alive(self) -> None:
        """Raise :class:`Killed` in a process that is gone."""
        if self.process.is_dead:
            raise Killed

    def _strike(self, process: Process) -> None:
        if process.is_dead:
            raise Killed
        if process.fate is not None:
            process.calls_left -= 1
            if process.calls_left <= 0:
                fate, process.fate = process.fate, None
                fate()
                if process.is_dead:
                    raise Killed

    def _push(self, thread: _Thread, seconds: float) -> None:
        self._number += 1
        entry = (self.now + seconds, self._number, thread, thread.ticket)
        heappush(self._waiting, entry)

    def _give_away(self, thread: _Thread) -> None:
        if self._pass_on() is not thread:
            thread.baton.acquire()
        if thread.process.is_dead:
            raise Killed

    def _pass_on(self) -> _Thread | None:
        """Give the baton to whoever waits for the earliest time."""
        before = self._current
        while self._waiting:
            at, number, thread, ticket = heappop(self._waiting)
            if ticket != thread.ticket:
                continue
            if thread.process.stopped_until > at:
                later = thread.process.stopped_until
                heappush(self._waiting, (later, number, thread, ticket))
                continue
            self.now = max(self.now, at)
            thread.ticket += 1
            self._current = thread
            if thread is not before:
                thread.baton.release()
            return thread
        self._current = None
        self._is_over.set()
        return None


class Queue:
    """In the place of ``queue.SimpleQueue``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[Any] = deque()
        self._waiting: deque[_Thread] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> None:
        """Add *item*, and wake one who waits."""
        self._items.append(item)
        if self._waiting:
            self._scheduler.wake(self._waiting.popleft())

    def get(self, timeout: float | None = None) -> Any:
        """The oldest item; raises ``Empty`` if none comes in time."""
        scheduler = self._scheduler
        scheduler.check_alive()
        ends_at = scheduler.now + (float("inf") if timeout is None else timeout)
        while not self._items:
            if scheduler.now >= ends_at:
                raise Empty
            thread = scheduler.current
            self._waiting.append(thread)
            try:
                scheduler.block(None if timeout is None else ends_at - scheduler.now)
            finally:
                if thread in self._waiting:
                    self._waiting.remove(thread)
        return self._items.popleft()


class _Executor:
    """In the place of ``ThreadPoolExecutor``: a thread for each call."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._running = 0

    def __enter__(self) -> _Executor:
        return self

    def __exit__(self, *_: object) -> None:
        while self._running and not self._scheduler.process.is_dead:
            self._scheduler.wait(0.001)

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        """Call *function* in a moment."""
        scheduler = self._scheduler
        self._running += 1

        def run() -> None:
            try:
                scheduler.wait(0.0)
                function(*args)
            finally:
                self._running -= 1

        scheduler.spawn(scheduler.process, run, after=scheduler.random.random() / 1000)
