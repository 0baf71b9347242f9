"""
The one HTTP edge: every request of the package leaves through :func:`send`.

It adds what no caller may forget: https with a verified certificate, no redirects, no
cookies, a limit for the size of an answer and one for the time of the whole call, and
errors whose text and chain hold no URL, header or body.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http.client import HTTPException
from typing import TypeVar
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
from django_smart.transport.connections import (
    PeerCheck,
    close,
    get_pooled,
    limit_call,
    walk,
)

__all__ = [
    "ResponseStream",
    "Timeouts",
    "close",
    "is_in_event_loop",
    "mount",
    "mounted",
    "open_stream",
    "send",
]

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

_CHUNK = 65536
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseStream:
    """
    An answer whose body is still on its way.

    Attributes:
        head: status and headers; its ``body`` is empty.
        chunks: the body after content decoding, once.  Reading it raises
            ``TransportError`` as :func:`send` does.
    """

    head: HTTPResponse
    chunks: Iterator[bytes] = field(repr=False)


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


@contextmanager
def mounted(prefix: str, adapter: BaseAdapter) -> Iterator[None]:
    """:func:`mount` for the length of a ``with`` block."""
    global _mounts
    mount(prefix, adapter)
    try:
        yield
    finally:
        _mounts = tuple(item for item in _mounts if item[0] != prefix.lower())


def send(
    request: HTTPRequest,
    *,
    timeouts: Timeouts,
    max_body: int,
    insecure_hosts: frozenset[str],
    check_peer: PeerCheck | None = None,
) -> HTTPResponse:
    """
    Send *request* and return the whole answer, whatever its status.

    Args:
        request: complete, with its ``Authorization`` if it has one.
        timeouts: limits in seconds.
        max_body: bytes the body may have after decompression.
        insecure_hosts: names, without port, that plain http is accepted for.
        check_peer: called with the address that the connection leads to, before
            anything is sent; raises if it may not be used.  Not called if a proxy or a
            mounted adapter is used.

    Returns:
        The response; a redirect is returned, never followed.

    Raises:
        InsecureURLError: the URL is not https, or has user information or a fragment.
        ServerUnreachableError: no connection, a broken one, or a wrong certificate.
        ServerTimeoutError: one of the limits was reached.
        ResponseTooLargeError: the body is larger than *max_body*.

    Spec: SMART App Launch 2.2, TLS and "SHALL be authenticated" throughout (TOK-05,
    TOK-06, FHIR-03, SEC-04).  Once a byte has gone out, only a GET or HEAD is sent
    again, if the server had closed the kept-alive connection.
    """
    validate_https_url(request.url, insecure_hosts=insecure_hosts, what="URL")

    def exchange() -> HTTPResponse:
        with (
            limit_call(timeouts.total, check_peer=check_peer),
            closing(_open(request, timeouts)) as answer,
        ):
            body = b"".join(_read(answer, request, max_body))
            return _build_response(request, answer, body)

    response = _call_guarded(exchange, request)
    logger.debug(
        "%s to %s: %s", request.method, _get_host(request), response.status_code
    )
    return response


@contextmanager
def open_stream(
    request: HTTPRequest,
    *,
    timeouts: Timeouts,
    max_body: int,
    insecure_hosts: frozenset[str],
    check_peer: PeerCheck | None = None,
) -> Iterator[ResponseStream]:
    """
    Send *request*; the body is read inside the ``with`` block, and ends with it.

    Args and errors are those of :func:`send`; the limit of the
    whole call goes on while the body is read.
    """
    validate_https_url(request.url, insecure_hosts=insecure_hosts, what="URL")

    def open_answer() -> requests.Response:
        # The connection keeps to the limit that holds when the answer begins.
        with limit_call(timeouts.total, check_peer=check_peer):
            return _open(request, timeouts)

    with closing(_call_guarded(open_answer, request)) as answer:
        yield ResponseStream(
            head=_build_response(request, answer),
            chunks=_guard(_read(answer, request, max_body), request),
        )


def is_in_event_loop() -> bool:
    """Return whether an event loop runs in this thread, which must not wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _guard(chunks: Iterator[bytes], request: HTTPRequest) -> Iterator[bytes]:
    read_one = partial(next, chunks, None)
    while (chunk := _call_guarded(read_one, request)) is not None:
        yield chunk


