"""Many launches at once: gunicorn and PostgreSQL."""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import quote

from benchmarks.harness import SEED, Report, count
from benchmarks.load import apply_load
from benchmarks.setting_up import configured, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
Sixteen users sign in again and again, each as themselves, at gunicorn with two workers of eight threads and PostgreSQL; or they stop after the launch request, which redirects to the EHR.
The site, the users and the server where they sign in share the machine.
Authlib's client for Django signs in without storing launch, identity and tokens.
*Authlib and a launch* stores them, written plainly with Authlib and Django's ORM: the hospital is looked up, the state is bound to the browser, the launch is a row that is used once, and the tokens are encrypted.
"""

_PEOPLE = 16
_OURS = "django_smart"
_PEER = "Authlib"
_SAME_WORK = "Authlib and a launch"
_GUNICORN = (
    *("gunicorn", "benchmarks.site.wsgi", "--bind", "127.0.0.1:{port}"),
    *("--workers", "2", "--threads", "8", "--preload", "--keep-alive", "5"),
    *("--pid", "{folder}/{site}.pid"),
)
# By way: the site, where a sign-in and a launch begin, and the callback.
_SITES = {
    _OURS: (
        "ours",
        "/smart/login/?server=stub",
        "/smart/launch/?launch=1&iss=",
        "/smart/callback/",
    ),
    _PEER: ("plain", "/authlib/login/", "/authlib/login/?iss=", "/authlib/callback/"),
    _SAME_WORK: (
        "plain",
        "/authlib-launch/login/?hospital=stub",
        "/authlib-launch/launch/?launch=1&iss=",
        "/authlib-launch/callback/",
    ),
}


def run(report: Report) -> None:
    """Measure."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stub() as stub,
        configured("postgresql", stub=stub, PEERS="authlib"),
    ):
        from benchmarks.site.with_authlib_and_launch import make_hospital

        make_registration(stub)
        make_hospital(stub.base_url)
        with _running(folder, "ours") as ours, _running(folder, "plain") as plain:
            ports = {"ours": ours, "plain": plain}
            sign_ins, requests = {}, {}
            for name, (site, begin, launch, callback) in _SITES.items():
                sign_ins[name] = partial(apply_load, ports[site], begin, callback)
                launch += quote(stub.base_url, safe="")
                requests[name] = partial(apply_load, ports[site], launch, "")
            each = _measure(
                report, "launches", "Launches, sixteen at a time", "launch", sign_ins
            )
            report.check_ratio(
                "of-authlib",
                "launches a second, over those of Authlib",
                name=_OURS,
                base=_PEER,
                at_least=0.9,
                inverse=True,
            )
            _compare_same_work(report, "launches")
            ordered = sorted(each[_OURS])
            last = ordered[int(len(ordered) * 0.99)]
            report.check(
                "p99",
                "99th percentile of one launch, of the median",
                last / statistics.median(ordered),
                at_most=5,
            )
            _measure(
                report,
                "launch-requests",
                "Launch requests, sixteen at a time",
                "request",
                requests,
            )
            _compare_same_work(report, "launch requests")


def _compare_same_work(report: Report, what: str) -> None:
    report.check_ratio(
        f"{what.replace(' ', '-')}-same-work",
        f"{what} a second, over those of Authlib and a launch",
        name=_OURS,
        base=_SAME_WORK,
        at_least=1.0,
        inverse=True,
    )


def _measure(
    report: Report,
    key: str,
    title: str,
    unit: str,
    ways: Mapping[str, Callable[..., dict[str, Any]]],
) -> dict[str, list[float]]:
    """Add a table of all *ways*; returns how long each launch took, by way."""
    launches = report.size(160, smoke=16)
    rounds = report.rounds(18)
    times: dict[str, list[float | None]] = {name: [] for name in ways}
    each: dict[str, list[float]] = {name: [] for name in ways}
    chance = random.Random(SEED)
    for number in range(rounds + 1):
        order = list(ways)
        chance.shuffle(order)
        for name in order:
            answer = ways[name](people=_PEOPLE, launches=launches)
            if number:  # the first one makes the users
                taken = answer["taken"] / launches
                times[name].append(float(f"{taken:.5g}"))
                each[name] += answer["each"]
        if not number:
            _collect_statistics()
    assert count(times[_OURS]) == rounds
    report.add_table(key, title, times, base=_PEER, operations=launches, unit=unit)
    return each


def _collect_statistics() -> None:
    """As autovacuum does, within a minute after the first rows."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


@contextmanager
def _running(
    folder: str, site: str, module: Sequence[str] = _GUNICORN
) -> Iterator[int]:
    """Serve the site until the block ends; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-m"]
    command += [each.format(port=port, folder=folder, site=site) for each in module]
    with Path(f"{folder}/{port}.log").open("w") as log:
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
    raise TimeoutError("the server does not answer")
