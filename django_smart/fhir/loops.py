"""Calls that would block an event loop."""

from __future__ import annotations

import asyncio
import os

from django_smart.exceptions import FHIRRequestError

__all__ = ["refuse_in_event_loop"]


def refuse_in_event_loop() -> None:
    """
    Refuse to send from a thread whose event loop would wait for the answer.

    As Django's models do, and with their way out: ``DJANGO_ALLOW_ASYNC_UNSAFE``.

    Raises:
        FHIRRequestError: an event loop runs in this thread; nothing was sent.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise FHIRRequestError(
            "This call would block the event loop, so nothing was sent. In "
            "async code, await the same method of request.smart.afhir or of "
            "build_async_client(client).",
            code="fhir_sync_in_async",
        )
