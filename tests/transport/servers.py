"""Servers on loopback that do exactly what a test says."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator

from django_smart import transport
from django_smart.protocol.messages import HTTPRequest, HTTPResponse

__all__ = [
    "CANARY",
    "LOOPBACK",
    "Handler",
    "Server",
    "answer",
    "assert_tells_nothing",
    "close_after",
    "ends_early",
    "send",
]

CANARY = "canary-8c1f"
LOOPBACK = frozenset({"127.0.0.1", "localhost"})
Handler = Callable[[socket.socket, bytes], object]


class Server:
    """Answers each request on a loopback socket with *handler*, in threads."""

    def __init__(
        self,
        handler: Handler,
        *,
        context: ssl.SSLContext | None = None,
        pause: float = 0,
    ) -> None:
        """*pause*: seconds between two looks at a request that comes."""
        self.requests: list[bytes] = []
        self.connections = 0
        self._handler = handler
        self._context = context
        self._pause = pause
        self._sockets: list[socket.socket] = []
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *args: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    @property
    def url(self) -> str:
        scheme = "https" if self._context else "http"
        return f"{scheme}://127.0.0.1:{self.port}/fhir/metadata?code={CANARY}"

    def wait(self, seconds: float) -> bool:
        """Sleep until the test is over; whether it is."""
        return self._stopped.wait(seconds)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            with sock:
                while request := self._read(sock):
                    self.requests.append(request)
                    if self._handler(sock, request) is False:
                        return

    def _read(self, sock: socket.socket) -> bytes:
        data = bytearray()
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return b""
            data += piece
        size = data.index(b"\r\n\r\n") + 4
        for line in bytes(data[:size]).lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                size += int(line.partition(b":")[2])
        while len(data) < size:
            if self._pause:
                self.wait(self._pause)
            piece = sock.recv(65536)
            if not piece:
                return b""
            data += piece
        return bytes(data)


def answer(
    body: bytes = b"{}", *, status: str = "200 OK", headers: tuple[str, ...] = ()
) -> Handler:
    """Build a handler that sends one complete answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    message = "\r\n".join(lines).encode() + body
    return lambda sock, request: sock.sendall(message)


def close_after(message: bytes) -> Handler:
    """Build a handler that sends *message* and closes the connection."""

    def handle(sock, request):
        sock.sendall(message)
        return False

    return handle


def send(
    url: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    connect: float = 20,
    read: float = 20,
    total: float = 40,
    max_body: int = 1_000_000,
    insecure_hosts: frozenset[str] = LOOPBACK,
) -> HTTPResponse:
    return transport.send(
        HTTPRequest(method=method, url=url, headers=headers or {}, body=body),
        timeouts=transport.Timeouts(connect=connect, read=read, total=total),
        max_body=max_body,
        insecure_hosts=insecure_hosts,
    )


@contextlib.contextmanager
def ends_early(seconds: float = 10) -> Iterator[None]:
    """Fail if the block takes longer, which is far more than a busy machine adds."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def assert_tells_nothing(error: BaseException) -> None:
    """No URL, header or body in the text, in the chain, or in the frames."""
    assert error.__cause__ is None
    assert error.__context__ is None
    report = traceback.TracebackException.from_exception(error, capture_locals=True)
    report.stack[:] = [f for f in report.stack if f.filename == transport.__file__]
    assert report.stack
    assert CANARY not in "".join(report.format())
