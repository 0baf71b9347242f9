"""
Many people who sign in at once, in a process of their own.

    python -m benchmarks.load PORT BEGIN CALLBACK PEOPLE LAUNCHES

prints, as JSON, how long all of it took and each launch (seconds); without a CALLBACK
they go no further than the launch request.  It is one event loop with as little work
for each request as can be, so that the site is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from time import perf_counter
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

__all__ = ["Person", "apply_load", "run_load"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LOCATION = re.compile(r"\r\nlocation: *([^\r]+)", re.IGNORECASE)
_COOKIE = re.compile(rb"\r\nset-cookie: *([^=]+)=([^;\r]*)", re.IGNORECASE)


def apply_load(
    port: int, begin: str, callback: str, *, people: int, launches: int
) -> dict[str, Any]:
    """Run it; returns ``taken`` and ``each``."""
    return run_load(__name__, port, begin, callback, people, launches)


def run_load(module: str, *arguments: object) -> dict[str, Any]:
    """Run *module* in a process of its own; returns the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


class Person:
    """A browser, without cookies at first."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cookies: dict[str, str] = {}
        self._streams: Any = None

    async def request(self, target: str, form: str | None = None) -> tuple[str, bytes]:
        """Head and body of the answer; *form* is posted."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        cookies = "; ".join(f"{name}={text}" for name, text in self.cookies.items())
        cookie = f"Cookie: {cookies}\r\n" if cookies else ""
        method, more = "GET", ""
        if form is not None:
            method = "POST"
            more = (
                "Content-Type: application/x-www-form-urlencoded\r\n"
                f"Content-Length: {len(form)}\r\n"
            )
        writer.write(
            f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Sec-Fetch-Site: same-origin\r\n{cookie}{more}\r\n"
            f"{form or ''}".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        for name, text in _COOKIE.findall(head):
            self.cookies[name.decode()] = text.decode()
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return head.decode(), body

    def close(self) -> None:
        """Close the connection; the next request opens one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def get(self, target: str, form: str | None = None) -> str:
        """The ``Location`` of the redirect that *target* answers with."""
        head, _ = await self.request(target, form)
        location = _LOCATION.search(head)
        status = head.split(" ", 2)[1]
        if status != "302" or location is None:
            path = target.partition("?")[0]
            raise RuntimeError(f"{path} was answered with {status}")
        return location[1]

    async def sign_in(self, begin: str, callback: str, who: str = "") -> str:
        """
        To the server and back; returns the address of the first page.

        Args:
            callback: empty to go no further than the launch request.
            who: of the stub's users and patients, as ``<subject>.<patient>.``.
        """
        location = await self.get(begin)
        if not callback:
            return location
        query = parse_qs(urlsplit(location).query)
        code = f"{who}nonce-{query.get('nonce', [''])[0]}"
        values = urlencode({"code": code, "state": query["state"][0]})
        return await self.get(f"{callback}?{values}")


async def _main(port: int, begin: str, callback: str, people: int, left: int) -> None:
    each: list[float] = []

    async def sign_in_again_and_again(number: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            started = perf_counter()
            person = Person(port)
            await person.sign_in(begin, callback, f"person-{number}.p1.")
            person.close()
            each.append(perf_counter() - started)

    started = perf_counter()
    await asyncio.gather(*map(sign_in_again_and_again, range(people)))
    taken = perf_counter() - started
    print(json.dumps({"taken": taken, "each": each}))


if __name__ == "__main__":
    asyncio.run(
        _main(int(sys.argv[1]), sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))
    )
