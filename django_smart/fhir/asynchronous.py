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
from threading import Event
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar

from django_smart.fhir.batch import Batch, BatchAnswer
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.connection import CANCELED
from django_smart.fhir.paging import SearchPage, SearchStream, Stream
from django_smart.fhir.searching import PatientRecord

__all__ = ["AsyncBatch", "AsyncFHIRClient", "AsyncPatientRecord", "AsyncSearchStream"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S")
_S_co = TypeVar("_S_co", covariant=True)
_T = TypeVar("_T")


class _Threads:
    """Runs calls in the threads of *executor*, and *after* behind each of them."""

    def __init__(
        self, executor: Executor | None, after: Callable[[], None] | None
    ) -> None:
        self._executor = executor
        self._after = after

    async def run(
        self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        # As asyncio.to_thread, which knows no executor but the loop's.
        call = partial(function, *args, **kwargs)
        loop, context, canceled = asyncio.get_running_loop(), copy_context(), Event()
        context.run(CANCELED.set, canceled)
        future = loop.run_in_executor(self._executor, context.run, self._call, call)
        future.add_done_callback(lambda f: canceled.set() if f.cancelled() else None)
        return await future

    async def step_through(self, items: Iterable[_T]) -> AsyncIterator[_T]:
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


class _Async(Generic[_S_co]):
    """Something of the synchronous client, whose methods are called in threads."""

    def __init__(self, wrapped: _S_co, threads: _Threads) -> None:
        self._wrapped = wrapped
        self._threads = threads

    def __repr__(self) -> str:
        return f"<Async{repr(self._wrapped)[1:]}"


def _twin(
    method: Callable[Concatenate[_S, _P], _T], twin: Callable[[_T, _Threads], _R]
) -> Callable[Concatenate[_Async[_S], _P], Coroutine[Any, Any, _R]]:
    """Make an async method: *method* in a thread, and the twin of what it returns."""

    @wraps(method)
    async def call(self: _Async[_S], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        function: Callable[_P, _T] = getattr(self._wrapped, method.__name__)
        return twin(await self._threads.run(function, *args, **kwargs), self._threads)

    return call


def _awaited(
    method: Callable[Concatenate[_S, _P], _T],
) -> Callable[Concatenate[_Async[_S], _P], Coroutine[Any, Any, _T]]:
    return _twin(method, lambda value, threads: value)


def _streamed(
    method: Callable[Concatenate[_S, _P], SearchStream],
) -> Callable[Concatenate[_Async[_S], _P], AsyncSearchStream]:
    """Make a method for ``async for``, which sends nothing before."""

    @wraps(method)
    def call(
        self: _Async[_S], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> AsyncSearchStream:
        function: Callable[_P, SearchStream] = getattr(self._wrapped, method.__name__)
        return AsyncSearchStream(function(*args, **kwargs), self._threads)

    return call


class AsyncSearchStream(Stream):
    """:class:`SearchStream` for ``async for``; always true, without a length."""

    def __init__(self, stream: SearchStream, threads: _Threads) -> None:
        self._stream = stream
        self._threads = threads

    def __repr__(self) -> str:
        return f"<Async{repr(self._stream)[1:]}"

    def __iter__(self) -> NoReturn:
        self._refuse()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        async for page in self.pages():
            for each in page.new:
                yield each
            del page

    def pages(self) -> AsyncIterator[SearchPage]:
        """Like :meth:`SearchStream.pages`, for ``async for``."""
        return self._threads.step_through(self._stream.pages())


class AsyncPatientRecord(_Async[PatientRecord]):
    """:class:`PatientRecord` with methods for ``await`` or ``async for``."""

    @property
    def id(self) -> str:
        """Id of the patient."""
        return self._wrapped.id

    @property
    def reference(self) -> str:
        """Such as ``Patient/123``."""
        return self._wrapped.reference

    read = _awaited(PatientRecord.read)
    search = _awaited(PatientRecord.search)
    everything = _awaited(PatientRecord.everything)
    iterate = _streamed(PatientRecord.iterate)
    iterate_everything = _streamed(PatientRecord.iterate_everything)


class AsyncBatch(Batch):
    """:class:`Batch`; only ``send`` is awaited."""

    def __init__(self, batch: Batch, threads: _Threads) -> None:
        super().__init__(batch.kind, batch.client)
        self._threads = threads

    async def send(self) -> list[BatchAnswer]:  # type: ignore[override]
        """Like :meth:`Batch.send`."""
        return await self._threads.run(super().send)


class AsyncFHIRClient(_Async[FHIRClient]):
    """
    :class:`FHIRClient` with awaitable methods; ``iterate`` is for ``async for``.

    The methods return complete results, or objects whose methods are awaitable, too.

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
        super().__init__(client, _Threads(executor, after))

    @property
    def base_url(self) -> str:
        """FHIR endpoint."""
        return self._wrapped.base_url

    @property
    def patient_id(self) -> str | None:
        """Id of the patient in context."""
        return self._wrapped.patient_id

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
    resolve_many = _awaited(FHIRClient.resolve_many)
    get = _awaited(FHIRClient.get)
    request = _awaited(FHIRClient.request)
    download = _awaited(FHIRClient.download)
    upload = _awaited(FHIRClient.upload)
    iterate = _streamed(FHIRClient.iterate)
    patient = _twin(FHIRClient.patient, AsyncPatientRecord)
    batch = _twin(FHIRClient.batch, AsyncBatch)
    transaction = _twin(FHIRClient.transaction, AsyncBatch)

    def iterate_pages(self, bundle: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Like :meth:`FHIRClient.iterate_pages`, for ``async for``."""
        return self._threads.step_through(self._wrapped.iterate_pages(bundle))

    async def run(
        self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """
        Call any function in a thread, as the methods do.

        Use it for functions that take the synchronous client:
        ``await afhir.run(load_chart, fhir)``.
        """
        return await self._threads.run(function, *args, **kwargs)
