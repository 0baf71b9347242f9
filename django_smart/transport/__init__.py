"""The one HTTP edge; see :mod:`django_smart.transport.edge`."""

from __future__ import annotations

from django_smart.transport.connections import close
from django_smart.transport.edge import Timeouts, mount, mounted, send, unmount
from django_smart.transport.streaming import ResponseStream, open_stream

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
