"""
Run the whole example on this machine: the site, an EHR to launch it from, a worker.

``make demo`` calls this. Everything is embedded: SQLite, a broker made of files, and
the package's own EHR simulator, so no service has to run. ``PORT`` (8000) and
``EHR_PORT`` (8010) choose other ports; a port that is taken is an error, never silently
another one. Ctrl-C stops everything; when one part ends by itself the others are
stopped too, and the exit status is 1.
"""

from __future__ import annotations

import errno
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

__all__ = ["Demo", "DemoError", "main"]

_ROOT = Path(__file__).resolve().parent.parent
_START_LIMIT = 60  # seconds until every part must answer
_STOP_LIMIT = 30  # seconds a part has to end before it is killed
_POLL = 0.2  # seconds

# Cookies ignore ports, so the two sites have two host names.
_APP_HOST = "127.0.0.1"
_EHR_HOST = "localhost"

_PORT = 8000
_EHR_PORT = 8010

_CLIENT_ID = "django-smart-demo"
_CLIENT_SECRET = "demo-secret-of-no-value"  # noqa: S105 - known to the simulator alone
_DATA_SCOPE = (
    "openid fhirUser offline_access "
    "patient/Patient.rs patient/Observation.rs patient/Condition.rs"
)


class DemoError(Exception):
    """The demo cannot start or cannot go on; the message is for the person."""


class _Stop(Exception):  # noqa: N818 - not an error
    """Somebody asked the demo to end."""


@dataclass(kw_only=True)
class _Part:
    """A running process, whose output is shown line by line under its name."""

    name: str
    process: subprocess.Popen[str]

    def show_output(self) -> None:
        stream = self.process.stdout
        assert stream is not None  # noqa: S101 - Popen was given a pipe
        threading.Thread(target=_copy, args=(self.name, stream), daemon=True).start()


# What the worker says of every tick would scroll the addresses away.
_TICKS = re.compile(
    r"Scheduler: Sending due task|Task django_smart\.\S+ (received$|succeeded in)"
)


def _copy(name: str, stream: IO[str]) -> None:
    with stream:
        for line in stream:
            if _TICKS.search(line.rstrip()):
                continue
            print(f"{name:>6} | {line}", end="", flush=True)


