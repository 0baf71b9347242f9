"""
The one HTTP edge: every request of the package leaves through :func:`send`.

It adds what no caller may forget: https with a verified certificate, no redirects, no
cookies, a limit for the size of an answer and one for the time of the whole call, and
errors whose text and chain hold no URL, header or body.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import HTTPError, NewConnectionError

from django_smart import __version__
from django_smart.exceptions import (
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
    TransportError,
)
from django_smart.protocol.messages import (
    HiddenBytes,
    HiddenText,
    HTTPRequest,
    HTTPResponse,
)
from django_smart.protocol.urls import validate_https_url
from django_smart.transport.connections import get_pooled, get_time_left, limit_call

__all__ = ["Timeouts", "mount", "mounted", "send", "unmount"]

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

_CHUNK = 65536
# Trying again is left to the connection, which knows that no byte has gone out.
_NO_RETRIES = urllib3.Retry(total=False, redirect=False)
_USER_AGENT = f"django_smart/{__version__}"
# What the standard library can unpack piece by piece; nothing else is asked for,
# whatever the caller understands.
_ENCODINGS = "gzip, deflate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """
    Limits of one call, in seconds.

    Attributes:
        connect: for a connection to one address, and for the TLS handshake.
        read: between two pieces of the answer.
        total: for the whole call, connecting, sending and the last byte of the body
            included.
            Only the look-up of the host's name, which the system bounds, may exceed it.
    """

    connect: float = 5.0
    read: float = 10.0
    total: float = 20.0


class BodyTooLargeError(Exception):
    """The body is larger than allowed; never leaves the package ``transport``."""


_mounts: tuple[tuple[str, BaseAdapter], ...] = ()


def mount(prefix: str, adapter: BaseAdapter) -> None:
    """
    Let *adapter* answer requests whose URL starts with *prefix*.

    For servers within the process, which nothing goes over the network for; the longest
    prefix wins, case is ignored.  The rules of :func:`send` hold for them as well.
    """
    global _mounts
    rest = [item for item in _mounts if item[0] != prefix.lower()]
    rest.append((prefix.lower(), adapter))
    _mounts = tuple(sorted(rest, key=lambda item: -len(item[0])))


def unmount(prefix: str) -> None:
    """Take back :func:`mount`; nothing happens if there was none."""
    global _mounts
    _mounts = tuple(item for item in _mounts if item[0] != prefix.lower())


@contextmanager
def mounted(prefix: str, adapter: BaseAdapter) -> Iterator[None]:
    """:func:`mount` for the length of a ``with`` block."""
    mount(prefix, adapter)
    try:
        yield
    finally:
        unmount(prefix)


def send(
    request: HTTPRequest,
    *,
    timeouts: Timeouts,
    max_body: int,
    insecure_hosts: frozenset[str],
    sink: BinaryIO | None = None,
) -> HTTPResponse:
    """
    Send *request* once and return the whole answer, whatever its status.

    Args:
        request: complete, with its ``Authorization`` if it has one.
        timeouts: limits in seconds.
        max_body: bytes the body may have after decompression.
        insecure_hosts: names, without port, that plain http is accepted for.
        sink: file that the body is written to piece by piece, whatever the status, for
            answers larger than memory; the body of the answer is then empty.

    Returns:
        The answer; a redirect is returned as it came and never followed.

    Raises:
        InsecureURLError: the URL is not https, or has user information or a fragment.
        ServerUnreachableError: no connection, a broken one, or a wrong certificate.
        ServerTimeoutError: one of the limits was reached.
        ResponseTooLargeError: the body is larger than *max_body*.

    Spec: SMART App Launch 2.2, TLS and "SHALL be authenticated" throughout (TOK-05,
    TOK-06, FHIR-03, SEC-04); it is never sent twice once a byte has gone out.
    """
    validate_https_url(request.url, insecure_hosts=insecure_hosts, what="URL")

    def exchange() -> HTTPResponse:
        with limit_call(timeouts.total):
            return _exchange(request, timeouts, max_body, sink)

    response = call_guarded(exchange, request, max_body=max_body)
    logger.debug(
        "%s to %s: %s", request.method, _get_host(request), response.status_code
    )
    return response


def call_guarded(
    function: Callable[[], _T], request: HTTPRequest, *, max_body: int
) -> _T:
    """Call *function*, with our errors in the place of other libraries' ones."""
    failure: TransportError
    try:
        return function()
    except BodyTooLargeError:
        failure = ResponseTooLargeError(
            f"{_get_host(request)} sent more than {max_body} bytes"
        )
    except (
        requests.RequestException,
        HTTPError,
        HTTPException,
        OSError,
    ) as exc:
        failure = _describe(exc, _get_host(request))
    # Outside of the except block: the chain of an exception would carry the URL.
    raise failure


def _exchange(
    request: HTTPRequest, timeouts: Timeouts, max_body: int, sink: BinaryIO | None
) -> HTTPResponse:
    """Send and read; raises what requests, urllib3 and the socket raise."""
    adapter = find_mounted(request)
    if adapter is not None:
        return _exchange_in_process(request, adapter, timeouts, max_body, sink)
    raw = open_pooled(request, timeouts)
    try:
        body = _read_pooled(raw, max_body, sink)
    except BaseException:
        raw.close()
        raise
    finally:
        raw.release_conn()
    return HTTPResponse(
        status_code=raw.status,
        headers={name.lower(): value for name, value in raw.headers.items()},
        body=body,
        url=request.url,
    )


