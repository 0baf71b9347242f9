"""
Many people who sign in at once, in a process of their own.

    python -m benchmarks.load PORT BEGIN CALLBACK PEOPLE LAUNCHES

prints, as JSON, how long all of it took and each launch (seconds).  It is one event
loop with as little work for each request as can be, so that the site is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from time import perf_counter
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

__all__ = ["apply_load"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\nlocation: *([^\r]+)", re.IGNORECASE)
_COOKIE = re.compile(rb"\r\nset-cookie: *([^=]+)=([^;\r]*)", re.IGNORECASE)


def apply_load(
    port: int, begin: str, callback: str, *, people: int, launches: int
) -> dict[str, Any]:
    """Run it; returns ``taken`` and ``each``."""
    arguments = [str(port), begin, callback, str(people), str(launches)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class _Person:
    """A browser without cookies, which signs in once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cookies: dict[str, str] = {}
        self._streams: Any = None

    async def get(self, target: str) -> str:
        """The ``Location`` of the redirect that *target* answers with."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        cookies = "; ".join(f"{name}={text}" for name, text in self._cookies.items())
        cookie = f"Cookie: {cookies}\r\n" if cookies else ""
        writer.write(
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{cookie}\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if length:
            await reader.readexactly(int(length[1]))
        for name, text in _COOKIE.findall(head):
            self._cookies[name.decode()] = text.decode()
        if b"\r\nconnection: close" in head.lower():
            writer.close()
            self._streams = None
        status = head.split(b" ", 2)[1]
        location = _LOCATION.search(head)
        if status != b"302" or location is None:
            raise RuntimeError(f"{target} was answered with {status.decode()}")
        return location[1].decode()

    async def sign_in(self, begin: str, callback: str) -> None:
        location = await self.get(begin)
        query = parse_qs(urlsplit(location).query)
        nonce = query.get("nonce", [""])[0]
        state = quote(query["state"][0], safe="")
        await self.get(f"{callback}?code=nonce-{quote(nonce, safe='')}&state={state}")
        if self._streams is not None:
            self._streams[1].close()


async def _main(port: int, begin: str, callback: str, people: int, left: int) -> None:
    each: list[float] = []

    async def sign_in_again_and_again() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            started = perf_counter()
            await _Person(port).sign_in(begin, callback)
            each.append(perf_counter() - started)

    started = perf_counter()
    await asyncio.gather(*(sign_in_again_and_again() for _ in range(people)))
    taken = perf_counter() - started
    print(json.dumps({"taken": taken, "each": each}))


if __name__ == "__main__":
    asyncio.run(
        _main(int(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    )
