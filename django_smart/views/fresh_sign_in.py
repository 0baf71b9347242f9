"""
When users may let a connected EHR account sign them in.

They must have just signed in to this site, by other means than an EHR. At a session
that was left open, the next user of the computer could otherwise choose that for an
account of their own, and come back after a sign-out and a changed password.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth import BACKEND_SESSION_KEY
from django.http import HttpRequest
from django.utils import timezone
from django.utils.module_loading import import_string

from ..backends import SMARTAuthenticationBackend
from ..error_pages.retry import find_ehr_sign_in, find_site_sign_in
from ..launches.frames import is_framed
from ..launches.held import is_protected
from ..launches.prefix import get_protocol_url
from ..launches.request_state import get_user
from ..models import Identity

__all__ = ["build_choice_url", "may_choose", "note_sign_in"]

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


def build_choice_url(identity: Identity, *, next_url: str = "") -> str:
    """Return the page where its user chooses whether *identity* signs them in."""
    query = {"account": str(identity.pk)} | ({"next": next_url} if next_url else {})
    return f"{get_protocol_url('connections')}?{urlencode(query)}"


def may_choose(
    request: HttpRequest, identity: Identity, *, later: bool = False
) -> bool:
    """
    Return whether the signed-in user can let *identity*, their own, sign them in.

    Args:
        later: also if they have to sign in again first.
    """
    user = get_user(request)
    # The page around a frame could get the click by laying its own over ours.
    if user is None or is_framed(request) or is_protected(user, identity.server):
        return False
    if _has_just_signed_in(request, user):
        return True
    can_sign_in_again = find_site_sign_in(request, "") and not find_ehr_sign_in(user)
    return later and bool(can_sign_in_again)


def _has_just_signed_in(request: HttpRequest, user: Any) -> bool:
    noted = request.session.get(_KEY)
    if noted is None:
        return False
    age: float = timezone.now().timestamp() - noted[1]
    return str(user.pk) == noted[0] and 0 <= age < _FRESH.total_seconds()
