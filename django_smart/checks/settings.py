"""Checks of each setting: its type, its values, and what they mean together."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.validators import slug_re
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch
from django.utils.functional import Promise

from ..conf import SMARTSettings
from ..diagnoses import Finding, build_finding
from ..exceptions import InsecureURLError
from ..servers.registering import validate_site_url

__all__ = ["KNOWN_SETTINGS", "RULES", "find_setting_faults"]


#: Takes a value and returns what is wrong with it, or an empty string.
Validator = Callable[[Any], str]

_HOST = re.compile(r"[A-Za-z0-9._-]+")
_PREFIX = re.compile(r"[A-Za-z0-9_.!~-]{0,20}")
# RFC 6265 section 4.1.1, RFC 9110 section 5.6.2.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LISTS = (list, tuple, set, frozenset)


def require(is_valid: Callable[[Any], object], fault: str) -> Validator:
    """Return a validator of values that *is_valid* accepts."""
    return lambda value: "" if is_valid(value) else fault


def number_between(low: float, high: float) -> Validator:
    """Return a validator of numbers from *low* to *high*."""
    return require(
        lambda value: _is_number(value) and low <= value <= high,
        f"must be a number from {low:,g} to {high:,.10g}",
    )


def zero_or(validator: Validator) -> Validator:
    """Return a validator of 0, for "off", and of what *validator* accepts."""

    def find_fault(value: Any) -> str:
        if _is_number(value) and value == 0:
            return ""
        fault = validator(value)
        return fault.replace("must be", "must be 0 or", 1)

    return find_fault


def list_of(
    kind: str, is_valid: Callable[[str], object], *, detail: str = ""
) -> Validator:
    """Return a validator of lists (tuples, sets) of texts that *is_valid* accepts."""

    def find_fault(value: Any) -> str:
        if not isinstance(value, _LISTS):
            return f"must be a list of {kind}"
        for item in value:
            if not isinstance(item, str) or not is_valid(item):
                return f"must contain {kind}{detail}; got {item!r}"
        return ""

    return find_fault


def find_fault_in_site_url(value: Any) -> str:
    if not isinstance(value, str):
        return "must be a string"
    if not value:
        return ""
    try:
        validate_site_url(value.rstrip("/"))
    except InsecureURLError:
        return f"must be an https scheme and host; got {value!r}"
    except (TypeError, ValueError):
        # SMART_INSECURE_HTTP_HOSTS is invalid, which its own check reports.
        return ""
    return ""


def find_fault_in_redirect_url(value: Any) -> str:
    if not isinstance(value, str | Promise):
        return "must be a string"
    try:
        url = resolve_url(str(value))
    except NoReverseMatch:
        url = ""
    except Exception:  # noqa: BLE001 (the site's URLs can fail in any way)
        return ""  # Django's own checks report it.
    if not url.startswith("/") or url.startswith("//"):
        return "must be a path or the name of a URL of this site"
    return ""


def find_fault_in_encryption_keys(value: Any) -> str:
    if isinstance(value, str | bytes):
        return "must be a list of keys, not a string"
    if not isinstance(value, list | tuple):
        return "must be a list of keys"
    for number, key in enumerate(value, start=1):
        try:
            Fernet(key)
        except Exception:  # noqa: BLE001 (the value may be anything)
            return f"must contain only Fernet keys; number {number} is not one"
    return ""


def find_fault_in_timeout(value: Any) -> str:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return (
            "must be three numbers: seconds to connect, between two reads, and in total"
        )
    if not all(_is_number(item) and 0 < item <= 3600 for item in value):
        return "must contain numbers of seconds above 0, up to 3600"
    connect, read, total = value
    if total < max(connect, read):
        return (
            "must allow at least as much in total as to connect and between two reads"
        )
    return ""


def find_fault_in_support_url(value: Any) -> str:
    if not isinstance(value, str | Promise):
        return "must be a string"
    url = str(value)
    is_path = url.startswith("/") and not url.startswith("//")
    if not url or is_path or url.startswith(("https://", "http://", "mailto:")):
        return ""
    return "must be a URL, a path or a mailto: address"


def whole_number_between(least: int, most: int) -> Validator:
    """Return a validator of whole numbers from *least* to *most*."""
    return require(
        lambda value: _is_whole(value) and least <= value <= most,
        f"must be a whole number from {least:,} to {most:,}",
    )


def find_fault_in_cookie_name(value: Any) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        return "must be a valid cookie name"
    if value.lower().startswith(("__host-", "__secure-")):
        return "must not have a prefix; over https, it is added automatically"
    taken = {
        settings.SESSION_COOKIE_NAME,
        settings.CSRF_COOKIE_NAME,
        settings.LANGUAGE_COOKIE_NAME,
    }
    return (
        "must not be the name of another cookie of this site" if value in taken else ""
    )


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_host(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return bool(_HOST.fullmatch(host))
    return True


_DAY = 24 * 3600


#: By setting: its validator, and how to fix it.
RULES: Mapping[str, tuple[Validator, str]] = {
    "SMART_SITE_URL": (
        find_fault_in_site_url,
        (
            'Set only scheme and host, such as "https://app.example.org". For '
            "plain http in development, add the host to "
            "SMART_INSECURE_HTTP_HOSTS."
        ),
    ),
    "SMART_LAUNCH_REDIRECT_URL": (
        find_fault_in_redirect_url,
        'Set a path that starts with "/", or the name of a URL without arguments.',
    ),
    "SMART_ENCRYPTION_KEYS": (
        find_fault_in_encryption_keys,
        (
            "Set a list of keys from "
            "cryptography.fernet.Fernet.generate_key(), newest first."
        ),
    ),
    "SMART_INSECURE_HTTP_HOSTS": (
        list_of("host names", _is_host, detail=" without scheme and port"),
        'Set a list of host names or IP addresses, such as ["localhost", "127.0.0.1"].',
    ),
    "SMART_PRIVATE_HOSTS": (
        list_of("host names", _is_host, detail=" without scheme and port"),
        "Set a list of host names or IP addresses, such as "
        '["login.hospital.internal"].',
    ),
    "SMART_LAUNCH_PREFIX": (
        require(
            lambda value: isinstance(value, str) and _PREFIX.fullmatch(value),
            "must be at most 20 letters, digits or characters of _.!~-",
        ),
        'Remove it to use the default, "~". An empty string disables prefixes.',
    ),
    "SMART_HTTP_TIMEOUT": (
        find_fault_in_timeout,
        "Set seconds, such as (5, 10, 20).",
    ),
    "SMART_AUTHORIZATION_LIFETIME": (
        number_between(60, _DAY),
        "Set seconds, such as 900.",
    ),
    "SMART_LAUNCH_LIFETIME": (
        number_between(60, 30 * _DAY),
        "Set seconds, such as 12 * 3600.",
    ),
    "SMART_DISCOVERY_LIFETIME": (
        number_between(60, 30 * _DAY),
        "Set seconds, such as 24 * 3600.",
    ),
    "SMART_PURGE_AFTER": (
        number_between(3600, 36525 * _DAY),
        "Set seconds, such as 30 * 24 * 3600.",
    ),
    "SMART_BROWSER_COOKIE_NAME": (
        find_fault_in_cookie_name,
        'Remove it to use the default, "smart_browser".',
    ),
    "SMART_PICKER_SHOW_UNREGISTERED": (
        require(lambda value: isinstance(value, bool), "must be True or False"),
        "Set True or False.",
    ),
    "SMART_LOGO_LICENSES": (
        list_of("URLs", lambda url: url.startswith(("https://", "http://"))),
        "Set a list of URLs, as printed by smart_import_brands.",
    ),
    "SMART_APP_STATE_SYSTEM": (
        find_fault_in_site_url,
        'Set only scheme and host, such as "https://app.example.org".',
    ),
    "SMART_KEY_ROTATION": (
        zero_or(number_between(_DAY, 3653 * _DAY)),
        "Set seconds, such as 90 * 24 * 3600, or 0 to rotate keys manually.",
    ),
    "SMART_LAUNCH_IDLE_LIFETIME": (
        number_between(60, 30 * _DAY),
        "Set seconds, such as 4 * 3600.",
    ),
    "SMART_LAUNCHES_PER_BROWSER": (
        whole_number_between(1, 50),
        "Set how many charts a browser may have open, such as 20.",
    ),
    "SMART_SCOPE_CHECK": (
        require(
            lambda value: value in ("warn", "raise", "off"),
            'must be "warn", "raise" or "off"',
        ),
        'Set "warn" to log missing scopes, "raise" to refuse the request, or "off".',
    ),
    "SMART_REFRESH_IDLE_AFTER": (
        zero_or(number_between(_DAY, 3653 * _DAY)),
        "Set seconds, such as 30 * 24 * 3600, or 0 to refresh all grants in time.",
    ),
    "SMART_REFRESH_THREADS": (
        whole_number_between(1, 64),
        "Set a whole number, such as 16.",
    ),
    "SMART_STAFF_SIGN_IN_SERVERS": (
        list_of("slugs", slug_re.fullmatch, detail=" of servers"),
        'Set a list of server slugs, such as ["harbour"].',
    ),
    "SMART_SUPPORT_URL": (
        find_fault_in_support_url,
        'Set a URL, such as "https://www.example.org/help/".',
    ),
    "SMART_RECORDS_SINK": (
        require(lambda value: isinstance(value, str), "must be a string"),
        "Set the dotted path of a callable that returns a sink.",
    ),
}

#: Settings of earlier versions, with what replaces them.
REMOVED = {
    "SMART_APP_STATE_MAX_SIZE": "App state is limited to 256 KiB.",
    "SMART_ASYNC_THREADS": "A process has 64 threads for each EHR.",
    "SMART_CLOCK_LEEWAY": "Clocks may differ by a minute: synchronize yours by NTP.",
    "SMART_MAX_BODY": "Responses are limited to 10 MiB; larger ones can be streamed.",
    "SMART_PURGE_FAILED_AFTER": "Failed launches are kept for a day, or for "
    "SMART_PURGE_AFTER if that is shorter.",
    "SMART_REFRESH_FLOOR": "For an EHR that limits refreshes, set the quirk "
    "rate_limit.",
    "SMART_REFRESH_FRACTION": "Tokens are refreshed after three quarters of their "
    "lifetime.",
}

#: Every setting of the package, sorted.
KNOWN_SETTINGS = tuple(
    sorted(name for name in vars(SMARTSettings) if name.startswith("SMART_"))
)


def find_setting_faults() -> Iterator[Finding]:
    """Each of ``RULES``, removed names, and those that are probably misspelled."""
    for name, (find_fault, fix) in RULES.items():
        if hasattr(settings, name) and (fault := find_fault(getattr(settings, name))):
            yield build_finding("django_smart.E001", what=f"{name} {fault}.", fix=fix)
    for name, replacement in REMOVED.items():
        if hasattr(settings, name):
            yield build_finding(
                "django_smart.E001",
                what=f"{name} is no longer a setting of django_smart.",
                fix=f"Remove it. {replacement}",
            )
    for name in dir(settings):
        if name.startswith("SMART_") and name not in {*KNOWN_SETTINGS, *REMOVED}:
            yield build_finding(
                "django_smart.W021",
                what=f"{name} is not a setting of django_smart.",
                fix=_suggest(name),
            )


def _suggest(name: str) -> str:
    if near := get_close_matches(name, KNOWN_SETTINGS, n=1):
        return f"Did you mean {near[0]}?"
    return "Remove it, or silence this check if another package uses it."
