"""
Refreshes at one server, in this tree and in an older one, in turn in each round.

    git worktree add /tmp/older b7e59cf
    python -m benchmarks.engines /tmp/older

Each tree has a database, a queue and a Celery worker with two processes of its own;
this one's server has ``turns = 2``.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

__all__ = ["main"]

_FILE = Path(__file__).resolve()
_HERE = _FILE.parent.parent
_DELAYS = (5, 200)
_LEAST = 0.9


def main() -> int:
    """Measure; returns 1 if this tree is slower than the limit allows."""
    from benchmarks.harness import Variant, compare, measure
    from benchmarks.stub import running_stub

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("older", type=Path)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--grants", type=int, default=1000)
    options = parser.parse_args()
    is_slow = False
    with ExitStack() as stack:
        port = stack.enter_context(running_stub()).origin.rpartition(":")[2]
        runs = {
            name: stack.enter_context(_running(tree, port, options.grants))
            for name, tree in (("older", options.older.resolve()), ("here", _HERE))
        }
        for delay in _DELAYS:
            variants = [
                Variant(
                    name=name,
                    run=partial(_ask, pipes, "run"),
                    prepare=partial(_ask, pipes, f"delay {delay}"),
                )
                for name, pipes in runs.items()
            ]
            times = measure(variants, rounds=options.rounds, operations=options.grants)
            ratio = compare(times, "here", "older", inverse=True)
            sys.stdout.write(
                f"token endpoint of {delay} ms: {ratio.median:.2f} of the older tree's "
                f"grants a second ({ratio.low:.2f} to {ratio.high:.2f})\n"
            )
            is_slow = is_slow or ratio.median < _LEAST
    return int(is_slow)


_Pipes = tuple[IO[str], IO[str]]


@contextmanager
def _running(tree: Path, port: str, number: int) -> Iterator[_Pipes]:
    """Run this file's other half in *tree* until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(_FILE), port, str(number)],
        cwd=tree,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process.stdin, process.stdout
    finally:
        process.stdin.close()
        process.wait(60)


def _ask(pipes: _Pipes, order: str, number: int) -> None:
    told, answers = pipes
    told.write(f"{order} {number}\n")
    told.flush()
    assert answers.readline() == "done\n"


def _obey(port: int, number: int) -> None:
    """The other half: refresh in the current folder's tree when told."""
    sys.path[0] = str(Path.cwd())
    setting_up = importlib.import_module("benchmarks.setting_up")
    refresh: Any = importlib.import_module("benchmarks.questions.refresh")
    stub = importlib.import_module("benchmarks.stub").Stub(port)
    make_grants = getattr(refresh, "Grants", None) or refresh._Grants
    with (
        tempfile.TemporaryDirectory() as folder,
        refresh._own_queue(),
        setting_up.configured("postgresql", stub=stub),
    ):
        registration = setting_up.make_registration(stub)
        if hasattr(registration.server, "turns"):
            registration.server.turns = 2
        grants = make_grants(registration, stub, number)
        worker = importlib.import_module("benchmarks.worker")
        with worker.running_worker(folder, concurrency=2):
            _say("ready")
            for line in sys.stdin:
                order, *values = line.split()
                if order == "delay":
                    grants.set_delay(int(values[0]))
                    grants.make_due_for_beat(number)
                else:
                    grants.refresh(number)
                _say("done")


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].isdecimal():
        _obey(int(sys.argv[1]), int(sys.argv[2]))
    else:
        sys.exit(main())
