"""HTTP messages as plain values, built by the protocol, carried by the transport."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["HTTPRequest", "HTTPResponse", "HiddenBytes", "HiddenText"]

# Seconds.
_LONGEST_WAIT = 1e9
# More digits than these are more seconds than any column holds.
_MAX_AGE = re.compile(r"max-age\s*=\s*\"?([0-9]{1,9})\"?", re.ASCII)


class HiddenText(str):
    """A secret without a ``repr``: reports of errors show variables by theirs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class HiddenBytes(bytes):
    """The same for what is sent."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} hidden bytes>"

    __str__ = __repr__


@dataclass(frozen=True, kw_only=True, slots=True)
class HTTPRequest:
    """
    One request to be sent.

    ``repr`` leaves out URL, headers and body: they carry codes, tokens and secrets.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class HTTPResponse:
    """
    One answer, with its body read, decompressed and within the size limit.

    Attributes:
        status_code: HTTP status.
        headers: names in lower case (DISC-05).
        body: bytes after content decoding.
        url: the URL that answered; redirects are never followed, so the one asked.
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
        """Seconds of a numeric ``Retry-After``, 30 years at most, or ``None``."""
        value = self.headers.get("retry-after", "").strip()
        if not (value.isascii() and value.isdigit()):
            return None
        # With more digits it is infinite, or too much for a date.
        return min(float(value), _LONGEST_WAIT)

    @property
    def max_age(self) -> int | None:
        """
        Seconds for which ``Cache-Control`` lets the answer be kept, or ``None``.

        Zero for ``no-store`` and ``no-cache``; what cannot be read counts as absent.
        """
        directives = [
            item.strip().lower()
            for item in self.headers.get("cache-control", "").split(",")
        ]
        if any(item.startswith(("no-cache", "no-store")) for item in directives):
            return 0
        ages = [match[1] for item in directives if (match := _MAX_AGE.fullmatch(item))]
        return int(ages[0]) if ages else None
