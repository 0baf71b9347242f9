"""requests' own adapter, whose connections keep to the limits of a whole call."""

from __future__ import annotations

import io
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache, partial
from http.client import HTTPResponse as RawResponse
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util import create_urllib3_context

from django_smart.protocol.messages import HiddenBytes

__all__ = [
    "PeerCheck",
    "PooledAdapter",
    "close",
    "get_pooled",
    "get_time_left",
    "limit_call",
    "walk",
]

_POOL_SIZE = 64
_SAFE_METHODS = frozenset({"GET", "HEAD"})
# Seconds that a connection may have been idle.  Load balancers forget it after a minute
# or more without a word to either side; a request on such a connection waits for the
# whole read limit.  One that must not be sent twice does not take the risk.
_MAX_IDLE = 55.0
_MAX_IDLE_OF_WRITES = 3.0
_CONNECT_PAUSE = 0.1
# Bytes that are read after the deadline: a server that never stops sending must not
# keep the call going.
_MOST_LATE = 1024 * 1024
# What urllib3 puts in its log, and in its errors, in place of the path and query.
_HIDDEN = "/***"


PeerCheck = Callable[[str], None]


class _Call:
    """What the connection of one call has to keep to, and what it did."""

    def __init__(self, deadline: float, check_peer: PeerCheck | None = None) -> None:
        self.deadline = deadline
        self.check_peer = check_peer
        self.max_idle = _MAX_IDLE
        self.target = ""
        self.is_kept_alive = False


class _Current(threading.local):
    """The call of this thread."""

    call = _Call(float("inf"))


_current = _Current()


@contextmanager
def limit_call(
    seconds: float, *, check_peer: PeerCheck | None = None
) -> Iterator[None]:
    """
    Let everything this thread's connections do end within *seconds* from now.

    Nor may it exceed a limit around this one: of a second try, or of a server within
    the process that sends on its own.

    Args:
        check_peer: called with the address that a connection leads to, before anything
            is sent; raises if it may not be used.
    """
    outer = _current.call
    deadline = min(outer.deadline, time.monotonic() + seconds)
    _current.call = _Call(deadline, check_peer)
    try:
        yield
    finally:
        _current.call = outer


def get_time_left() -> float:
    """Seconds left of this thread's call; raises when there are none."""
    left = _current.call.deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time limit of the whole call is reached")
    return left


class _BoundedReader(io.RawIOBase):
    """
    The receiving side of a socket that ends at a deadline, however slow the drip.

    Data that had arrived by then is still read: if this process was suspended, it may
    hold a refresh token that the server will not send again.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline
        self._late = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        limit = self._sock.gettimeout()
        if left > 0:
            if limit is None or left < limit:
                self._sock.settimeout(left)
            # It also raises if both the limit and the data came during a suspension.
            with suppress(TimeoutError):
                return self._sock.recv_into(buffer)
        self._sock.settimeout(0)
        try:
            number = self._sock.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            number = None
        finally:
            self._sock.settimeout(limit)
        if left <= 0:
            self._late += number or 0
        if number is None or self._late > _MOST_LATE:
            raise TimeoutError("the time limit of the whole call is reached")
        return number

    def close(self) -> None:
        # The raw reader counts as a user of the socket, which closes with the last one.
        self._raw.close()
        super().close()


class _BoundedResponse(RawResponse):
    """Status line, headers and body are read against the deadline of the call."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_BoundedReader(raw, sock, _current.call.deadline))

    def begin(self) -> None:
        super().begin()
        # Lines that are no headers: urllib3 would write them to the log.
        self.msg.set_payload("")
        self.msg.defects.clear()


class _BoundedOptions(list[Any]):
    """Options of a socket; urllib3 reads them before it tries each address."""

    def __iter__(self) -> Iterator[Any]:
        get_time_left()
        return super().__iter__()


class _BoundedConnection(HTTPConnection):
    """
    Connects and sends within the limits of the call.

    It replaces of http.client ``response_class``, ``send`` and the attribute ``sock``,
    and of urllib3 the methods that are named at each.
    """

    response_class = _BoundedResponse
    _sock: socket.socket | None = None
    _used_at = 0.0
    _is_connecting = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.socket_options = _BoundedOptions(self.socket_options or ())

    @property
    def sock(self) -> Any:
        return self._sock

    @sock.setter
    def sock(self, sock: Any) -> None:
        # Set as soon as there is a connection: no byte was sent, not even of TLS.
        self._sock = sock
        if sock is not None:
            sock.settimeout(min(float(self.timeout or 0), get_time_left()))
            self._check_peer()

    def _check_peer(self) -> None:
        if _current.call.check_peer is not None:
            _current.call.check_peer(self.sock.getpeername()[0])

    # Replaces urllib3's HTTPConnection.is_connected: it knows nothing of idle times.
    @property
    def is_connected(self) -> bool:
        idle = time.monotonic() - self._used_at
        return idle < _current.call.max_idle and super().is_connected

    # Replaces urllib3's HTTPConnection.connect and HTTPSConnection.connect: they know
    # nothing of the whole call.
    def connect(self) -> None:
        self._is_connecting = True
        self.timeout = min(float(self.timeout or 0), get_time_left())
        try:
            super().connect()
        finally:
            self._is_connecting = False
            self._used_at = 0.0

    # Replaces urllib3's HTTPConnection.putrequest, which would send what is logged.
    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        call = _current.call
        call.is_kept_alive = self._sock is not None and self._used_at > 0
        if call.is_kept_alive:
            # It may have been made for a server that has another rule.
            self._check_peer()
        super().putrequest(method, call.target, *args, **kwargs)

    def send(self, data: Any) -> None:
        if self._sock is not None:
            # Counted for all of the data, by sockets of TLS as well.  While connecting
            # it is a proxy that is asked for a tunnel.
            left = get_time_left()
            limit = float(self.timeout or 0) if self._is_connecting else left
            self._sock.settimeout(min(limit, left))
        if type(data) is bytes:
            # The header: neither this frame nor the next one shows the bearer.
            data = HiddenBytes(data)
        super().send(data)
        self._used_at = time.monotonic()


