"""
The cookies that bind launches to a browser: one for each launch.

Session keys change at login, session data is overwritten by concurrent callbacks, and
signed-cookie sessions change at each save. So each launch has a random secret in a
cookie of its own, whose name contains part of the digest of its key. The cookie is set
when the launch starts, gets another secret when the browser comes back from the EHR,
and is deleted when the launch ends. The row keeps the digests of both secrets: only the
second one opens the launch, and a sign-out that carries either of them ends it.

Two small cookies are about the browser as a whole. One remembers the first launch that
completed, until there are several: pages outside every launch may use the only one. The
other marks the server in whose frame this browser is, before there is any launch.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

from django.db import router
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from ..conf import conf
from ..fields import digest
from ..models import Launch
from .request_state import get_request_state

__all__ = [
    "FRAME_MARK",
    "Browser",
    "forget_ended",
    "get_browser",
    "make_secret",
    "peek_browser",
]

#: Ends the name of the cookie that says in whose frame the browser is.
FRAME_MARK = "_frame"
# In place of the first launch that completed.
_SEVERAL = "several"
# 64 bits of a digest, which tell the launches of one browser apart.
_PART_LENGTH = 16
_PART = re.compile(f"[0-9a-f]{{{_PART_LENGTH}}}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_SERVER = re.compile(r"[0-9]{1,18}")
# The frame of a page of this site, whose windows have the same cookies.
_OWN_FRAME = "0"


class Browser:
    """One request's view of these cookies, and the changes for its response."""

    def __init__(self, request: HttpRequest) -> None:
        name = conf.SMART_BROWSER_COOKIE_NAME
        self._is_secure = request.is_secure()
        # __Host-: no other host of the domain can plant it (RFC 6265bis, 4.1.3.2).
        self._name = f"__Host-{name}" if self._is_secure else name
        cookies = request.COOKIES
        # By part: another site on this host may use a name that only begins alike.
        self._secrets = {
            part: value
            for name, value in cookies.items()
            if name.startswith(f"{self._name}_")
            and _PART.fullmatch(part := name.removeprefix(f"{self._name}_"))
            and _SECRET.fullmatch(value)
        }
        self._first = cookies.get(self._name, "")
        mark = cookies.get(self._name + FRAME_MARK, "")
        self._frame = mark if _SERVER.fullmatch(mark) else ""
        self._changes: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Browser: {len(self._secrets)} launches>"

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the secrets that came with the request."""
        return tuple(map(digest, self._secrets.values()))

    def opens(self, launch: Launch) -> bool:
        """Whether this browser has the secret that *launch* has now."""
        return self._has(launch, launch.browser_digest)

    def knows(self, launch: Launch) -> bool:
        """Whether it has that, or the secret with which *launch* was started."""
        return self.opens(launch) or self._has(launch, launch.start_digest)

    def _has(self, launch: Launch, expected: str) -> bool:
        secret = self._secrets.get(_get_part(launch), "")
        return bool(secret) and secrets.compare_digest(digest(secret), expected)

    def is_only(self, launch: Launch) -> bool:
        """
        Whether no other launch has ever completed in this browser.

        If another one has, its tabs may still show another patient, even after their
        launch has ended and its row was deleted.
        """
        return self._first == _get_part(launch)

    def start(self, launch: Launch) -> None:
        """Give *launch*, which is about to be stored, its first secret."""
        secret = make_secret()
        launch.start_digest = launch.browser_digest = digest(secret)
        self.replace(launch, secret)

    def note_open(self, launch: Launch) -> None:
        """Remember that *launch* has completed."""
        part = _get_part(launch)
        self._note_first(part if self._first in {"", part} else _SEVERAL)

    def replace(self, launch: Launch, secret: str) -> None:
        """Keep the other *secret* that *launch* was stored with."""
        part = _get_part(launch)
        self._secrets[part] = self._changes[f"{self._name}_{part}"] = secret

    def _note_first(self, value: str) -> None:
        if self._first != value:
            self._first = self._changes[self._name] = value

    def set_aside(self, launch: Launch) -> None:
        """Leave *launch* out of what this request ends."""
        self._secrets.pop(_get_part(launch), None)

    def keep(self, launches: Iterable[Launch]) -> None:
        """Delete the cookies of all launches but these."""
        for part in self._secrets.keys() - set(map(_get_part, launches)):
            del self._secrets[part]
            self._changes[f"{self._name}_{part}"] = ""

    def start_over(self) -> None:
        """
        Count launches anew where no URL says which one is meant: somebody else is here.
        """
        if not conf.SMART_LAUNCH_PREFIX:
            self._note_first("")

    @property
    def frame(self) -> int | None:
        """Primary key of the server in whose frame this browser is, if any."""
        return None if self._frame in {"", _OWN_FRAME} else int(self._frame)

    def enter_frame(self, server_id: int | None) -> bool:
        """
        Mark this as the browser inside a frame of this server, with separate cookies.

        Args:
            server_id: ``None`` in a frame of this site itself, with the cookies of its
                windows.

        Returns:
            Whether the mark came back, so that cookies work there.
        """
        mark = _OWN_FRAME if server_id is None else str(server_id)
        if self._frame == mark:
            return True
        self._frame = self._changes[self._name + FRAME_MARK] = mark
        return False

    def apply(self, response: HttpResponseBase) -> None:
        """Write the changes, if any, to *response*."""
        for name, value in self._changes.items():
            response.set_cookie(
                name,
                value,
                max_age=None if value else 0,
                httponly=True,
                secure=self._is_secure,
                samesite="Lax",
            )


def get_browser(request: HttpRequest) -> Browser:
    """Return the request's :class:`Browser`; there is one for each request."""
    state = get_request_state(request)
    if state.browser is None:
        state.browser = Browser(request)
    return state.browser


def peek_browser(request: HttpRequest) -> Browser:
    """Like :func:`get_browser`, for callers whose response does not depend on it."""
    return get_request_state(request).browser or Browser(request)


def forget_ended(browser: Browser) -> list[Launch]:
    """Delete cookies of launches that are over; return the others, newest first."""
    if not browser.digests:
        return []
    # Not from a replica, which may not have the launches yet that began just now.
    rows = Launch.objects.using(router.db_for_write(Launch)).known_to(browser.digests)
    now = timezone.now()
    kept = [
        launch
        for launch in rows.order_by("-pk")
        if launch.status in Launch.UNDER_WAY or launch.is_live(now)
    ]
    browser.keep(kept)
    return kept


def make_secret() -> str:
    """Return a random secret of 256 bits."""
    return secrets.token_urlsafe(32)


def _get_part(launch: Launch) -> str:
    return digest(launch.key)[:_PART_LENGTH]
