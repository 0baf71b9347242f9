"""One request of the doctor."""

from __future__ import annotations

from ...models import FHIRServer
from ...protocol.messages import HTTPRequest, HTTPResponse
from ...servers.http import send

__all__ = ["ask"]

# The longest that one may take: a person may be waiting for the page.
_SECONDS = 5.0


def ask(request: HTTPRequest, *, server: FHIRServer | None) -> HTTPResponse:
    """
    Send *request*, and wait less long than a launch would.

    Raises:
        TransportError: no usable answer came.
    """
    return send(request, server=server, within=_SECONDS)
