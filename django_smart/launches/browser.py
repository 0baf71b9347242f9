"""
The browser cookie, to which launches are bound.

Session keys change at login, session data is overwritten by concurrent callbacks, and
signed-cookie sessions change at each save. This cookie holds a random value. It is
replaced at sign-out, when the user changes, and when a launch completes that only this
cookie would protect.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from datetime import timedelta

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from ..conf import conf
from ..fields import digest
from .request_state import get_request_state

__all__ = ["FRAME_MARK", "Browser", "get_browser", "peek_browser"]

# Launches are not bound to the characters after a value, which prove nothing. First,
# one character for each completed launch, up to two: their rows may be deleted while
# the browser is still open. A sign-out or change of user counts as several.
_LAUNCHED = "+"
_SEVERAL = 2
#: In a frame, the id of the frame's server comes last.
FRAME_MARK = "~"
_TEXT = re.compile(
    r"([A-Za-z0-9_-]{43})"
    rf"({re.escape(_LAUNCHED)}{{0,{_SEVERAL}}})"
    rf"(?:{FRAME_MARK}([0-9]{{1,18}}))?"
)
# Follows a value that was replaced while its launches may still be pending.
_REPLACED = "!"


class Browser:
    """
    One request's view of the cookie, and the changes for its response.

    Simultaneous first requests (two tabs or frames of an EHR) each set a cookie, and
    the browser keeps the one of the last response, perhaps after a launch was completed
    with another. So a new value is also set under a separate name, and launches of all
    these values belong to this browser. The same applies to simultaneous callbacks:
    each sets a new random value. None can be derived from an older one.

    A launch that replaces the cookie keeps the old one for a while, because other
    pending launches may depend on it.
    """

    def __init__(self, request: HttpRequest) -> None:
        name = conf.SMART_BROWSER_COOKIE_NAME
        self._is_secure = request.is_secure()
        # __Host-: no other host of the domain can plant it (RFC 6265bis, 4.1.3.2).
        self._name = f"__Host-{name}" if self._is_secure else name
        self._cookies = request.COOKIES
        text = self._cookies.get(self._name, "")
        self._value, self._launches, self._frame = self._read(text)
        self._next_value = ""
        self._has_changed = self._is_new = False
        self._beside, self._replaced = self._read_beside()
        self._changes_beside: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Browser: {'known' if self._value else 'new'}>"

    @property
    def digest(self) -> str | None:
        """The digest stored in launches of this browser; ``None`` without a cookie."""
        return digest(self._value) if self._value else None

    @property
    def digests(self) -> tuple[str, ...]:
        """
        The digests its launches may have: :attr:`digest`, and those of other responses.
        """
        values = dict.fromkeys([self._value, *self._beside])
        return tuple(digest(value) for value in values if value)

    @property
    def digests_at_start(self) -> tuple[str, ...]:
        """The digests that a launch may have in a callback: replaced ones, too."""
        return (*self.digests, *map(digest, self._replaced)) if self._value else ()

    @property
    def was_used_before(self) -> bool:
        """
        Whether tabs may still show what another launch or user opened.

        This is so if, since the browser was started, there was a sign-out, a change of
        user, a second launch, or several launches at the same moment. Without a launch
        prefix, the count starts again with the new cookie of a sign-out.
        """
        return self._launches >= _SEVERAL or len(self._beside) > 1

    @property
    def frame(self) -> int | None:
        """Primary key of the server in whose frame this browser is, if any."""
        return self._frame

    def note_launch(self) -> None:
        """Count a completed launch of this browser."""
        if self._launches < _SEVERAL:
            self._launches += 1
            self._has_changed = True

    def enter_frame(self, server_id: int) -> None:
        """
        Mark this as the browser inside a frame of this server, with separate cookies.
        """
        if self._frame != server_id:
            self._frame = server_id
            self._has_changed = True
            self.ensure()

    def ensure(self) -> str:
        """Return the digest, creating a cookie if the browser has none."""
        if not self._value:
            self._replace(_make_value())
            self._is_new = True
        return digest(self._value)

    def prepare_rotation(self) -> str:
        """The digest of the cookie that :meth:`rotate` or :meth:`renew` will set."""
        self._next_value = self._next_value or _make_value()
        return digest(self._next_value)

    def rotate(self, *, keeps_starts: bool = False) -> None:
        """
        Give the browser a new cookie; launches of the old one become inaccessible.

        Args:
            keeps_starts: pending launches can still be completed.
        """
        values = {self._value, *self._beside, *self._replaced}
        # Without a prefix, no other launch could be used any more.
        self._launches = _SEVERAL if conf.SMART_LAUNCH_PREFIX else 0
        self._change(values, mark=_REPLACED if keeps_starts else "")

    def renew(self, open_digests: Collection[str]) -> None:
        """
        Give the browser a new cookie for the launch that completes now.

        Somebody who noted the old one cannot open launches bound to the new one.

        Args:
            open_digests: of values that remain valid for the launches they open.
        """
        values = {
            value
            for value in (self._value, *self._beside)
            if digest(value) not in open_digests
        }
        if self.was_used_before:
            self._launches = _SEVERAL
        self._change(values, mark=_REPLACED)

    def _change(self, replaced: Collection[str], *, mark: str) -> None:
        for value in replaced:
            if value:
                text = mark and value + mark
                self._changes_beside[self._name_beside(value)] = text
        self._replace(self._next_value or _make_value())
        self._next_value = ""
        self._is_new = True
        self._beside = [each for each in self._beside if each not in replaced]
        self._replaced = []

    def apply(self, response: HttpResponseBase) -> None:
        """Write the change, if any, to *response*."""
        if self._has_changed:
            self._set(response, self._name, self._text)
        if self._is_new:
            self._set(response, self._name_beside(self._value), self._value)
        for name, text in self._changes_beside.items():
            lifetime = conf.SMART_AUTHORIZATION_LIFETIME if text else timedelta()
            self._set(response, name, text, max_age=lifetime)

    def _set(
        self,
        response: HttpResponseBase,
        name: str,
        value: str,
        *,
        max_age: timedelta | None = None,
    ) -> None:
        response.set_cookie(
            name,
            value,
            max_age=max_age,
            httponly=True,
            secure=self._is_secure,
            samesite="Lax",
        )

    @property
    def _text(self) -> str:
        frame = f"{FRAME_MARK}{self._frame}" if self._frame else ""
        return f"{self._value}{_LAUNCHED * self._launches}{frame}"

    @staticmethod
    def _read(text: str) -> tuple[str, int, int | None]:
        """Parse the value, the number of its launches, and the frame's server."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return "", 0, None
        return match[1], len(match[2]), int(match[3]) if match[3] else None

    def _read_beside(self) -> tuple[list[str], list[str]]:
        """Return the values set by first responses, and the replaced ones."""
        found: list[str] = []
        replaced: list[str] = []
        for name, text in self._cookies.items():
            value, *_ = self._read(text.removesuffix(_REPLACED))
            # Another site on this host may use a name that only begins alike.
            if value and name == self._name_beside(value):
                (replaced if text.endswith(_REPLACED) else found).append(value)
        # Otherwise, the browser's own cookie existed before them.
        return (found if self._value in found else []), replaced

    def _name_beside(self, value: str) -> str:
        return f"{self._name}_{digest(value)[:16]}"

    def _replace(self, value: str) -> None:
        self._value = value
        self._has_changed = True


def get_browser(request: HttpRequest) -> Browser:
    """Return the request's :class:`Browser`; there is one for each request."""
    state = get_request_state(request)
    if state.browser is None:
        state.browser = Browser(request)
    return state.browser


def peek_browser(request: HttpRequest) -> Browser:
    """Like :func:`get_browser`, for callers whose response does not depend on it."""
    return get_request_state(request).browser or Browser(request)


def _make_value() -> str:
    return secrets.token_urlsafe(32)
