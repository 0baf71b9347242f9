"""What is a secret in a text that somebody else wrote: a log line, a URL, a repr."""

from __future__ import annotations

import re
import sys
from functools import lru_cache

from django.apps import apps
from django.conf import settings
from django.urls import get_script_prefix, get_urlconf, reverse

__all__ = ["HIDDEN", "PARAMETERS", "get_protocol_paths", "redact"]

HIDDEN = "[hidden]"

#: Parameters of OAuth and SMART App Launch whose values nobody else may see.
PARAMETERS = frozenset(
    {
        "access_token",
        "assertion",
        "client_assertion",
        "client_secret",
        "code",
        "code_verifier",
        "id_token",
        "id_token_hint",
        "launch",
        "nonce",
        "refresh_token",
        "registration_access_token",
        "state",
        "token",
    }
)
# The longest first: "code" is the beginning of "code_verifier".
_NAMES = "|".join(sorted(PARAMETERS, key=len, reverse=True))
# Where a name begins: not within a word, but after "?", "&" and what these become in a
# URL within a URL and in JSON.
_START = r"(?:(?<![\w-])|(?<=%26)|(?<=%3F)|(?<=%2526)|(?<=%253F)|(?<=u0026)|(?<=u003f))"
# The rest of a text up to the quotation mark that began it.
_TO_QUOTE = r"(?:(?!(?P=quote))(?:\\.|.))*"
# As deep as JSON within JSON within JSON, and no deeper: a bound keeps this linear.
_ESCAPES = r"\\{0,8}"
_QUOTE = rf"(?P<quote>{_ESCAPES}[\"'])"
_BYTES = rf"(?:b(?={_ESCAPES}[\"']))?"
_FLAGS = re.IGNORECASE | re.DOTALL

_RULES = (
    # ?code=…&state=…, code%3D…%26state%3D…, client_secret='…'
    re.compile(
        rf"(?P<kept>{_START}(?:{_NAMES})(?:=|%(?:25)*3D){_BYTES})"
        rf"(?:{_QUOTE}{_TO_QUOTE}|(?:(?!%(?:25)*26)[^\s&\"'<>\\])+)",
        _FLAGS,
    ),
    # {"access_token": "…"}, {'code': ['…']}, ('code', '…')
    re.compile(
        rf"(?P<kept>(?P<mark>{_ESCAPES}[\"'])(?:{_NAMES})(?P=mark)"
        rf"\s*:\s*(?:[\[(]\s*)?{_BYTES}"
        rf"|\((?P<mark_of_pair>[\"'])(?:{_NAMES})(?P=mark_of_pair),\s*{_BYTES})"
        rf"{_QUOTE}{_TO_QUOTE}",
        _FLAGS,
    ),
    # Authorization: Bearer …, {'Authorization': 'Basic …'}
    re.compile(
        rf"(?P<kept>authorization{_ESCAPES}[\"']?\s*[:=,]\s*"
        rf"(?:[\[(](?=b?[\"']))?{_BYTES}{_ESCAPES}[\"']?"
        r"(?:(?:basic|bearer|digest|dpop|negotiate|token)\s+)?)"
        r"[^\s\"'\\,]+",
        _FLAGS,
    ),
    re.compile(r"(?P<kept>\b(?:basic|bearer|dpop)\s+)[\w+/=.~-]{20,}", _FLAGS),
    # Cookie: …, Set-Cookie: …, {'HTTP_COOKIE': '…'}
    re.compile(
        rf"(?P<kept>(?:\b|HTTP_)cookie{_ESCAPES}[\"']?\s*:\s*"
        rf"{_BYTES}{_ESCAPES}[\"']?)[^\s\"'\\][^\"'\r\n]*",
        _FLAGS,
    ),
    # https://user:password@host
    re.compile(r"(?P<kept>://[^\s/@:\"'<>]*:)[^\s/@\"'<>]+(?=@)", _FLAGS),
    # A signed JWT, wherever it stands.  Where a run of its letters ends is looked up
    # once, at its beginning.
    re.compile(
        r"(?P<kept>(?<![\w-])(?=[\w-]{11,}+\.[\w-]{8})(?:[\w-]*?-)??)"
        r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)*"
    ),
)
# One of these is in whatever a rule or a path of ours finds; to look for them is fast.
_HINTS = (
    *("assertion", "code", "launch", "nonce", "secret", "state", "token"),
    *("authorization", "basic", "bearer", "dpop", "cookie", "@", "eyj", "callback"),
)


def redact(text: str) -> str:
    """
    *text* with every secret of a launch replaced by ``[hidden]``.

    Queries of the launch and callback URLs go as a whole.  Elsewhere the values of
    :data:`PARAMETERS` go (in queries, forms, JSON and Python's ``repr``), those of
    ``Authorization`` and cookies, passwords in URLs, and signed JWTs.
    """
    lowered = text.lower()
    if not any(hint in lowered for hint in _HINTS):
        return text
    for path in get_protocol_paths():
        text = _query_of(path).sub(rf"\g<kept>{HIDDEN}", text)
    for rule in _RULES:
        text = rule.sub(_hide, text)
    return text


def get_protocol_paths() -> tuple[str, ...]:
    """
    The paths that queries with secrets come to, without the site's prefix.

    Empty until Django and the URLconf are loaded: a log line must not load them.
    """
    if not apps.ready:
        return ()
    urlconf = get_urlconf() or settings.ROOT_URLCONF
    try:
        return _find_paths(urlconf) if urlconf in sys.modules else ()
    except Exception:  # noqa: BLE001 (a URLconf can fail in any way; Django tells)
        return ()


@lru_cache(maxsize=16)
def _find_paths(urlconf: str) -> tuple[str, ...]:
    prefix = get_script_prefix()
    return tuple(
        "/" + reverse(f"django_smart:{name}", urlconf=urlconf).removeprefix(prefix)
        for name in ("callback", "launch")
    )


@lru_cache(maxsize=32)
def _query_of(path: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<kept>{re.escape(path.rstrip('/'))}/?\?)[^\s\"'<>]+")


def _hide(match: re.Match[str]) -> str:
    quote = match.groupdict().get("quote") or ""
    return f"{match['kept']}{quote}{HIDDEN}"
