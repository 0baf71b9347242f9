"""What each setting may hold; nothing here raises, whatever the value."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Any

from cryptography.fernet import Fernet
from django.conf import settings
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch
from django.utils.functional import Promise

from ..exceptions import InsecureURLError
from ..servers.registering import validate_site_url

__all__ = [
    "Validator",
    "find_fault_in_cookie_name",
    "find_fault_in_encryption_keys",
    "find_fault_in_flag",
    "find_fault_in_hosts",
    "find_fault_in_launch_prefix",
    "find_fault_in_launches",
    "find_fault_in_links",
    "find_fault_in_max_body",
    "find_fault_in_redirect_url",
    "find_fault_in_scope_check",
    "find_fault_in_site_url",
    "find_fault_in_state_size",
    "find_fault_in_threads",
    "find_fault_in_timeout",
    "number_between",
    "zero_or",
]

#: Takes a value and says what is wrong with it; an empty string if nothing is.
Validator = Callable[[Any], str]

_HOST = re.compile(r"[A-Za-z0-9._-]+")
_PREFIX = re.compile(r"[A-Za-z0-9_.!~-]{0,20}")
# RFC 6265 section 4.1.1, RFC 9110 section 5.6.2.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LEAST_BODY = 64 * 1024
_LEAST_STATE = 1024
_LISTS = (list, tuple, set, frozenset)


def number_between(low: float, high: float) -> Validator:
    """A validator of numbers from *low* to *high*."""

    def find_fault(value: Any) -> str:
        if _is_number(value) and low <= value <= high:
            return ""
        return f"is not a number from {low:,g} to {high:,.10g}"

    return find_fault


def zero_or(validator: Validator) -> Validator:
    """A validator of 0, which turns something off, and of what *validator* takes."""

    def find_fault(value: Any) -> str:
        if _is_number(value) and value == 0:
            return ""
        fault = validator(value)
        return fault and f"is not 0, and {fault}"

    return find_fault


def find_fault_in_site_url(value: Any) -> str:
    if not isinstance(value, str):
        return "is not a string"
    if not value:
        return ""
    try:
        validate_site_url(value.rstrip("/"))
    except InsecureURLError as exc:
        return f"is no address of a site: {exc}"
    except (TypeError, ValueError):
        # SMART_INSECURE_HTTP_HOSTS cannot be read, which has a check of its own.
        return ""
    return ""


def find_fault_in_redirect_url(value: Any) -> str:
    if not isinstance(value, str | Promise):
        return "is not a string"
    try:
        url = resolve_url(str(value))
    except NoReverseMatch:
        return "is neither a path nor the name of a URL of this site"
    except Exception:  # noqa: BLE001 (the site's URLs can fail in any way)
        return ""  # Django's own checks tell.
    if not url.startswith("/") or url.startswith("//"):
        return "is neither a path nor the name of a URL of this site"
    return ""


def find_fault_in_encryption_keys(value: Any) -> str:
    if isinstance(value, str | bytes):
        return "is one string, not a list of keys"
    if not isinstance(value, list | tuple):
        return "is not a list of keys"
    for number, key in enumerate(value, start=1):
        try:
            Fernet(key)
        except Exception:  # noqa: BLE001 (the value may be anything)
            return f"has an entry that is not a Fernet key, number {number}"
    return ""


def find_fault_in_hosts(value: Any) -> str:
    if not isinstance(value, _LISTS):
        return "is not a list of host names"
    for host in value:
        if not isinstance(host, str) or not _is_host(host):
            return f"has {host!r}, which is not a host name without scheme and port"
    return ""


def find_fault_in_launch_prefix(value: Any) -> str:
    if isinstance(value, str) and _PREFIX.fullmatch(value):
        return ""
    return "is not at most 20 letters, digits and characters of _.!~-"


def find_fault_in_timeout(value: Any) -> str:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return "is not three numbers: to connect, between two reads, and in all"
    if not all(_is_number(item) and 0 < item <= 3600 for item in value):
        return "has something else than numbers of seconds above 0, up to 3600"
    connect, read, total = value
    if total < max(connect, read):
        return "allows less in all than to connect, or between two reads"
    return ""


def find_fault_in_max_body(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= _LEAST_BODY:
        return ""
    return f"is not a whole number of bytes, at least {_LEAST_BODY:,}"


def find_fault_in_launches(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000:
        return ""
    return "is not a whole number from 1 to 1,000"


def find_fault_in_flag(value: Any) -> str:
    return "" if isinstance(value, bool) else "is neither True nor False"


def find_fault_in_links(value: Any) -> str:
    if not isinstance(value, _LISTS):
        return "is not a list of URLs"
    for url in value:
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            return f"has {url!r}, which is not a URL"
    return ""


def find_fault_in_scope_check(value: Any) -> str:
    is_known = value in ("warn", "raise", "off")
    return "" if is_known else 'is not "warn", "raise" or "off"'


def find_fault_in_state_size(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= _LEAST_STATE:
        return ""
    return f"is not a whole number of bytes, at least {_LEAST_STATE:,}"


def find_fault_in_threads(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 64:
        return ""
    return "is not a whole number from 1 to 64"


def find_fault_in_cookie_name(value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        return "is not the name of a cookie"
    if value.lower().startswith(("__host-", "__secure-")):
        return "has a prefix, which is added over https by itself"
    taken = {
        settings.SESSION_COOKIE_NAME,
        settings.CSRF_COOKIE_NAME,
        settings.LANGUAGE_COOKIE_NAME,
    }
    return "is the name of another cookie of this site" if value in taken else ""


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _is_host(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return bool(_HOST.fullmatch(host))
    return True