def _call_guarded(function: Callable[[], _T], request: HTTPRequest) -> _T:
    """Call *function*, with our errors in the place of other libraries' ones."""
    failure: TransportError
    handled = sys.exception()
    try:
        return function()
    except (requests.RequestException, HTTPError, HTTPException, OSError) as exc:
        failure = _describe(exc, _get_host(request), handled)
    # Outside of the except block: the chain of an exception would carry the URL.
    raise failure


def _open(request: HTTPRequest, timeouts: Timeouts) -> requests.Response:
    """Send; the body is still to be read, or to be closed."""
    url = request.url.lower()
    adapter: BaseAdapter = (
        next((adapter for prefix, adapter in _mounts if url.startswith(prefix)), None)
        or get_pooled()
    )
    prepared = requests.PreparedRequest()
    # Not by its prepare(), which would write the URL in another way.
    prepared.method = request.method
    prepared.url = request.url
    prepared.headers = CaseInsensitiveDict(_get_headers(request))
    if request.body is not None:
        prepared.body = HiddenBytes(request.body)
        prepared.headers["Content-Length"] = str(len(request.body))
    try:
        return adapter.send(
            prepared, stream=True, timeout=(timeouts.connect, timeouts.read)
        )
    except ValueError as exc:
        # What http.client makes of a header that cannot be sent, with its value.
        raise HTTPException from exc


def _build_response(
    request: HTTPRequest, response: requests.Response, body: bytes = b""
) -> HTTPResponse:
    headers = dict(response.headers.lower_items())
    if "retry-after" in headers:
        # Of receipt, where the server has no clock (RFC 9110 section 6.6.1).
        headers.setdefault("date", formatdate(usegmt=True))
    return HTTPResponse(
        status_code=response.status_code,
        headers=headers,
        body=body,
        url=request.url,
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


def _read(
    response: requests.Response, request: HTTPRequest, max_body: int
) -> Iterator[bytes]:
    """Yield the pieces of a body, within the limits."""
    size: int = getattr(response.raw, "length_remaining", None) or 0
    if size <= max_body:  # as announced
        size = 0
        for chunk in response.iter_content(_CHUNK):
            size += len(chunk)
            if size > max_body:
                # An error report shows the variables of this frame.
                chunk = b""
                break
            yield chunk
    if size > max_body:
        raise ResponseTooLargeError(
            f"{_get_host(request)} sent more than {max_body} bytes"
        )


def _get_host(request: HTTPRequest) -> str:
    return urlsplit(request.url).hostname or ""


def _describe(
    error: Exception, host: str, handled: BaseException | None
) -> TransportError:
    """Convert a foreign error to ours; of its text, only OpenSSL's reason is kept."""
    chain = list(walk(error, handled))
    for item in chain:
        if isinstance(item, ssl.SSLCertVerificationError):
            reason = getattr(item, "verify_message", "")
            return ServerUnreachableError(
                f"the certificate of {host} is not trusted: {reason}",
                is_untrusted=True,
            )
    if any(_is_timeout(item) for item in chain):
        return ServerTimeoutError(f"{host} did not respond within the time limit")
    if isinstance(chain[-1], socket.gaierror):
        return ServerUnreachableError(f"DNS cannot resolve {host}")
    if isinstance(chain[-1], ConnectionRefusedError):
        return ServerUnreachableError(f"{host} refused the connection")
    return ServerUnreachableError(
        f"the connection to {host} failed: {type(chain[-1]).__name__}"
    )


def _is_timeout(error: BaseException) -> bool:
    if isinstance(error, NewConnectionError):
        return False
    return isinstance(
        error, (TimeoutError, urllib3.exceptions.TimeoutError, requests.Timeout)
    )
