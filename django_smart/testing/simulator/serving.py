"""Serving the simulated EHR over real sockets, in a background thread."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["running_server"]


_BACKLOG = 128  # connections that may wait to be accepted


class _QuietHandler(WSGIRequestHandler):
    """Writes no log, because URLs contain codes."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 (theirs)
        pass


class _Server(ThreadedWSGIServer):
    """
    A threaded server that leaves nothing behind.

    Werkzeug's own does not wait for its threads, so a connection that a browser opened
    in advance would still be open after the server was closed.
    """

    daemon_threads = False
    block_on_close = True

    def __init__(
        self,
        host: str,
        port: int,
        app: WSGIApplication,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        # Werkzeug would end the process if the address is taken; this raises OSError.
        with socket.create_server((host, port), backlog=_BACKLOG) as listener:
            super().__init__(host, port, app, _QuietHandler, fd=listener.fileno())
        # Not given to Werkzeug: it would shake hands with one browser at a time.
        self.ssl_context = ssl_context

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self.ssl_context is not None:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        with self._guard:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        with self._guard:
            for connection in self._connections:
                # The thread that reads from it sees the end, and closes it.
                with suppress(OSError):
                    # Not an SSLSocket's own, which takes its state from that thread.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        super().server_close()

    # A browser that does not like the certificate, or ends a connection in its own way,
    # is no news.

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ssl.SSLError):
            super().handle_error(request, client_address)

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 (theirs)
        if not isinstance(sys.exception(), ssl.SSLError):
            super().log(type, message, *args)


@contextmanager
def running_server(
    app: WSGIApplication,
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """Serve *app*, yield the port, and close everything at the end."""
    server = _Server(host, port, app, ssl_context)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
