"""The error members common to OAuth's endpoints."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from django_smart.protocol.urls import is_https_url

__all__ = ["parse_oauth_error"]

_ERROR = re.compile(r"[ !#-\[\]-~]{1,200}")
_MAX_DESCRIPTION = 500
_MAX_URI = 4096


def parse_oauth_error(members: Mapping[str, object]) -> dict[str, str]:
    """
    Read the error from query parameters or a JSON object, safe to display.

    Returns:
        ``error``, visible ASCII; ``error_description``, one line without control
        characters, at most 500 long, or empty; and ``error_uri``, an https URL, or
        empty. Nothing if there is no error.

    Spec: RFC 6749 sections 4.1.2.1 and 5.2.
    """
    error = members.get("error")
    if not isinstance(error, str) or not _ERROR.fullmatch(error):
        return {}
    uri = members.get("error_uri")
    is_link = isinstance(uri, str) and len(uri) <= _MAX_URI and is_https_url(uri)
    return {
        "error": error,
        "error_description": _clean(members.get("error_description")),
        "error_uri": str(uri) if is_link else "",
    }


def _clean(text: object) -> str:
    """
    Return *text* as one bounded line without control, format or private characters.
    """
    if not isinstance(text, str):
        return ""
    # Cut first: the text may have megabytes.
    line = " ".join(text[: 4 * _MAX_DESCRIPTION].split())
    return "".join(
        char for char in line if not unicodedata.category(char).startswith("C")
    )[:_MAX_DESCRIPTION]
