"""
Users who open their page again and again, in a process of their own.

    python -m benchmarks.visits PORT VISITS PAGES

VISITS is JSON: for each user a path, and cookies.  Prints, as JSON, how long all PAGES
took and each of them (seconds).
"""

from __future__ import annotations

import asyncio
import json
import sys
from time import perf_counter
from typing import Any

from benchmarks.load import Person, run_load

__all__ = ["Visit", "apply_visits"]

Visit = tuple[str, dict[str, str]]


def apply_visits(port: int, visits: list[Visit], *, pages: int) -> dict[str, Any]:
    """Run it; returns ``taken`` and ``each``."""
    return run_load(__name__, port, json.dumps(visits), pages)


async def _main(port: int, visits: list[Visit], left: int) -> None:
    each: list[float] = []

    async def visit_again_and_again(path: str, cookies: dict[str, str]) -> None:
        nonlocal left
        person = Person(port)
        person.cookies = cookies
        while left > 0:
            left -= 1
            started = perf_counter()
            head, _ = await person.request(path)
            each.append(perf_counter() - started)
            status = head.split(" ", 2)[1]
            if status != "200":
                raise RuntimeError(f"{path} was answered with {status}")

    started = perf_counter()
    await asyncio.gather(*(visit_again_and_again(*visit) for visit in visits))
    taken = perf_counter() - started
    print(json.dumps({"taken": taken, "each": each}))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])))