def find_mounted(request: HTTPRequest) -> BaseAdapter | None:
    """Find the adapter within the process that answers *request*, if there is one."""
    url = request.url.lower()
    return next(
        (adapter for prefix, adapter in _mounts if url.startswith(prefix)), None
    )


def open_pooled(request: HTTPRequest, timeouts: Timeouts) -> urllib3.BaseHTTPResponse:
    """Send by a pooled connection; the body is still to be read, or to be closed."""
    parts = urlsplit(request.url)
    route = get_pooled().get_route(request.url, parts)
    target = request.url
    if not route.is_forwarded:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return route.pool.urlopen(
            request.method,
            target,
            body=_get_body(request),
            headers=_get_headers(request),
            retries=_NO_RETRIES,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=timeouts.connect, read=timeouts.read),
            preload_content=False,
            decode_content=True,
        )
    except ValueError as exc:
        # What http.client makes of a header that cannot be sent, with its value.
        raise HTTPException from exc


def open_mounted(
    adapter: BaseAdapter, request: HTTPRequest, timeouts: Timeouts
) -> requests.Response:
    """Let a mounted adapter answer; the body is still to be read, or to be closed."""
    prepared = requests.PreparedRequest()
    prepared.method = request.method
    prepared.url = request.url
    prepared.headers = CaseInsensitiveDict(_get_headers(request))
    prepared.body = _get_body(request)
    if request.body is not None:
        prepared.headers["Content-Length"] = str(len(request.body))
    return adapter.send(
        prepared, stream=True, timeout=(timeouts.connect, timeouts.read), verify=True
    )


def _get_headers(request: HTTPRequest) -> dict[str, str]:
    headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": _ENCODINGS}
    for name, value in request.headers.items():
        if name.lower() == "user-agent":
            headers["User-Agent"] = value
        elif name.lower() == "authorization":
            headers[name] = HiddenText(value)
        elif name.lower() != "accept-encoding":
            headers[name] = value
    return headers


def _get_body(request: HTTPRequest) -> bytes | None:
    return None if request.body is None else HiddenBytes(request.body)


def _read_pooled(
    raw: urllib3.BaseHTTPResponse, max_body: int, sink: BinaryIO | None
) -> bytes:
    """Read the body; the socket keeps to the deadline by itself."""
    length: int | None = getattr(raw, "length_remaining", None)
    if length is not None:
        if length > max_body:
            raise BodyTooLargeError
        if "content-encoding" not in raw.headers and sink is None:
            return raw.read()
    return _collect(raw.stream(_CHUNK, decode_content=True), max_body, sink)


def _exchange_in_process(
    request: HTTPRequest,
    adapter: BaseAdapter,
    timeouts: Timeouts,
    max_body: int,
    sink: BinaryIO | None,
) -> HTTPResponse:
    answer = open_mounted(adapter, request, timeouts)
    try:
        body = _collect(answer.iter_content(_CHUNK), max_body, sink)
    finally:
        answer.close()
    return HTTPResponse(
        status_code=answer.status_code,
        headers={name.lower(): value for name, value in answer.headers.items()},
        body=body,
        url=request.url,
    )


def _collect(chunks: Iterable[bytes], max_body: int, sink: BinaryIO | None) -> bytes:
    """Put the pieces of a body together or into *sink*, within the limits."""
    parts = []
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_body:
            raise BodyTooLargeError
        get_time_left()
        if sink is None:
            parts.append(chunk)
        else:
            sink.write(chunk)
    get_time_left()
    return b"".join(parts)


def _get_host(request: HTTPRequest) -> str:
    return urlsplit(request.url).hostname or ""


def _describe(error: Exception, host: str) -> TransportError:
    """Turn a foreign error into ours, with nothing of its text but OpenSSL's reason."""
    chain = list(_walk(error))
    for item in chain:
        if isinstance(item, ssl.SSLCertVerificationError):
            reason = getattr(item, "verify_message", "")
            return ServerUnreachableError(
                f"the certificate of {host} does not verify: {reason}",
                is_untrusted=True,
            )
    if any(_is_timeout(item) for item in chain):
        return ServerTimeoutError(f"{host} did not answer within the time limit")
    return ServerUnreachableError(
        f"{host} gave no usable answer: {type(chain[-1]).__name__}"
    )


def _is_timeout(error: BaseException) -> bool:
    if isinstance(error, NewConnectionError):
        return False
    return isinstance(
        error, (TimeoutError, urllib3.exceptions.TimeoutError, requests.Timeout)
    )


def _walk(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and what it wraps, each once."""
    todo: list[object] = [error]
    seen: list[BaseException] = []
    while todo:
        item = todo.pop(0)
        if isinstance(item, BaseException) and item not in seen:
            seen.append(item)
            yield item
            todo += [
                item.__cause__,
                item.__context__,
                getattr(item, "reason", None),
                *item.args,
            ]
