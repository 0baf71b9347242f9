"""The one HTTP edge; see :mod:`django_smart.transport.edge`."""

from __future__ import annotations

from django_smart.transport.connections import close
from django_smart.transport.edge import (
    ResponseStream,
    Timeouts,
    mount,
    mounted,
    open_stream,
    send,
    unmount,
)

__all__ = [
    "ResponseStream",
    "Timeouts",
    "close",
    "mount",
    "mounted",
    "open_stream",
    "send",
    "unmount",
]
