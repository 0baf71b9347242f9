"""Answers read piece by piece, for what is larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.urls import validate_https_url
from django_smart.transport.connections import limit_call
from django_smart.transport.edge import (
    BodyTooLargeError,
    Timeouts,
    call_guarded,
    find_mounted,
    open_mounted,
    open_pooled,
)

__all__ = ["ResponseStream", "open_stream"]

_CHUNK = 65536


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseStream:
    """
    An answer whose body is still on its way.

    Attributes:
        head: status and headers; its ``body`` is empty.
        chunks: the body after content decoding, once.  Reading it raises
            ``TransportError`` as :func:`~django_smart.transport.send` does.
    """

    head: HTTPResponse
    chunks: Iterator[bytes] = field(repr=False)


class _Opened(NamedTuple):
    status_code: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes]
    close: Callable[[], None]


@contextmanager
def open_stream(
    request: HTTPRequest,
    *,
    timeouts: Timeouts,
    max_body: int,
    insecure_hosts: frozenset[str],
) -> Iterator[ResponseStream]:
    """
    Send *request* once; the body is read inside the ``with`` block, and ends with it.

    Args and errors are those of :func:`~django_smart.transport.send`; the limit of the
    whole call goes on while the body is read.
    """
    validate_https_url(request.url, insecure_hosts=insecure_hosts, what="URL")

    def open_answer() -> _Opened:
        adapter = find_mounted(request)
        if adapter is not None:
            answer = open_mounted(adapter, request, timeouts)
            chunks = answer.iter_content(_CHUNK)
            return _Opened(answer.status_code, answer.headers, chunks, answer.close)
        # The connection keeps to the limit that holds when the answer begins.
        with limit_call(timeouts.total):
            raw = open_pooled(request, timeouts)
        chunks = raw.stream(_CHUNK, decode_content=True)
        return _Opened(raw.status, raw.headers, chunks, raw.close)

    opened = call_guarded(open_answer, request, max_body=max_body)
    head = HTTPResponse(
        status_code=opened.status_code,
        headers={name.lower(): value for name, value in opened.headers.items()},
        url=request.url,
    )
    try:
        yield ResponseStream(head=head, chunks=_read(opened.chunks, request, max_body))
    finally:
        opened.close()


def _read(
    chunks: Iterator[bytes], request: HTTPRequest, max_body: int
) -> Iterator[bytes]:
    size = 0

    def read_one() -> bytes | None:
        nonlocal size
        chunk = next(chunks, None)
        size += len(chunk or b"")
        if size > max_body:
            raise BodyTooLargeError
        return chunk

    while (chunk := call_guarded(read_one, request, max_body=max_body)) is not None:
        yield chunk
