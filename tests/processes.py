"""The example site as its users run it: by processes, with settings from outside."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from django_smart.testing import EHRSimulator
from tests.known import CLIENT_ID, CLIENT_SECRET

__all__ = ["ExampleSite", "copy_example", "get_free_port", "stop", "wait_for"]

_ROOT = Path(__file__).resolve().parent.parent
_LIMIT = 240  # seconds until a process has to answer
_GIVEN: set[int] = set()


def get_free_port() -> int:
    """
    A port of the loopback interface that nothing listens on.

    It is none of those that the system hands out, so it is still free when a process
    that was just started comes to listen there.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        if port in _GIVEN:
            continue
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _GIVEN.add(port)
            return port


def copy_example(folder: Path) -> Path:
    """A copy of the example, whose files are not those of somebody's own demo."""
    shutil.copytree(
        _ROOT / "example_project",
        folder / "example_project",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(_ROOT / "manage.py", folder)
    return folder


def stop(process: subprocess.Popen[Any]) -> None:
    """Have *process* end, by itself if it can."""
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(condition: Any, *, seconds: float = _LIMIT, what: str = "") -> None:
    """Poll *condition* until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


class ExampleSite:
    """The example at ``http://127.0.0.1:<port>``, in a folder of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = copy_example(folder)
        self.port = get_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"CACHE_URL", "CELERY_BROKER_URL", "DATABASE_URL"}
        } | {
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "DEBUG": "1",
            **environment,
        }

    def manage(self, *arguments: str, stdin: str = "") -> str:
        """Run a management command to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def register(self, *arguments: str) -> dict[str, str]:
        """``smart_register``, with this site's address."""
        printed = self.manage("smart_register", "--site-url", self.url, *arguments)
        registered: dict[str, str] = json.loads(printed)
        return registered

    def register_at(self, ehr: EHRSimulator, *options: str) -> dict[str, str]:
        """Make the tables, and register the site at *ehr*, on both sides."""
        self.manage("migrate", "--verbosity", "0")
        registered = self.register(
            *("--base-url", ehr.base_url, "--name", "Harbour EHR"),
            *("--client-id", CLIENT_ID, "--client-secret", CLIENT_SECRET),
            *options,
        )
        ehr.register_client(
            CLIENT_ID,
            client_secret=CLIENT_SECRET,
            redirect_uris=[registered["redirect_uri"]],
            launch_url=registered["launch_url"],
            name="A1c Trend",
        )
        return registered

    @contextmanager
    def process(self, name: str, *arguments: str) -> Iterator[Path]:
        """Run ``python …`` until the block ends; yields its log."""
        log = self.folder / f"{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield log
        finally:
            stop(process)

    @contextmanager
    def web(self) -> Iterator[Path]:
        """The site under ``runserver``, answering; yields its log."""
        address = f"127.0.0.1:{self.port}"
        with self.process(
            "web", "manage.py", "runserver", "--noreload", address
        ) as log:
            wait_for(self._answers, what=f"{self.url}, see {log}")
            yield log

    @contextmanager
    def gunicorn(self) -> Iterator[Path]:
        """The site under gunicorn with its access log, answering; yields its log."""
        address = f"127.0.0.1:{self.port}"
        options = ("--access-logfile", "-", "--bind", address, "--threads", "4")
        application = "example_project.wsgi"
        with self.process("gunicorn", "-m", "gunicorn", *options, application) as log:
            wait_for(self._answers, what=f"{self.url}, see {log}")
            yield log

    @contextmanager
    def worker(self, log_level: str = "INFO") -> Iterator[Path]:
        """A Celery worker with beat; yields its log."""
        arguments = ("-m", "celery", "-A", "example_project", "worker", "--beat")
        options = ("--concurrency", "1", "--loglevel", log_level)
        with self.process("worker", *arguments, *options) as log:
            yield log

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/status.json", timeout=5).ok
        except requests.RequestException:
            return False
