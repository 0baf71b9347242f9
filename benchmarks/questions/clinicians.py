"""Fifty clinicians at work: gunicorn and PostgreSQL."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import quantiles
from time import monotonic
from typing import Any, NamedTuple

from benchmarks.harness import Report
from benchmarks.load import run_load
from benchmarks.questions.launches import _running
from benchmarks.questions.refresh import _own_queue
from benchmarks.setting_up import configured, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "measure_clinicians", "run"]

TEXT = """
Fifty clinicians work for half a minute, at gunicorn with two workers of eight threads and PostgreSQL: each launches from a chart, opens five pages, is idle, opens a second chart beside the first, goes back to the first, signs out, and begins again.
A page reads the patient of its launch from the EHR, which takes no time; a page that shows the other chart's patient is an error.
They pause for one to three seconds after a page, and then open a new connection.
A launch is timed from the launch request to the response of the callback.
Memory is compared after ten seconds of work without pauses, and at the end.
"""

_PEOPLE = 50


def run(report: Report) -> None:
    """Measure."""
    measure_clinicians(report, seconds=30)


def measure_clinicians(report: Report, *, seconds: int) -> None:
    """Let them work for so many *seconds*."""
    people = report.size(_PEOPLE, smoke=4)
    pace = report.size(100, smoke=1) / 100
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stub() as stub,
        # Sign-outs leave messages, which no worker fetches here.
        _own_queue(),
        configured("postgresql", stub=stub),
    ):
        make_registration(stub)
        with _running(folder, "clinic") as port:
            where = ("benchmarks.workday", port, stub.base_url, people)
            run_load(*where, report.size(10, smoke=0), 0)
            master = int(Path(f"{folder}/clinic.pid").read_text())
            before, started = _look_at_workers(master), monotonic()
            stub.take_counts()
            answer = run_load(*where, report.size(seconds, smoke=1), pace)
            counts = stub.take_counts()
            after, taken = _look_at_workers(master), monotonic() - started
    _check(report, answer, counts)
    # A worker that was replaced fails here.
    workers = [(before[pid], after[pid]) for pid in before]
    report.check(
        "memory",
        "growth of a worker's memory, the most",
        max(last.memory - first.memory for first, last in workers),
        at_most=2,
        unit="MB",
    )
    report.check(
        "busy",
        "processor time of all workers, of one core's",
        100 * sum(last.busy - first.busy for first, last in workers) / taken,
        unit="%",
    )
    report.facts["memory of the workers at the start and at the end (MB)"] = ", ".join(
        f"{first.memory:.1f} and {last.memory:.1f}" for first, last in workers
    )


def _check(report: Report, answer: dict[str, Any], counts: dict[str, int]) -> None:
    times = {name: _get_percentiles(each) for name, each in answer["seconds"].items()}
    pages = len(answer["statements"])
    report.check("errors", "errors", len(answer["errors"]), at_most=0)
    for name, (half, most) in times.items():
        report.facts[f"{name}: median, 99th percentile (ms), number"] = (
            f"{half:.1f}, {most:.1f}, {len(answer['seconds'][name]):,}"
        )
    half, most = times["page"]
    report.check("page-p50", "median of a page", half, at_most=20, unit="ms")
    report.check("page-p99", "99th percentile of a page", most, at_most=100, unit="ms")
    report.check(
        "launch-p99",
        "99th percentile of a launch",
        times["launch"][1],
        at_most=300,
        unit="ms",
    )
    report.check(
        "statements",
        "statements of a page, the most",
        max(answer["statements"]),
        at_most=3,
    )
    sent = sum(number for path, number in counts.items() if path != "connections")
    report.check(
        "outbound",
        "outbound requests a page",
        (sent - counts["/token"]) / pages,
        at_most=1,
    )
    report.check(
        "outbound-launch",
        "outbound requests a launch",
        counts["/token"] / len(answer["seconds"]["launch"]),
        at_most=1,
    )
    for error in sorted(set(answer["errors"]))[:3]:
        report.facts[error] = f"{answer['errors'].count(error)} times"


def _get_percentiles(seconds: list[float]) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds."""
    found = quantiles(seconds, n=100, method="inclusive")
    return found[49] * 1000, found[98] * 1000


class _Worker(NamedTuple):
    """What a process takes: resident MB, and seconds of a processor."""

    memory: float
    busy: float


def _look_at_workers(master: int) -> dict[int, _Worker]:
    """The workers of a gunicorn, by their process (Linux)."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    found = {}
    for pid in map(int, children):
        # Behind the name, which is in parentheses; see proc_pid_stat(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        found[pid] = _Worker(
            memory=int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
            busy=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        )
    return found