def _bound(manager: urllib3.PoolManager) -> None:
    """Have *manager* make connections that keep to the limits, of SOCKS as well."""
    pools: dict[str, Any] = {}
    classes: dict[str, Any] = manager.pool_classes_by_scheme
    for scheme, pool in classes.items():
        connection = type("Connection", (_BoundedConnection, pool.ConnectionCls), {})
        pools[scheme] = type("Pool", (pool,), {"ConnectionCls": connection})
    manager.pool_classes_by_scheme = pools


class PooledAdapter(HTTPAdapter):
    """
    Connections of one process.

    The environment (``HTTPS_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``, …) is read
    once; never the passwords of a ``.netrc``.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        super().__init__(pool_connections=_POOL_SIZE, pool_maxsize=_POOL_SIZE)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        is_new = proxy not in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **kwargs)
        if is_new:
            _bound(manager)
        return manager

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> Any:
        host, tls = super().build_connection_pool_key_attributes(*args, **kwargs)
        if host["scheme"] == "https":
            tls["ssl_context"] = self._context
        return host, tls

    def cert_verify(self, *args: Any) -> None:
        """Do nothing, as the context has it all: upstream's reads it once more."""

    def request_url(
        self, request: requests.PreparedRequest, proxies: Mapping[str, str] | None
    ) -> str:
        """Tell urllib3 nothing that it may log; the connection knows the target."""
        _current.call.target = (
            super().request_url(request, proxies) if proxies else request.path_url
        )
        return _HIDDEN

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """
        Send, and once more if the server cannot have taken the request.

        That is, without a connection; and for GET and HEAD also if the server had
        closed the kept-alive one, which shows only when it is used.
        """
        call = _current.call
        is_safe = request.method in _SAFE_METHODS
        call.max_idle = _MAX_IDLE if is_safe else _MAX_IDLE_OF_WRITES
        parts = urlsplit(request.url or "")
        kwargs["proxies"] = _get_proxies(f"{parts.scheme}://{parts.netloc}")
        if kwargs["proxies"]:
            # The proxy looks up the name, and decides where it lets us go.
            call.check_peer = None
        send = partial(super().send, request, *args, **kwargs)
        handled = sys.exception()
        try:
            return send()
        except requests.ConnectionError as exc:
            if is_safe and call.is_kept_alive and _was_closed(exc, handled):
                pause = 0.0
            elif _is_unconnected(exc, handled):
                pause = _CONNECT_PAUSE
            else:
                raise
        time.sleep(min(pause, get_time_left()))
        call.max_idle = 0
        return send()

    @cached_property
    def _context(self) -> ssl.SSLContext:
        """TLS with the certificates that the environment trusts."""
        location = (
            os.environ.get("REQUESTS_CA_BUNDLE")
            or os.environ.get("CURL_CA_BUNDLE")
            or DEFAULT_CA_BUNDLE_PATH
        )
        context = create_urllib3_context(
            ssl_minimum_version=ssl.TLSVersion.TLSv1_2,
            cert_reqs=ssl.CERT_REQUIRED,
        )
        context.check_hostname = True
        if os.path.isdir(location):  # noqa: PTH112  # a string of the environment
            context.load_verify_locations(capath=location)
        else:
            context.load_verify_locations(cafile=location)
        return context


@lru_cache(maxsize=_POOL_SIZE)
def _get_proxies(origin: str) -> dict[str, str]:
    """Return the proxy for *origin*, if there is one; requests would look each time."""
    proxy = select_proxy(origin, get_environ_proxies(origin))
    return {"all": proxy} if proxy else {}


def _is_unconnected(error: Exception, handled: BaseException | None) -> bool:
    chain = list(walk(error, handled))
    return any(
        isinstance(item, (NewConnectionError, ConnectTimeoutError)) for item in chain
    ) and not any(isinstance(item, NameResolutionError) for item in chain)


def _was_closed(error: Exception, handled: BaseException | None) -> bool:
    closed = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
    return any(isinstance(item, closed) for item in walk(error, handled))


def walk(
    error: BaseException, handled: BaseException | None
) -> Iterator[BaseException]:
    """
    Yield *error* and what it wraps, each once.

    Args:
        handled: the exception that the caller was handling before, which Python adds to
            the chain although it says nothing about this request.
    """
    todo: list[object] = [error]
    seen = [handled]
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


_pooled: PooledAdapter | None = None


def get_pooled() -> PooledAdapter:
    """Return this process's connections: a fork must not share its parent's sockets."""
    global _pooled
    pooled = _pooled
    if pooled is None or pooled.pid != os.getpid():
        # Two threads at once make two, and one of them is dropped: no lock to inherit.
        pooled = _pooled = PooledAdapter()
    return pooled


def close() -> None:
    """Close this process's idle connections and forget what the environment said."""
    global _pooled
    pooled, _pooled = _pooled, None
    _get_proxies.cache_clear()
    if pooled is not None and pooled.pid == os.getpid():
        pooled.close()
