"""``make demo``: one command, two origins and a worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests

from example_project.demo import main
from tests.processes import copy_example, get_free_port

_LIMIT = 240  # seconds


@pytest.fixture
def free_port() -> int:
    return get_free_port()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def _signals() -> Iterator[None]:
    """``main`` is made for a process of its own: put back what it sets."""
    numbers = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("variable", ["PORT", "EHR_PORT"])
def test_taken_port_is_an_error_that_names_the_way_out(
    variable, taken_port, free_port, monkeypatch, capsys
):
    monkeypatch.setenv("PORT", str(free_port))
    monkeypatch.setenv("EHR_PORT", str(free_port))
    monkeypatch.setenv(variable, str(taken_port))
    assert main() == 1
    message = capsys.readouterr().err
    assert f"port {taken_port} of" in message
    assert f"make demo {variable}=" in message


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("value", ["http", "0", "65536", "-1"])
def test_port_that_is_none_is_refused(value, monkeypatch, capsys):
    monkeypatch.setenv("PORT", value)
    assert main() == 1
    assert f"PORT must be a port number, not {value!r}" in capsys.readouterr().err


@pytest.fixture
def project(tmp_path) -> Path:
    folder: Path = tmp_path
    return copy_example(folder)


@contextmanager
def running_demo(project: Path) -> Iterator[subprocess.Popen[str]]:
    """
    A demo on free ports and in a process group of its own.

    Its output is in ``demo.log``.
    """
    free_port, ehr_port = get_free_port(), get_free_port()
    environment = os.environ | {"PORT": str(free_port), "EHR_PORT": str(ehr_port)}
    for name in ("CACHE_URL", "CELERY_BROKER_URL", "DATABASE_URL", "SECRET_KEY"):
        environment.pop(name, None)
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    with (project / "demo.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "example_project.demo"],
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def demo(project) -> Iterator[subprocess.Popen[str]]:
    with running_demo(project) as process:
        yield process


def _log(project: Path) -> str:
    return (project / "demo.log").read_text()


def _wait_for(project: Path, process: subprocess.Popen[str], *words: str) -> None:
    """Wait until the demo has printed *words*, and no longer than it lives."""
    deadline = time.monotonic() + _LIMIT
    while not all(word in _log(project) for word in words):
        assert process.poll() is None, _log(project)
        assert time.monotonic() < deadline, _log(project)
        time.sleep(0.1)


def _group_is_gone(process: subprocess.Popen[str]) -> bool:
    """Whether nothing the demo started still runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _origins(project: Path) -> list[str]:
    """The two addresses that the demo printed: the EHR's, the site's."""
    return [
        line.split()[-1] for line in _log(project).splitlines() if line[:6] == "  The "
    ]


@pytest.mark.process
def test_demo_serves_both_origins_and_a_worker_until_it_is_stopped(demo, project):
    _wait_for(
        project, demo, "Ctrl-C stops everything", "celery@", " ready.", "beat: Starting"
    )
    ehr, site = _origins(project)
    assert requests.get(site, timeout=60).status_code == 200
    assert requests.get(ehr, timeout=60).status_code == 200
    assert requests.get(f"{site}status.json", timeout=60).json()["launched"] is False
    # The first tick is sent as soon as beat runs, and is not worth a line.
    assert "refresh_due_grants[" not in _log(project)
    assert "Scheduler: Sending" not in _log(project)
    # The demo has registered itself: no advice to do so.
    assert "smart_register" not in _log(project)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(_LIMIT) == 0
    assert _group_is_gone(demo)
    assert "Stopped." in _log(project)


@pytest.mark.process
def test_demo_starts_again_on_other_ports(project):
    for _ in range(2):
        with running_demo(project) as demo:
            _wait_for(project, demo, "Ctrl-C stops everything")
            ehr, site = _origins(project)
            port = ehr.rstrip("/").rpartition(":")[2]
            answer = requests.get(
                f"{site}smart/login/",
                params={"server": f"harbour-{port}"},
                headers={"Sec-Fetch-Site": "same-origin"},
                allow_redirects=False,
                timeout=60,
            )
            assert answer.headers["Location"].startswith(ehr)
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(_LIMIT) == 0


@pytest.mark.process
def test_demo_ends_when_one_of_its_parts_does(demo, project):
    _wait_for(project, demo, "Ctrl-C stops everything", " ready.")
    listing = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(demo.pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ehr = next(line for line in listing.splitlines() if "smart_simulator" in line)
    os.kill(int(ehr.split()[0]), signal.SIGKILL)
    assert demo.wait(_LIMIT) == 1
    assert _group_is_gone(demo)
    assert "the part 'ehr' ended by itself" in _log(project)
