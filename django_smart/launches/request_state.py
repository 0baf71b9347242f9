"""A request's user, and the package's own state besides ``request.smart``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest

if TYPE_CHECKING:
    from ..models import FHIRServer
    from .browser import Browser
    from .context import SMARTContext
    from .prefix import LaunchPrefix

__all__ = ["RequestState", "get_request_state", "get_user"]

_ATTRIBUTE = "_smart_state"


@dataclass(eq=False, kw_only=True, repr=False, slots=True)
class RequestState:
    """
    The state of one request.

    Attributes:
        context: what the middleware set as ``request.smart``; ``None`` if the request
            did not pass it.
        prefix: the launch prefix that the middleware removed from the path.
        is_checked: the middleware has checked the key of the prefix.
        browser: set when :func:`.browser.get_browser` is first called.
        is_frame_known: a view has called :func:`.frames.set_frame`.
        frame_server: the server that shows the response in a frame, if that is known
            and the response is for a frame.
        unneeded_cookies: names of cookies that the response deletes.
    """

    context: SMARTContext | None = None
    prefix: LaunchPrefix | None = None
    is_checked: bool = False
    browser: Browser | None = None
    is_frame_known: bool = False
    frame_server: FHIRServer | None = None
    unneeded_cookies: Collection[str] = ()


def get_request_state(request: HttpRequest) -> RequestState:
    """
    Return the state of *request*, created if there is none.

    A request that did not pass through the middleware has none yet. A request of Django
    REST framework shares the state of the request that it wraps.
    """
    state: RequestState | None = getattr(request, _ATTRIBUTE, None)
    if state is None:
        state = RequestState()
        setattr(request, _ATTRIBUTE, state)
    return state


def get_user(request: HttpRequest) -> Any:
    """Return the signed-in user; ``None`` without one, or without authentication."""
    user = getattr(request, "user", None)
    return user if user is not None and user.is_authenticated else None
