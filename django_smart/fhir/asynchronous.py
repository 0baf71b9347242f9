"""
The FHIR client for async code: each method in a thread.

Calls of several tasks run side by side, over the connections that all threads share.
``sync_to_async`` as Django uses it would put them into one thread, one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Concatenate, NoReturn, ParamSpec, TypeVar

from django_smart.fhir.batch import Batch, BatchAnswer
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.paging import SearchPage, SearchStream, refuse_stream
from django_smart.fhir.parameters import SearchParams

__all__ = ["AsyncFHIRClient", "AsyncSearchStream"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _awaited(
    method: Callable[Concatenate[FHIRClient, _P], _T],
) -> Callable[Concatenate[AsyncFHIRClient, _P], Coroutine[Any, Any, _T]]:
    @wraps(method)
    async def call(self: AsyncFHIRClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        function: Callable[_P, _T] = getattr(self._client, method.__name__)
        return await self.run(function, *args, **kwargs)

    return call


class AsyncSearchStream:
    """:class:`SearchStream` for ``async for``."""

    def __init__(self, stream: SearchStream, client: AsyncFHIRClient) -> None:
        self._stream = stream
        self._client = client

    def __repr__(self) -> str:
        return f"<Async{repr(self._stream)[1:]}"

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        refuse_stream()

    def __getitem__(self, index: object) -> NoReturn:
        refuse_stream()

    def __iter__(self) -> NoReturn:
        refuse_stream()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        async for page in self.pages():
            for each in page.new:
                yield each
            del page

    def pages(self) -> AsyncIterator[SearchPage]:
        """Like :meth:`SearchStream.pages`, for ``async for``."""
        return self._client._step_through(self._stream.pages())


class AsyncFHIRClient:
    """
    :class:`FHIRClient` with awaitable methods; ``iterate`` is for ``async for``.

    Args:
        client: the client, which several threads use at the same time.
        executor: runs the calls; by default, the event loop's executor.
        after: called in the thread after each call, for example to close connections.
    """

    def __init__(
        self,
        client: FHIRClient,
        *,
        executor: Executor | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self._executor = executor
        self._after = after

    def __repr__(self) -> str:
        return f"<Async{repr(self._client)[1:]}"

    @property
    def base_url(self) -> str:
        """FHIR endpoint."""
        return self._client.base_url

    @property
    def patient_id(self) -> str | None:
        """Id of the patient in context."""
        return self._client.patient_id

    read = _awaited(FHIRClient.read)
    vread = _awaited(FHIRClient.vread)
    search = _awaited(FHIRClient.search)
    create = _awaited(FHIRClient.create)
    update = _awaited(FHIRClient.update)
    modify = _awaited(FHIRClient.modify)
    patch = _awaited(FHIRClient.patch)
    delete = _awaited(FHIRClient.delete)
    history = _awaited(FHIRClient.history)
    operation = _awaited(FHIRClient.operation)
    capabilities = _awaited(FHIRClient.capabilities)
    resolve = _awaited(FHIRClient.resolve)
    request = _awaited(FHIRClient.request)
    download = _awaited(FHIRClient.download)

    def iterate(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        **keywords: Any,
    ) -> AsyncSearchStream:
        """Like :meth:`FHIRClient.iterate`, for ``async for``."""
        stream = self._client.iterate(resource_type, params, **keywords)
        return AsyncSearchStream(stream, self)

    def iterate_pages(self, bundle: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Like :meth:`FHIRClient.iterate_pages`, for ``async for``."""
        return self._step_through(self._client.iterate_pages(bundle))

    def batch(self) -> Batch:
        """Like :meth:`FHIRClient.batch`; :meth:`send` sends it."""
        return self._client.batch()

    def transaction(self) -> Batch:
        """Like :meth:`FHIRClient.transaction`; :meth:`send` sends it."""
        return self._client.transaction()

    async def send(self, batch: Batch) -> list[BatchAnswer]:
        """Send a batch or transaction, like :meth:`Batch.send`."""
        return await self.run(batch.send)

    async def run(
        self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """
        Call any function in a thread, as the methods do.

        Use it for functions that take the synchronous client:
        ``await afhir.run(load_chart, fhir)``.
        """
        # As asyncio.to_thread, which knows no executor but the loop's.
        call = partial(function, *args, **kwargs)
        loop, context = asyncio.get_running_loop(), copy_context()
        return await loop.run_in_executor(self._executor, context.run, self._call, call)

    async def _step_through(self, items: Iterable[_T]) -> AsyncIterator[_T]:
        """Yield *items*, none of them ``None``, each of which comes from a thread."""
        iterator = await self.run(iter, items)
        while (item := await self.run(next, iterator, None)) is not None:
            yield item
            del item

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        finally:
            if self._after is not None:
                self._after()
