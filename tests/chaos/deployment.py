"""The processes of a site: web, workers and two beats; and how they are killed."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.chaos.ehr import Ledger
from tests.processes import get_free_port, wait_for

__all__ = ["KINDS", "Deployment", "Kill"]

#: What is killed: the process that refreshes, that with its parent, or one that serves.
KINDS = ("process of a worker", "worker", "web process")

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(slots=True)
class Kill:
    """One SIGKILL, for a process or for a whole group of them."""

    what: str
    at: float
    #: The processes.
    pids: list[int]
    #: Whether a refresh was under way on one of them.
    is_in_flight: bool


@dataclass(slots=True)
class _Process:
    name: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def get_children(self) -> list[int]:
        """The processes that do the work, less those that are ending."""
        assert self.process is not None
        return _get_children(self.process.pid)


@dataclass(slots=True)
class Deployment:
    """
    Two workers, two beats by mistake, and a web server with two processes.

    Args:
        folder: where logs go.
        environment: of all processes.
        ledger: of its EHR.
    """

    folder: Path
    environment: dict[str, str]
    ledger: Ledger
    web_port: int = field(default_factory=get_free_port)
    kills: list[Kill] = field(default_factory=list)
    restarts: int = 0
    _processes: dict[str, _Process] = field(default_factory=dict)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start everything; end it, gently, with the block."""
        celery = ["-m", "celery", "-A", "tests.chaos.celery"]
        try:
            for name in ("worker1", "worker2"):
                options = ["--concurrency", "1", "-n", f"{name}@%h", "-l", "INFO"]
                options += ["--without-gossip", "--without-mingle"]
                self._add(name, [*celery, "worker", *options])
            for name in ("beat1", "beat2"):
                schedule = str(self.folder / f"{name}.schedule")
                pidfile = ["--pidfile", ""]
                self._add(name, [*celery, "beat", "-s", schedule, *pidfile])
            options = ["--workers", "2", "--threads", "4", "--timeout", "120"]
            address = f"127.0.0.1:{self.web_port}"
            web = ["-m", "gunicorn", *options, "--bind", address]
            self._add("web", [*web, "tests.chaos.wsgi"])
            wait_for(self._is_up, what=f"web and workers, see {self.folder}")
            yield
        finally:
            self.stop()

    def supervise(self) -> None:
        """Start again what has ended, as a supervisor does."""
        for each in self._processes.values():
            if each.process is None or each.process.poll() is not None:
                self.restarts += each.starts > 0
                self._start(each)

    def kill(self, what: str, *, in_flight: bool, chance: random.Random) -> None:
        """
        Kill one of ``KINDS``.

        Args:
            what: which of them.
            in_flight: wait until it is in the midst of a refresh.
        """
        deadline = time.monotonic() + (60 if in_flight else 0)
        while True:
            parent, pids = self._choose(what, chance)
            is_late = time.monotonic() > deadline
            if pids and (is_late or self.ledger.is_in_flight(pids)):
                # Nothing changes any more between the look and the end.
                for pid in pids:
                    _signal(pid, signal.SIGSTOP)
                is_in_flight = self.ledger.is_in_flight(pids)
                if is_in_flight or is_late:
                    break
                for pid in pids:
                    _signal(pid, signal.SIGCONT)
            assert time.monotonic() < deadline + 60, f"there is no {what}"
            self.supervise()
            time.sleep(0.005)
        if parent is not None:
            _signal(parent, signal.SIGKILL)
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        self.kills.append(Kill(what, time.monotonic(), pids, is_in_flight))

    def read(self, grant_id: int) -> str:
        """Open the page of a grant; returns ``ok`` or what went wrong."""
        url = f"http://127.0.0.1:{self.web_port}/read/{grant_id}/"
        try:
            response = requests.get(url, timeout=60)
        except requests.RequestException as exc:
            return type(exc).__name__
        if response.status_code == 502:
            return str(response.json()["error"])
        return "ok" if response.ok else str(response.status_code)

    def get_worker_processes(self) -> list[int]:
        """The processes that refresh, and their parents."""
        found = []
        for name in ("worker1", "worker2"):
            process = self._processes[name].process
            if process is not None:
                found += [process.pid, *_get_children(process.pid)]
        return found

    def find_timeouts(self) -> set[int]:
        """The grants for which a process has given up waiting, by its log."""
        line = re.compile(r"Grant (\d+) has no new access token: server_timeout")
        logs = [each.log.read_text() for each in self._processes.values()]
        return {int(number) for log in logs for number in line.findall(log)}

    def _add(self, name: str, arguments: list[str]) -> None:
        each = _Process(name, arguments, self.folder / f"{name}.log")
        self._processes[name] = each
        self._start(each)

    def _start(self, each: _Process) -> None:
        each.starts += 1
        with each.log.open("ab") as log:
            each.process = subprocess.Popen(
                [sys.executable, *each.arguments],
                cwd=_ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """End everything, gently."""
        running = [one.process for one in self._processes.values() if one.process]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                for pid in [*_get_children(process.pid), process.pid]:
                    _signal(pid, signal.SIGKILL)
                process.wait()

    def _is_up(self) -> bool:
        logs = [self._processes[name].log for name in ("worker1", "worker2")]
        if not all(" ready." in log.read_text() for log in logs):
            return False
        try:
            return requests.get(
                f"http://127.0.0.1:{self.web_port}/smart/jwks.json", timeout=5
            ).ok
        except requests.RequestException:
            return False

    def _choose(self, what: str, chance: random.Random) -> tuple[int | None, list[int]]:
        """The parent, if it is killed as well, and the processes that do the work."""
        name = "web" if what == "web process" else chance.choice(["worker1", "worker2"])
        process = self._processes[name].process
        if process is None or process.poll() is not None:
            return None, []
        children = self._processes[name].get_children()
        if what == "web process":
            children = chance.sample(children, min(1, len(children)))
        return process.pid if what == "worker" else None, children


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _get_children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(each) for each in text.split()]