@dataclass(kw_only=True)
class Demo:
    """
    The parts of the demo and their order.

    Args:
        port: of the site, at ``127.0.0.1``.
        ehr_port: of the simulated EHR, at ``localhost``.
    """

    port: int
    ehr_port: int
    _parts: list[_Part] = field(default_factory=list, init=False)

    @property
    def site_url(self) -> str:
        """Origin of the example site."""
        return f"http://{_APP_HOST}:{self.port}"

    @property
    def ehr_url(self) -> str:
        """Origin of the simulated EHR."""
        return f"http://{_EHR_HOST}:{self.ehr_port}"

    def run(self) -> None:
        """
        Start everything, say where it is, and wait until something ends it.

        Raises:
            DemoError: a port is taken, or a part failed to start or ended by itself.
        """
        _require_free_port(_APP_HOST, self.port, "PORT")
        _require_free_port(_EHR_HOST, self.ehr_port, "EHR_PORT")
        try:
            print("Preparing the database …", flush=True)
            self._prepare()
            print("Starting the EHR, the site and a worker …", flush=True)
            self._start()
            self._wait_until_ready()
            self._greet()
            while True:
                self._require_running()
                time.sleep(_POLL)
        finally:
            _stop([part.process for part in self._parts])

    def _prepare(self) -> None:
        """Bring the database up to date and register the site at the EHR."""
        self._manage("migrate", "--verbosity", "0")
        # The database outlives this run, and with another port it is another EHR.
        is_usual = self.ehr_port == _EHR_PORT
        name = "simulated" if is_usual else f"simulated, port {self.ehr_port}"
        self._manage(
            "smart_register",
            *("--base-url", f"{self.ehr_url}/fhir"),
            *("--name", f"Harbour EHR ({name})"),
            *("--slug", f"harbour-{self.ehr_port}"),
            *("--client-id", _CLIENT_ID),
            *("--client-secret", _CLIENT_SECRET),
            *("--token-endpoint-auth-method", "client_secret_basic"),
            *("--ehr-scope", f"launch {_DATA_SCOPE} user/Practitioner.r"),
            *("--standalone-scope", f"launch/patient {_DATA_SCOPE}"),
            *("--site-url", self.site_url),
            *("--set", f'frame_origins=["{self.ehr_url}"]', "--offline"),
        )

    def _start(self) -> None:
        self._add(
            "ehr",
            *("manage.py", "smart_simulator", "--path", "/fhir", "--verbosity", "0"),
            *("--host", _EHR_HOST, "--port", str(self.ehr_port)),
            *("--client-id", _CLIENT_ID, "--client-secret", _CLIENT_SECRET),
            *("--auth-method", "client_secret_basic"),
            *("--redirect-uri", f"{self.site_url}/smart/callback/"),
            *("--launch-url", f"{self.site_url}/smart/launch/"),
        )
        self._add(
            "site", "manage.py", "runserver", "--noreload", f"{_APP_HOST}:{self.port}"
        )
        self._add(
            "worker",
            *("-m", "celery", "--quiet", "-A", "example_project", "worker", "--beat"),
            *("--concurrency", "1", "--loglevel", "INFO"),
        )

    def _manage(self, *arguments: str) -> None:
        """Run a management command to its end."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=_ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DemoError(f"manage.py {arguments[0]} failed:\n{done.stdout.rstrip()}")

    def _add(self, name: str, *arguments: str) -> None:
        """Start a part that goes on running."""
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=_ROOT,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        part = _Part(name=name, process=process)
        self._parts.append(part)
        part.show_output()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_LIMIT
        waiting = [
            (_APP_HOST, self.port, "/"),
            (_EHR_HOST, self.ehr_port, "/fhir/.well-known/smart-configuration"),
        ]
        while waiting:
            self._require_running()
            waiting = [address for address in waiting if not _answers(*address)]
            if waiting and time.monotonic() > deadline:
                where = " and ".join(f"{host}:{port}" for host, port, _ in waiting)
                raise DemoError(f"no answer from {where} after {_START_LIMIT} seconds")
            time.sleep(_POLL)

    def _require_running(self) -> None:
        for part in self._parts:
            status = part.process.poll()
            if status is not None:
                raise DemoError(
                    f"the part {part.name!r} ended by itself (exit status {status})"
                )

    def _greet(self) -> None:
        print(
            f"\n  The EHR, where a launch begins:  {self.ehr_url}/"
            f"\n  The site it opens:               {self.site_url}/"
            "\n"
            "\n  Sign in to the EHR, open a chart and click the app."
            f"\n  For {self.site_url}/admin/, create an account in another terminal:"
            f"\n  DEBUG=1 {os.path.relpath(sys.executable)} manage.py createsuperuser"
            "\n  Ctrl-C stops everything.\n",
            flush=True,
        )


def _environment() -> dict[str, str]:
    """The environment of every part: DEBUG is on unless the caller switched it off."""
    return {"DEBUG": "1"} | os.environ | {"PYTHONUNBUFFERED": "1"}


def _require_free_port(host: str, port: int, variable: str) -> None:
    """Refuse a taken port by name, before anything is started."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:
            continue  # a machine without this address family
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as exc:
                if exc.errno == errno.EADDRNOTAVAIL:
                    continue  # named in /etc/hosts, but switched off
                raise DemoError(
                    f"port {port} of {host} is taken: end what uses it, "
                    f"or choose another, as in: make demo {variable}={port + 1}"
                ) from exc


def _answers(host: str, port: int, path: str) -> bool:
    """Whether an HTTP server gives any answer but a fault of its own."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(processes: Iterable[subprocess.Popen[str]]) -> None:
    """End *processes*, politely first."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _STOP_LIMIT
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port_from_environment(variable: str, default: int) -> int:
    text = os.environ.get(variable, "") or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise DemoError(f"{variable} must be a port number, not {text!r}")
    return int(text)


def _catch_stop_signals() -> None:
    """Turn the first signal into ``_Stop``; a second one must not interrupt that."""
    signals = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise _Stop

    for each in signals:
        signal.signal(each, stop)


def main(arguments: Sequence[str] = ()) -> int:
    """
    Run the demo until Ctrl-C or SIGTERM.

    Returns:
        The exit status: 0 when it was stopped, 1 when it failed.
    """
    if arguments:
        print("usage: python -m example_project.demo", file=sys.stderr)
        return 2
    _catch_stop_signals()
    try:
        Demo(
            port=_port_from_environment("PORT", _PORT),
            ehr_port=_port_from_environment("EHR_PORT", _EHR_PORT),
        ).run()
    except _Stop:
        print("Stopped.", flush=True)
    except DemoError as exc:
        print(f"The demo ends: {exc}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
