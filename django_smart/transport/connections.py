"""Connections that keep to the time limit of a whole call, however slow the server."""

from __future__ import annotations

import io
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse as RawResponse
from typing import Any, NamedTuple
from urllib.parse import SplitResult

import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import (
    DEFAULT_CA_BUNDLE_PATH,
    get_environ_proxies,
    select_proxy,
)
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util import create_urllib3_context
from urllib3.util.connection import allowed_gai_family

from django_smart.protocol.messages import HiddenBytes

__all__ = ["PooledAdapter", "close", "get_pooled", "get_time_left", "limit_call"]

_POOL_SIZE = 64
# Load balancers forget idle connections after a minute or more without a word to
# either side; a request on such a connection waits for the whole read limit.
_IDLE_LIMIT = 55.0
_CONNECT_PAUSE = 0.1


class _Call(threading.local):
    """What the connections of this thread have to keep to."""

    deadline = float("inf")


_call = _Call()


class _Silence(logging.Filter):
    """
    Keeps what urllib3 says about our own calls out of the log.

    Its lines, warnings among them, hold the query: a patient's id, or worse.  What
    other code of the site does with urllib3 is logged as ever.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return _call.deadline == float("inf")


for _name in ("connection", "connectionpool", "response", "util.retry"):
    logging.getLogger(f"urllib3.{_name}").addFilter(_Silence())


@contextmanager
def limit_call(seconds: float) -> Iterator[None]:
    """
    Let everything this thread's connections do end within *seconds* from now.

    Nor may it exceed a limit around this one: of a second try, or of a server within
    the process that sends by itself.
    """
    outer = _call.deadline
    _call.deadline = min(outer, time.monotonic() + seconds)
    try:
        yield
    finally:
        _call.deadline = outer


def get_time_left() -> float:
    """Seconds left of this thread's call; raises when there are none."""
    left = _call.deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the limit of the whole call is reached")
    return left


class _BoundedReader(io.RawIOBase):
    """The receiving side of a socket that ends at a deadline, however slow the drip."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the limit of the whole call is reached")
        limit = self._sock.gettimeout()
        if limit is None or left < limit:
            self._sock.settimeout(left)
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        # The raw reader counts as a user of the socket, which closes with the last one.
        self._raw.close()
        super().close()


class _BoundedResponse(RawResponse):
    """Status line, headers and body are read against the deadline of the call."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        raw = self.fp.detach()
        self.fp = io.BufferedReader(_BoundedReader(raw, sock, _call.deadline))


class _BoundedConnection(HTTPConnection):
    """Connects and sends within the limits of the call."""

    response_class = _BoundedResponse
    _used_at = 0.0
    _is_connecting = False

    @property
    def is_connected(self) -> bool:
        return time.monotonic() - self._used_at < _IDLE_LIMIT and super().is_connected

    def connect(self) -> None:
        self._is_connecting = True
        try:
            super().connect()
        finally:
            self._is_connecting = False

    def send(self, data: Any) -> None:
        self._used_at = time.monotonic()
        if self.sock is not None:
            # Counted for all of the data, by sockets of TLS as well.  While connecting
            # it is a proxy that is asked for a tunnel.
            left = get_time_left()
            limit = float(self.timeout or 0) if self._is_connecting else left
            self.sock.settimeout(min(limit, left))
        if type(data) is bytes:
            # The header: neither this frame nor the next one shows the bearer.
            data = HiddenBytes(data)
        super().send(data)

    def _new_conn(self) -> socket.socket:
        """Connect to the first address that answers; go through all of them twice."""
        limit = float(self.timeout or 0)
        error: OSError = OSError("no address")
        for attempt in range(2):
            if attempt:
                time.sleep(min(_CONNECT_PAUSE, get_time_left()))
            for family, kind, protocol, _, address in self._look_up():
                sock = socket.socket(family, kind, protocol)
                try:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.settimeout(min(limit, get_time_left()))
                    sock.connect(address)
                    # Left as it is for the TLS handshake that may follow.
                    sock.settimeout(min(limit, get_time_left()))
                except OSError as exc:
                    sock.close()
                    error = exc
                else:
                    return sock
        if isinstance(error, TimeoutError):
            raise ConnectTimeoutError(self, "connecting took too long") from error
        raise NewConnectionError(self, f"no connection: {error}") from error

    def _look_up(self) -> list[tuple[Any, ...]]:
        host = self._dns_host.strip("[]")
        try:
            return list(
                socket.getaddrinfo(
                    host, self.port, allowed_gai_family(), socket.SOCK_STREAM
                )
            )
        except (socket.gaierror, UnicodeError) as exc:
            error = exc if isinstance(exc, socket.gaierror) else socket.gaierror()
            raise NameResolutionError(host, self, error) from exc


class _BoundedHTTPSConnection(_BoundedConnection, HTTPSConnection):
    """The same, over TLS."""


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _BoundedConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _BoundedHTTPSConnection


_POOL_CLASSES = {"http": _HTTPPool, "https": _HTTPSPool}


class _Route(NamedTuple):
    """How one host is reached."""

    pool: urllib3.HTTPConnectionPool
    is_forwarded: bool


class PooledAdapter(HTTPAdapter):
    """
    Connections of one process, and how each host is reached.

    The environment (``HTTPS_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``, …) is read
    once for each host; never the passwords of a ``.netrc``.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._routes: dict[tuple[str, str], _Route] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        super().__init__(pool_connections=_POOL_SIZE, pool_maxsize=_POOL_SIZE)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOL_CLASSES

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        # SOCKS brings connections of its own; they keep to the connect and read limit.
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _POOL_CLASSES
        return manager

    def get_route(self, url: str, parts: SplitResult) -> _Route:
        """Tell how the host of *url* is reached; *parts* are its parts."""
        route = self._routes.get(parts[:2])
        if route is None:
            if len(self._routes) >= _POOL_SIZE:
                self._routes.clear()
            route = self._routes[parts[:2]] = self._build_route(url, parts)
        return route

    def _build_route(self, url: str, parts: SplitResult) -> _Route:
        proxy = select_proxy(url, get_environ_proxies(url))
        manager = self.poolmanager
        if proxy:
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            manager = self.proxy_manager_for(proxy)
        is_https = parts.scheme == "https"
        pool = manager.connection_from_host(
            parts.hostname,
            parts.port,
            parts.scheme,
            pool_kwargs={"ssl_context": self._get_context()} if is_https else None,
        )
        is_forwarded = bool(proxy) and not is_https
        return _Route(pool, is_forwarded and not str(proxy).startswith("socks"))

    def _get_context(self) -> ssl.SSLContext:
        """Return the TLS settings for the certificates the environment trusts."""
        location = (
            os.environ.get("REQUESTS_CA_BUNDLE")
            or os.environ.get("CURL_CA_BUNDLE")
            or DEFAULT_CA_BUNDLE_PATH
        )
        context = self._contexts.get(location)
        if context is None:
            context = create_urllib3_context(
                ssl_minimum_version=ssl.TLSVersion.TLSv1_2,
                cert_reqs=ssl.CERT_REQUIRED,
            )
            context.check_hostname = True
            if os.path.isdir(location):  # noqa: PTH112  # a string of the environment
                context.load_verify_locations(capath=location)
            else:
                context.load_verify_locations(cafile=location)
            self._contexts[location] = context
        return context


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
    if pooled is not None and pooled.pid == os.getpid():
        pooled.close()
