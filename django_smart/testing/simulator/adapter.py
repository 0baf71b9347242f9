"""Reaching the simulated EHR with ``requests``, without a socket."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse
from werkzeug.test import create_environ, run_wsgi_app

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = ["SimulatorAdapter"]


class _Body(io.RawIOBase):
    """A WSGI body as a file: chunks are made as they are read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__()
        self._source = chunks
        self._chunks: Iterator[bytes] = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        close = getattr(self._source, "close", None)
        if close is not None and not self.closed:
            close()
        super().close()


class SimulatorAdapter(HTTPAdapter):
    """
    Sends requests to one ``EHRSimulator`` in this process.

    ``session.mount("https://", ehr.adapter())`` also keeps the session from every
    other host: a request to another origin is recorded with the exchange
    ``elsewhere`` and fails with ``requests.ConnectionError``.
    """

    def __init__(self, ehr: EHRSimulator) -> None:
        super().__init__()
        self._ehr = ehr

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: float | tuple[float, float] | tuple[float, None] | None = None,
        verify: bool | str = True,
        cert: bytes | str | tuple[bytes | str, bytes | str] | None = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        environ = _environ(request)
        parts = urlsplit(request.url or "")
        if f"{parts.scheme}://{parts.netloc}".lower() != self._ehr.origin.lower():
            self._ehr.record_elsewhere(environ)
            raise requests.ConnectionError(
                f"{parts.netloc} is not the simulated EHR", request=request
            )
        chunks, status, headers = run_wsgi_app(self._ehr.wsgi_app, environ)
        code, _, reason = status.partition(" ")
        raw = HTTPResponse(
            body=io.BufferedReader(_Body(chunks)),
            headers=HTTPHeaderDict(headers.items()),
            status=int(code),
            reason=reason,
            preload_content=False,
            decode_content=False,
            request_method=request.method,
        )
        return self.build_response(request, raw)


def _environ(request: requests.PreparedRequest) -> dict[str, Any]:
    parts = urlsplit(request.url or "")
    body = request.body or b""
    return create_environ(
        method=request.method or "GET",
        base_url=f"{parts.scheme}://{parts.netloc}",
        path=parts.path,
        query_string=parts.query,
        headers=[(str(name), str(value)) for name, value in request.headers.items()],
        data=body if isinstance(body, bytes) else body.encode(),
    )
