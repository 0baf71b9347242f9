"""
The browser's own cookie: what a launch is bound to.

Session keys change at login, session data is overwritten by parallel callbacks, and
signed-cookie sessions change at each save.  This cookie holds a random value and
changes only at sign-out or when another user takes over the browser.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from datetime import timedelta

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.crypto import salted_hmac

from ..conf import conf
from ..fields import digest
from .request_state import get_request_state

__all__ = ["FRAME_MARK", "Browser", "get_browser", "peek_browser"]

# The mark stands behind a value that replaced another one.
_MARK = "."
# Launches are not bound to what follows, and it proves nothing.  First a sign for each
# launch that was finished, up to two: their rows may be gone before the browser is.
_LAUNCHED = "+"
_SEVERAL = 2
#: In a frame, the id of the server whose frame it is comes last.
FRAME_MARK = "~"
_TEXT = re.compile(
    rf"([A-Za-z0-9_-]{{43}}{re.escape(_MARK)}?)"
    rf"({re.escape(_LAUNCHED)}{{0,{_SEVERAL}}})"
    rf"(?:{FRAME_MARK}([0-9]{{1,18}}))?"
)
# Stands behind a value that was replaced while launches of it may be under way.
_REPLACED = "!"


class Browser:
    """
    One request's view of the cookie, and what its response has to do with it.

    First requests at one moment (two tabs or frames of an EHR) bring a cookie each, and
    the browser keeps that of the answer which comes last, perhaps when a launch was
    finished with the other.  So a new value is set once more, under a name of its own:
    launches of all that came so are this browser's.  A launch that replaces the cookie,
    because its user is another one, leaves the old one there for a while: others may be
    under way with it.
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
        """What launches of this browser carry; ``None`` without a cookie."""
        return digest(self._value) if self._value else None

    @property
    def digests(self) -> tuple[str, ...]:
        """What its launches may carry: :attr:`digest`, and those of other answers."""
        values = dict.fromkeys([self._value, *self._beside])
        return tuple(digest(value) for value in values if value)

    @property
    def digests_at_start(self) -> tuple[str, ...]:
        """What a launch may carry whose callback comes now: also replaced ones."""
        return (*self.digests, *map(digest, self._replaced)) if self._value else ()

    @property
    def has_launched(self) -> bool:
        """Whether a launch was finished in this browser, as its cookie says."""
        return self._launches > 0 or self.was_used_before

    @property
    def was_used_before(self) -> bool:
        """
        Whether tabs may still show what another launch or person has opened.

        That is after a sign-out, a change of user, a second launch or launches that
        were started at one moment, since the browser was started.
        """
        return (
            self._value.endswith(_MARK)
            or self._launches >= _SEVERAL
            or len(self._beside) > 1
        )

    @property
    def frame(self) -> int | None:
        """Primary key of the server in whose frame this browser is, if it is."""
        return self._frame

    def note_launch(self) -> None:
        """A launch was finished in this browser."""
        if self._launches < _SEVERAL:
            self._launches += 1
            self._has_changed = True

    def enter_frame(self, server_id: int) -> None:
        """Be the browser inside a frame of this server, with a jar of its own."""
        if self._frame != server_id:
            self._frame = server_id
            self._has_changed = True
            self.ensure()

    def ensure(self) -> str:
        """The digest, of a new cookie if the browser has none."""
        if not self._value:
            self._replace(_make_value())
            self._is_new = True
        return digest(self._value)

    def prepare_rotation(self) -> str:
        """
        The digest of the cookie that :meth:`rotate` is to set.

        It is the same for all requests at one moment, so that it does not matter which
        answer comes last.
        """
        self._next_value = self._next_value or _make_next(self._value) + _MARK
        return digest(self._next_value)

    def rotate(self, *, keeps_starts: bool = False) -> None:
        """
        Give the browser a new cookie; launches of the old one are out of reach.

        Args:
            keeps_starts: those that are under way can be finished all the same.
        """
        mark = _REPLACED if keeps_starts else ""
        for value in {self._value, *self._beside, *self._replaced} - {""}:
            self._changes_beside[self._name_beside(value)] = mark and value + mark
        self._replace(self._next_value or _make_value() + _MARK)
        self._next_value = ""
        self._is_new = True
        self._beside, self._replaced = [], []

    def apply(self, response: HttpResponseBase) -> None:
        """Write the change, if there is one, to *response*."""
        if self._has_changed:
            self._set(response, self._name, self._text)
        if self._is_new:
            self._set(response, self._name_beside(self._value), self._value)
        lifetime = conf.SMART_AUTHORIZATION_LIFETIME
        for name, text in self._changes_beside.items():
            self._set(response, name, text, max_age=lifetime if text else timedelta())

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
        """The value, how many launches it has seen, and the frame's server."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return "", 0, None
        return match[1], len(match[2]), int(match[3]) if match[3] else None

    def _read_beside(self) -> tuple[list[str], list[str]]:
        """The values that came in first answers, and those that were replaced."""
        found: list[str] = []
        replaced: list[str] = []
        for name, text in self._cookies.items():
            if name.startswith(f"{self._name}_"):
                value, *_ = self._read(text.removesuffix(_REPLACED))
                if value:
                    (replaced if text.endswith(_REPLACED) else found).append(value)
        # Else the browser's own was there before them.
        return (found if self._value in found else []), replaced

    def _name_beside(self, value: str) -> str:
        return f"{self._name}_{digest(value)[:16]}"

    def _replace(self, value: str) -> None:
        self._value = value
        self._has_changed = True


def get_browser(request: HttpRequest) -> Browser:
    """The request's :class:`Browser`; one for each request."""
    state = get_request_state(request)
    if state.browser is None:
        state.browser = Browser(request)
    return state.browser


def peek_browser(request: HttpRequest) -> Browser:
    """As :func:`get_browser`, for those whose answer does not depend on it."""
    return get_request_state(request).browser or Browser(request)


def _make_value() -> str:
    return secrets.token_urlsafe(32)


def _make_next(value: str) -> str:
    """What replaces *value*: nobody can tell who does not know the site's secret."""
    if not value:
        return _make_value()
    made = salted_hmac(
        "django_smart.launches.browser", value, algorithm="sha256"
    ).digest()
    return urlsafe_b64encode(made).decode().rstrip("=")
