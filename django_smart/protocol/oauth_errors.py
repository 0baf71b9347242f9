"""The error members common to OAuth's endpoints."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

from django_smart.protocol.urls import is_https_url

__all__ = ["OAuthError", "parse_oauth_error"]

_ERROR = re.compile(r"[ !#-\[\]-~]{1,200}")
_MAX_DESCRIPTION = 500
_MAX_URI = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class OAuthError:
    """
    ``error`` with its related members, safe to display.

    Attributes:
        error: code, visible ASCII.
        error_description: one line without control characters, at most 500 characters.
        error_uri: an https URL, or empty.
    """

    error: str
    error_description: str = field(default="", repr=False)
    error_uri: str = field(default="", repr=False)


def parse_oauth_error(members: Mapping[str, object]) -> OAuthError | None:
    """
    Read the error from query parameters or a JSON object; ``None`` if there is none.

    Spec: RFC 6749 sections 4.1.2.1 and 5.2.
    """
    error = members.get("error")
    if not isinstance(error, str) or not _ERROR.fullmatch(error):
        return None
    description = members.get("error_description")
    uri = members.get("error_uri")
    return OAuthError(
        error=error,
        error_description=_clean(description) if isinstance(description, str) else "",
        error_uri=(
            uri
            if isinstance(uri, str) and len(uri) <= _MAX_URI and is_https_url(uri)
            else ""
        ),
    )


def _clean(text: str) -> str:
    """
    Return *text* as one bounded line without control, format or private characters.
    """
    # Cut first: the text may have megabytes.
    line = " ".join(text[: 4 * _MAX_DESCRIPTION].split())
    return "".join(
        char for char in line if not unicodedata.category(char).startswith("C")
    )[:_MAX_DESCRIPTION]
