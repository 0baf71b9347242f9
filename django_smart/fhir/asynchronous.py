"""
The FHIR client for async code: each call in a thread of the event loop's pool.

Calls of several tasks run side by side, over the connections that all threads share.
``sync_to_async`` as Django uses it would put them into one thread, one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from django_smart.fhir.client import FHIRClient
from django_smart.fhir.parameters import SearchParams
from django_smart.fhir.search import SearchPage, SearchResult, Seen

__all__ = ["AsyncFHIRClient", "AsyncSearchResult"]

_T = TypeVar("_T")

_Run = Callable[..., Awaitable[Any]]


class AsyncFHIRClient:
    """
    Every method of :class:`FHIRClient` that sends something, to be awaited.

    Args:
        client: used by threads, several at a time.
        after: called in the thread after each call, to leave nothing open there.
    """

    def __init__(
        self, client: FHIRClient, *, after: Callable[[], None] | None = None
    ) -> None:
        self._client = client
        self._after = after

    def __repr__(self) -> str:
        return f"<Async{repr(self._client)[1:]}"

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            return self.run(value, *args, **kwargs)

        return call

    def search(
        self, resource_type: str, params: SearchParams | None = None, /, **keywords: Any
    ) -> AsyncSearchResult[Any]:
        """As :meth:`FHIRClient.search`; the result is for ``async for``."""
        result = self._client.search(resource_type, params, **keywords)
        return AsyncSearchResult(result, self.run)

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        Call any function in a thread, as all methods are.

        For what a method returns to be used later: ``run(batch.send)``,
        ``run(list, history)``.
        """
        return await asyncio.to_thread(self._call, function, *args, **kwargs)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            if self._after is not None:
                self._after()


class AsyncSearchResult(Generic[_T]):
    """:class:`SearchResult` with ``async for``; what asks the server is awaited."""

    def __init__(self, result: SearchResult[_T], run: _Run) -> None:
        self._result = result
        self._run = run

    def __repr__(self) -> str:
        return f"<Async{repr(self._result)[1:]}"

    async def __aiter__(self) -> AsyncIterator[_T]:
        seen = Seen(self._result.max_count)
        if seen.is_full():
            return
        async for page in self.pages():
            for resource in seen.keep_new(page.resources):
                yield self._result.convert(resource)
            del page
            if seen.is_full():
                return

    async def pages(self) -> AsyncIterator[SearchPage]:
        """As :meth:`SearchResult.pages`."""
        pages: Iterator[SearchPage] = self._result.pages()
        while (page := await self._run(next, pages, None)) is not None:
            yield page
            del page

    async def first(self) -> _T | None:
        """As :meth:`SearchResult.first`."""
        return cast("_T | None", await self._run(self._result.first))

    async def total(self) -> int | None:
        """As :attr:`SearchResult.total`."""
        return cast("int | None", await self._run(lambda: self._result.total))

    async def bundle(self) -> dict[str, Any]:
        """As :meth:`SearchResult.bundle`."""
        return cast("dict[str, Any]", await self._run(self._result.bundle))

    def limit(self, count: int) -> AsyncSearchResult[_T]:
        """As :meth:`SearchResult.limit`."""
        return AsyncSearchResult(self._result.limit(count), self._run)
