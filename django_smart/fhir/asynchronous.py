"""
The FHIR client for async code: each call in a thread.

Calls of several tasks run side by side, over the connections that all threads share.
``sync_to_async`` as Django uses it would put them into one thread, one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial, wraps
from threading import Event
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar, overload

from django_smart.exceptions import ServerTimeoutError
from django_smart.fhir.batch import Batch
from django_smart.fhir.bulk import BulkExport, ExportedFile
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.connection import CANCELED
from django_smart.fhir.paging import SearchPage, SearchStream, Seen, Stream
from django_smart.fhir.parameters import SearchParams
from django_smart.fhir.record import PatientRecord

__all__ = [
    "AsyncBatch",
    "AsyncBulkExport",
    "AsyncFHIRClient",
    "AsyncPatientRecord",
    "AsyncSearchStream",
]

_P = ParamSpec("_P")
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
            try:
                yield item
            except GeneratorExit:
                # Left early: what it has open is closed in a thread as well.
                await self.run(getattr(iterator, "close", lambda: None))
                raise
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


def _awaited(
    method: Callable[Concatenate[_S, _P], _T],
) -> Callable[Concatenate[_Async[_S], _P], Awaitable[_T]]:
    """Make an async method that calls *method* of what is wrapped, in a thread."""

    @wraps(method)
    async def call(self: _Async[_S], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        function: Callable[_P, _T] = getattr(self._wrapped, method.__name__)
        return await self._threads.run(function, *args, **kwargs)

    return call


def _direct(
    method: Callable[Concatenate[_S, _P], _T],
) -> Callable[Concatenate[_Async[_S], _P], _T]:
    """Make a method that calls *method* of what is wrapped, which sends nothing."""

    @wraps(method)
    def call(self: _Async[_S], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        function: Callable[_P, _T] = getattr(self._wrapped, method.__name__)
        return function(*args, **kwargs)

    return call


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
    reread = _awaited(FHIRClient.reread)
    search = _awaited(FHIRClient.search)
    create = _awaited(FHIRClient.create)
    update = _awaited(FHIRClient.update)
    modify = _awaited(FHIRClient.modify)
    patch = _awaited(FHIRClient.patch)
    delete = _awaited(FHIRClient.delete)
    history = _awaited(FHIRClient.history)
    operation = _awaited(FHIRClient.operation)
    capabilities = _awaited(FHIRClient.capabilities)
    get_model = _awaited(FHIRClient.get_model)
    resolve = _awaited(FHIRClient.resolve)
    resolve_many = _awaited(FHIRClient.resolve_many)
    get = _awaited(FHIRClient.get)
    request = _awaited(FHIRClient.request)
    download = _awaited(FHIRClient.download)
    upload = _awaited(FHIRClient.upload)

    @overload
    def iterate(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        model: type[_T],
        **keywords: Any,
    ) -> AsyncSearchStream[_T]: ...

    @overload
    def iterate(
        self, resource_type: str, params: SearchParams | None = None, /, **keywords: Any
    ) -> AsyncSearchStream[dict[str, Any]]: ...

    def iterate(
        self, resource_type: str, params: SearchParams | None = None, /, **keywords: Any
    ) -> AsyncSearchStream[Any]:
        """Like :meth:`FHIRClient.iterate`, for ``async for``."""
        stream = self._wrapped.iterate(resource_type, params, **keywords)
        return AsyncSearchStream(stream, self._threads)

    async def iterate_pages(
        self, bundle: Mapping[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """Like :meth:`FHIRClient.iterate_pages`, for ``async for``."""
        async for page in self._threads.step_through(
            self._wrapped.iterate_pages(bundle)
        ):
            yield page

    async def patient(self, id: str | None = None) -> AsyncPatientRecord:  # noqa: A002
        """Like :meth:`FHIRClient.patient`."""
        record = await self.run(self._wrapped.patient, id)
        return AsyncPatientRecord(record, self._threads)

    async def batch(self) -> AsyncBatch:
        """Like :meth:`FHIRClient.batch`."""
        return AsyncBatch(self._wrapped.batch(), self._threads)

    async def transaction(self) -> AsyncBatch:
        """Like :meth:`FHIRClient.transaction`."""
        return AsyncBatch(self._wrapped.transaction(), self._threads)

    async def export(self, scope: str = "", **parameters: Any) -> AsyncBulkExport:
        """Like :meth:`FHIRClient.export`."""
        export = await self.run(self._wrapped.export, scope, **parameters)
        return AsyncBulkExport(export, self._threads)

    async def resume_export(self, state: Mapping[str, Any]) -> AsyncBulkExport:
        """Like :meth:`FHIRClient.resume_export`."""
        return AsyncBulkExport(self._wrapped.resume_export(state), self._threads)

    async def run(
        self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """
        Call any function in a thread, as the methods do.

        Use it for functions that take the synchronous client:
        ``await afhir.run(load_chart, fhir)``.
        """
        return await self._threads.run(function, *args, **kwargs)


class AsyncSearchStream(Stream[_T]):
    """:class:`SearchStream` for ``async for``; always true, without a length."""

    def __init__(self, stream: SearchStream[_T], threads: _Threads) -> None:
        self._stream = stream
        self._threads = threads

    def __repr__(self) -> str:
        return f"<Async{repr(self._stream)[1:]}"

    def __iter__(self) -> NoReturn:
        self._refuse()

    async def __aiter__(self) -> AsyncIterator[_T]:
        seen = Seen()

        def convert(page: SearchPage) -> list[_T]:
            return [
                self._stream.convert(each) for each in seen.keep_new(page.resources)
            ]

        async for found in self._threads.step_through(
            map(convert, self._stream.pages())
        ):
            for each in found:
                yield each
            del found

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

    def iterate(
        self, resource_type: str, params: SearchParams | None = None, /, **keywords: Any
    ) -> AsyncSearchStream[dict[str, Any]]:
        """Like :meth:`PatientRecord.iterate`, for ``async for``."""
        stream = self._wrapped.iterate(resource_type, params, **keywords)
        return AsyncSearchStream(stream, self._threads)

    def iterate_everything(self, **params: Any) -> AsyncSearchStream[dict[str, Any]]:
        """Like :meth:`PatientRecord.iterate_everything`, for ``async for``."""
        stream = self._wrapped.iterate_everything(**params)
        return AsyncSearchStream(stream, self._threads)


class AsyncBatch(_Async[Batch]):
    """:class:`Batch`; only ``send`` is awaited."""

    def __len__(self) -> int:
        return len(self._wrapped)

    read = _direct(Batch.read)
    vread = _direct(Batch.vread)
    search = _direct(Batch.search)
    create = _direct(Batch.create)
    update = _direct(Batch.update)
    patch = _direct(Batch.patch)
    delete = _direct(Batch.delete)
    send = _awaited(Batch.send)


class AsyncBulkExport(_Async[BulkExport]):
    """
    :class:`BulkExport` for ``async for``, with awaitable methods.

    Files are read when all of them are ready, even with partial manifests.
    """

    _is_ready = False

    @property
    def state(self) -> dict[str, Any]:
        """Like :attr:`BulkExport.state`."""
        return self._wrapped.state

    delete = _awaited(BulkExport.delete)

    async def poll(self) -> float | None:
        """Like :meth:`BulkExport.poll`."""
        seconds = await self._threads.run(self._wrapped.poll)
        self._is_ready = seconds is None
        return seconds

    async def wait(self, *, seconds: float = 24 * 3600.0) -> None:
        """Like :meth:`BulkExport.wait`, without blocking a thread."""
        deadline = time.monotonic() + seconds
        while (pause := await self.poll()) is not None:
            if time.monotonic() + pause > deadline:
                raise ServerTimeoutError(f"the export is not ready after {seconds} s")
            await asyncio.sleep(pause)

    async def files(self) -> list[ExportedFile]:
        """Like :attr:`BulkExport.files`."""
        return (await self._get_ready()).files

    async def transaction_time(self) -> str:
        """Like :attr:`BulkExport.transaction_time`."""
        return (await self._get_ready()).transaction_time

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        # One by one: its state counts each as handled when the next is asked for.
        async for resource in self._threads.step_through(await self._get_ready()):
            yield resource

    async def deleted(self) -> AsyncIterator[str]:
        """Like :meth:`BulkExport.deleted`, for ``async for``."""
        export = await self._get_ready()
        async for reference in self._threads.step_through(export.deleted()):
            yield reference

    async def problems(self) -> list[dict[str, Any]]:
        """Like :meth:`BulkExport.problems`."""
        export = await self._get_ready()
        return await self._threads.run(export.problems)

    async def _get_ready(self) -> BulkExport:
        if not self._is_ready:
            await self.wait()
        return self._wrapped
