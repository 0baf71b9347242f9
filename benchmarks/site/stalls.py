"""How long an event loop that serves a site was stalled."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter
from typing import Any

__all__ = ["Watched"]

_PAUSE = 0.01


class Watched:
    """
    An ASGI application, whose event loop is watched from its first request on.

    ``/stalls/`` returns by how many seconds each pause of 10 ms was exceeded since the
    last such request.
    """

    def __init__(self, site: Any) -> None:
        self._site = site
        self._stalls: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        if scope["path"] != "/stalls/":
            await self._site(scope, receive, send)
            return
        body = json.dumps(self._stalls).encode()
        self._stalls.clear()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _watch(self) -> None:
        while True:
            started = perf_counter()
            await asyncio.sleep(_PAUSE)
            self._stalls.append(perf_counter() - started - _PAUSE)
