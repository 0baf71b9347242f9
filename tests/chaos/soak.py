"""
Refresh steadily for half an hour, and look at memory and connections: ``make soak``.

An argument is another number of minutes.  The deployment is that of the chaos test, and
nothing is done to it.  The exit status is 1 if the workers' memory grew, if there were
more connections to the database than processes and threads account for, or if a grant
was left overdue or refreshed twice.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from tests.chaos.nodes import PostgreSQLNode, RedisNode
from tests.chaos.run import Run, Scale, deploy, running

__all__: list[str] = []

_SCALE = Scale(
    grants=1_000,
    lifetime=60,
    tick=10,
    timeout=(5, 10, 20),
    floor=30,
    late_share=0,
)
_EVERY = 10.0  # seconds between two looks
# Two workers, and two web processes of four threads; beats need none.
_MOST_CONNECTIONS = 2 + 2 * 4
_GROWTH = 1.05


def _measure(run: Run) -> tuple[float, int]:
    """Megabytes that the workers hold, and connections to the database."""
    rows = run.query(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    held = sum(map(_read_memory, run.deployment.get_worker_processes()))
    return held / 1024, int(rows[0][0])


def _read_memory(pid: int) -> int:
    """Resident memory in kB, less what is shared with the parent."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines[1:])
    return int(values["Pss"].split()[0])


def main() -> int:
    """Run, and print what was seen."""
    # What was started is ended in this case as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    minutes = float(sys.argv[1]) if sys.argv[1:] else 30.0
    seen: list[tuple[float, int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        running(PostgreSQLNode) as database,
        running(RedisNode) as broker,
        deploy(_SCALE, Path(folder), broker, database.make_database("smart")) as run,
        run.readers(),
    ):
        started = time.monotonic()
        while time.monotonic() - started < minutes * 60:
            time.sleep(_EVERY)
            seen.append(_measure(run))
            if len(seen) % 6 == 0:
                held, connections = seen[-1]
                sys.stdout.write(
                    f"{len(seen) // 6:3} min: workers {held:.1f} MB, {connections} "
                    f"connections, {len(run.ledger.rotations)} refreshes\n"
                )
                sys.stdout.flush()
        overdue, reused = run.count_overdue(), run.ledger.reused
    # What is loaded and cached at first is no growth.
    third = len(seen) // 3
    before = mean(held for held, _ in seen[third : 2 * third])
    after = mean(held for held, _ in seen[2 * third :])
    most = max(connections for _, connections in seen)
    sys.stdout.write(
        f"workers: {before:.1f} MB in the second third, {after:.1f} MB in the last; "
        f"{most} connections at most; {overdue} grants overdue, {reused} refresh "
        f"tokens sent twice; pages: {dict(run.read)}\n"
    )
    has_grown = after > _GROWTH * before or most > _MOST_CONNECTIONS
    return int(has_grown or overdue > 0 or reused > 0)


if __name__ == "__main__":
    sys.exit(main())
