"""``request.smart`` and its type, at the path that users import them from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from django.http import HttpRequest

from .launches.context import SMARTContext

__all__ = ["SMARTContext", "SMARTHttpRequest"]


class SMARTHttpRequest(HttpRequest):
    """
    The type of a request behind the middleware, only for annotations.

    Annotate views with it, or derive your own request class from it.
    """

    smart: SMARTContext
    asmart: Callable[[], Awaitable[SMARTContext]]
