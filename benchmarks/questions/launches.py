"""Many launches at once: gunicorn and PostgreSQL."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from benchmarks.harness import SEED, Report, count
from benchmarks.load import apply_load
from benchmarks.setting_up import configured, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
Sixteen people at a time sign in again and again, at gunicorn with two workers of eight threads and PostgreSQL.
The site, the people and the server they sign in by share the machine.
Authlib's client for Django signs in without keeping launch, identity and tokens.
"""

_PEOPLE = 16
_OURS = "django_smart"
_PEER = "Authlib"
_SITES = {
    _OURS: ("ours", "/smart/login/?server=stub", "/smart/callback/"),
    _PEER: ("plain", "/authlib/login/", "/authlib/callback/"),
}


def run(report: Report) -> None:
    """Measure."""
    import random

    launches = report.size(160, smoke=16)
    rounds = report.rounds(24)
    times: dict[str, list[float | None]] = {name: [] for name in _SITES}
    each: dict[str, list[float]] = {name: [] for name in _SITES}
    chance = random.Random(SEED)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stub() as stub,
        configured("postgresql", stub=stub, PEERS="authlib"),
    ):
        make_registration(stub)
        with _running(folder, "ours") as ours, _running(folder, "plain") as plain:
            ports = {_OURS: ours, _PEER: plain}
            for name, (_, begin, callback) in _SITES.items():
                # Alone, as the user is made by it.
                apply_load(ports[name], begin, callback, people=1, launches=1)
            for number in range(rounds + 1):
                order = list(_SITES)
                chance.shuffle(order)
                for name in order:
                    _, begin, callback = _SITES[name]
                    answer = apply_load(
                        ports[name],
                        begin,
                        callback,
                        people=_PEOPLE,
                        launches=launches,
                    )
                    if number:  # the first one is to get warm
                        taken = answer["taken"] / launches
                        times[name].append(float(f"{taken:.5g}"))
                        each[name] += answer["each"]
    assert count(times[_OURS]) == rounds
    report.add_table(
        "launches",
        "Launches, sixteen at a time",
        times,
        base=_PEER,
        operations=launches,
        unit="launch",
    )
    report.check_ratio(
        "of-authlib",
        "launches a second, over those of Authlib",
        name=_OURS,
        base=_PEER,
        at_least=0.9,
        inverse=True,
    )
    ordered = sorted(each[_OURS])
    last = ordered[int(len(ordered) * 0.99)]
    report.check(
        "p99",
        "99th percentile of one launch, of the median",
        last / statistics.median(ordered),
        at_most=5,
    )


@contextmanager
def _running(folder: str, site: str) -> Iterator[int]:
    """Serve the site until the block ends; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-m", "gunicorn"]
    command += ["benchmarks.site.wsgi", "--bind", f"127.0.0.1:{port}"]
    command += ["--workers", "2", "--threads", "8", "--preload", "--keep-alive", "5"]
    with Path(f"{folder}/{site}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | {"BENCH_SITE": site},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait(20)


def _wait_for(port: int) -> None:
    deadline = monotonic() + 30
    while monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            sleep(0.05)
        else:
            return
    raise TimeoutError("gunicorn does not answer")
