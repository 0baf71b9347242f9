"""HTTP messages as plain values, built by the protocol and sent by the transport."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["HTTPRequest", "HTTPResponse", "HiddenBytes", "HiddenText"]

# Seconds. Some servers send a time in milliseconds since 1970 instead.
_LONGEST_WAIT = 24 * 3600.0
_BUSY = frozenset({429, 503})
# Seconds before a second attempt, if a busy server names no time; with a longer
# Retry-After than the second number there is none.
_DEFAULT_RETRY_WAIT = 0.5
_LONGEST_RETRY_WAIT = 5.0
# More digits would be more seconds than any column can store.
_MAX_AGE = re.compile(r"max-age\s*=\s*\"?([0-9]{1,9})\"?", re.ASCII)


class HiddenText(str):
    """
    A secret without a ``repr``, because error reports show the ``repr`` of variables.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class HiddenBytes(bytes):
    """The same for a request body."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} hidden bytes>"

    __str__ = __repr__


@dataclass(frozen=True, kw_only=True, slots=True)
class HTTPRequest:
    """
    A request to send.

    ``repr`` omits URL, headers and body, which contain codes, tokens and secrets.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class HTTPResponse:
    """
    A response, with its body read, decompressed and within the size limit.

    Attributes:
        headers: names in lower case (DISC-05).
        body: bytes after content decoding.
        url: the requested URL, since redirects are never followed.
    """

    status_code: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    url: str = field(default="", repr=False)

    @property
    def media_type(self) -> str:
        """``Content-Type`` without parameters, in lower case; empty if absent."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def retry_after(self) -> float | None:
        """
        ``Retry-After`` in seconds, at most a day, or ``None``.

        A date is compared with the response's own ``Date``, so neither clock needs to
        be accurate; a past date is 0.

        Spec: RFC 9110 section 10.2.3.
        """
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return min(float(value), _LONGEST_WAIT)
        moment, sent = _parse_date(value), _parse_date(self.headers.get("date", ""))
        if moment is None or sent is None:
            return None
        return min(max((moment - sent).total_seconds(), 0.0), _LONGEST_WAIT)

    @property
    def retry_wait(self) -> float | None:
        """
        Seconds before a second attempt, or ``None`` for none.

        Only a busy server gets one (429, 503), unless it names a longer time than five
        seconds.
        """
        if self.status_code not in _BUSY:
            return None
        if "retry-after" not in self.headers:
            return _DEFAULT_RETRY_WAIT
        wait = self.retry_after
        return wait if wait is not None and wait <= _LONGEST_RETRY_WAIT else None

    @property
    def max_age(self) -> int | None:
        """
        Seconds for which ``Cache-Control`` allows caching, or ``None``.

        Zero for ``no-store`` and ``no-cache``; invalid values count as absent.
        """
        directives = [
            item.strip().lower()
            for item in self.headers.get("cache-control", "").split(",")
        ]
        if any(item.startswith(("no-cache", "no-store")) for item in directives):
            return 0
        ages = [match[1] for item in directives if (match := _MAX_AGE.fullmatch(item))]
        return int(ages[0]) if ages else None


def _parse_date(text: str) -> datetime | None:
    """Parse an HTTP date, which is in GMT even without a time zone."""
    try:
        moment = parsedate_to_datetime(text)
    except (OverflowError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
