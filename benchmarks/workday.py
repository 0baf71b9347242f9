"""
Clinicians at work, in a process of their own.

    python -m benchmarks.workday PORT ISS PEOPLE SECONDS PACE

Each launches from a chart, opens five pages, is idle, opens a second chart beside the
first, signs out, and begins again until SECONDS have passed.  Pauses are multiplied by
PACE.  Prints, as JSON, the seconds of each launch, page and sign-out, the statements of
each page, and the errors; a page that shows another chart's patient is one.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections.abc import Awaitable
from time import monotonic, perf_counter
from typing import Any
from urllib.parse import quote, urlencode

from benchmarks.harness import SEED
from benchmarks.load import Person

__all__ = ["Ward"]

_STATEMENTS = re.compile(r"\r\nx-statements: *(\d+)", re.IGNORECASE)
# Seconds: between two pages, and when something else has to be done.
_READING, _IDLE = (1.0, 3.0), (5.0, 10.0)


class Ward:
    """Where they work, and what it took."""

    def __init__(self, port: int, iss: str, pace: float) -> None:
        self._port = port
        self._launch = f"/smart/launch/?launch=1&iss={quote(iss, safe='')}"
        self._pace = pace
        self._chance = random.Random(SEED)
        self.seconds: dict[str, list[float]] = {
            "launch": [],
            "page": [],
            "sign-out": [],
        }
        self.statements: list[int] = []
        self.errors: list[str] = []

    async def work(self, number: int, until: float) -> None:
        """Work as clinician *number*, and once more unless it is *until* already."""
        person = Person(self._port)
        # They do not all come in the same second.
        await self._pause(person, (0.0, _IDLE[1]))
        while True:
            try:
                await self._work_once(person, f"clinician-{number}")
            except (OSError, EOFError, RuntimeError) as exc:
                self.errors.append(f"{type(exc).__name__}: {exc}")
                person = Person(self._port)
            if monotonic() >= until:
                return

    async def _work_once(self, person: Person, name: str) -> None:
        first = await self._open(person, name, "p1")
        for _ in range(5):
            await self._read(person, first, "p1")
            await self._pause(person, _READING)
        await self._pause(person, _IDLE)
        second = await self._open(person, name, "p2")
        for page, patient in ((second, "p2"), (first, "p1")):
            await self._read(person, page, patient)
            await self._pause(person, _READING)
        form = urlencode({"csrfmiddlewaretoken": person.cookies["csrftoken"]})
        await self._time("sign-out", person.get("/smart/logout/", form))
        person.close()

    async def _open(self, person: Person, name: str, patient: str) -> str:
        signing_in = person.sign_in(
            self._launch, "/smart/callback/", f"{name}.{patient}."
        )
        landing: str = await self._time("launch", signing_in)
        return landing.replace("/plain/", "/chart/")

    async def _read(self, person: Person, page: str, patient: str) -> None:
        head, body = await self._time("page", person.request(page))
        status = head.split(" ", 2)[1]
        if status != "200" or body != patient.encode():
            raise RuntimeError(f"the chart of {patient} was answered with {status}")
        found = _STATEMENTS.search(head)
        assert found
        self.statements.append(int(found[1]))

    async def _time(self, what: str, action: Awaitable[Any]) -> Any:
        started = perf_counter()
        answer = await action
        self.seconds[what].append(perf_counter() - started)
        return answer

    async def _pause(self, person: Person, between: tuple[float, float]) -> None:
        # The site may close it meanwhile; a browser would open another one.
        person.close()
        await asyncio.sleep(self._chance.uniform(*between) * self._pace)


async def _main(port: int, iss: str, people: int, seconds: float, pace: float) -> None:
    ward = Ward(port, iss, pace)
    until = monotonic() + seconds
    await asyncio.gather(*(ward.work(number, until) for number in range(people)))
    print(
        json.dumps(
            {
                "seconds": ward.seconds,
                "statements": ward.statements,
                "errors": ward.errors,
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(
        _main(
            int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:])
        )
    )
