"""
Whether the user has just signed in to this site, by other means than an EHR.

Only then can they let an EHR account sign them in. At a session that was left open,
the next user of the computer could otherwise choose that for an account of their own,
and come back after a sign-out and a changed password.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY
from django.http import HttpRequest
from django.utils import timezone
from django.utils.module_loading import import_string

from ..backends import SMARTAuthenticationBackend
from ..launches.request_state import get_user

__all__ = ["has_just_signed_in", "note_sign_in"]

_FRESH = timedelta(minutes=10)
_KEY = "smart_signed_in"


def note_sign_in(request: HttpRequest | None, user: Any, **_kwargs: Any) -> None:
    """Note in the session who has signed in, and when; a receiver."""
    session: Any = getattr(request, "session", None)
    if session is None or not session.modified:
        # Not Django's login(), which stores the user in the session: APIs also send
        # the signal for a token, which some issue for a session that was left open.
        return
    path = session.get(BACKEND_SESSION_KEY)
    if path and issubclass(import_string(path), SMARTAuthenticationBackend):
        # An EHR that is still open in this browser asks for no password.
        session.pop(_KEY, None)
    else:
        # Of whom: staff may be shown the site as another user in the same session.
        session[_KEY] = [str(user.pk), timezone.now().timestamp()]


def has_just_signed_in(request: HttpRequest) -> bool:
    """Return whether the user of *request* signed in within the last ten minutes."""
    user = get_user(request)
    noted = request.session.get(_KEY) if user is not None else None
    if user is None or noted is None:
        return False
    age: float = timezone.now().timestamp() - noted[1]
    return str(user.pk) == noted[0] and 0 <= age < _FRESH.total_seconds()
