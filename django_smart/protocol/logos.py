"""Logos of organisations: addresses that may stand in an ``<img>`` and nowhere else."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import quote, unquote_to_bytes

from django_smart.protocol.urls import is_https_url

__all__ = ["MAX_LOGO_BYTES", "MAX_URL_CHARACTERS", "sanitize_logo_url"]

#: A picture within a ``data:`` URL; more belongs on a server.
MAX_LOGO_BYTES = 32 * 1024
MAX_URL_CHARACTERS = 1000

_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+)((?:;[^,;]*)*),(.*)", re.I | re.S)
_SIGNATURES = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/gif": (b"GIF87a", b"GIF89a"),
    "image/webp": (b"RIFF",),
}
_SVG = "image/svg+xml"
# An <img> runs none of it; a picture that has it was not made to be a logo.
_ACTIVE = re.compile(
    rb"<\s*(?:script|foreignobject|iframe|object|embed)\b"
    rb"|<!\s*(?:doctype|entity)|javascript:|\son[a-z]+\s*=",
    re.I,
)


def sanitize_logo_url(url: object) -> str:
    """
    *url* if it may be the ``src`` of an ``<img>``, else an empty string.

    That is an https URL, or a ``data:`` URL with a PNG, JPEG, GIF, WebP or SVG picture
    of at most ``MAX_LOGO_BYTES``, whose bytes look like what it says and which has no
    script; it is written anew as base64.

    Spec: SMART App Launch 2.2, "User-access Brands and Endpoints", ``brandLogo``
    (BRAND-11).
    """
    if not isinstance(url, str):
        return ""
    match = _DATA_URL.fullmatch(url) if url[:5].lower() == "data:" else None
    if match is None:
        is_link = len(url) <= MAX_URL_CHARACTERS and is_https_url(_escape(url))
        return _escape(url) if is_link else ""
    media_type, parameters, payload = match[1].lower(), match[2].lower(), match[3]
    picture = _decode(payload, is_base64=parameters.endswith(";base64"))
    if not 0 < len(picture) <= MAX_LOGO_BYTES or not _is_picture(media_type, picture):
        return ""
    return f"data:{media_type};base64,{base64.b64encode(picture).decode()}"


def _escape(url: str) -> str:
    """Percent-encode what browsers would: spaces and letters beyond ASCII."""
    try:
        return quote(url, safe="!#$%&'()*+,/:;=?@[]~")
    except UnicodeEncodeError:  # half a surrogate pair
        return ""


def _decode(payload: str, *, is_base64: bool) -> bytes:
    """The bytes of a ``data:`` URL; none if they cannot be read."""
    # Twice the largest picture, percent-encoded or not, is more than enough to read.
    if len(payload) > 3 * MAX_LOGO_BYTES:
        return b""
    try:
        raw = unquote_to_bytes(payload)
        if not is_base64:
            return raw
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""


def _is_picture(media_type: str, picture: bytes) -> bool:
    if media_type == _SVG:
        try:
            text = picture.decode()
        except UnicodeDecodeError:
            return False
        return "<svg" in text.lower() and not _ACTIVE.search(picture)
    return picture.startswith(_SIGNATURES.get(media_type, ()))
