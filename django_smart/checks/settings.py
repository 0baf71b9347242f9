"""Checks of each setting: its type, its values, and what they mean together."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from cryptography.fernet import Fernet
from django.conf import settings
from django.core import checks
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch
from django.utils.functional import Promise

from ..conf import SMARTSettings
from ..exceptions import InsecureURLError
from ..servers.registering import validate_site_url

__all__ = [
    "KNOWN_SETTINGS",
    "RULES",
    "Validator",
    "check_settings",
    "check_unknown_settings",
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


_DAY = 24 * 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """The check of one setting."""

    id: str
    name: str
    find_fault: Validator
    hint: str


RULES = (
    Rule(
        id="django_smart.E001",
        name="SMART_SITE_URL",
        find_fault=find_fault_in_site_url,
        hint=(
            'Set scheme and host alone, such as "https://app.example.org". For plain '
            "http while developing, add the host to SMART_INSECURE_HTTP_HOSTS."
        ),
    ),
    Rule(
        id="django_smart.E002",
        name="SMART_LAUNCH_REDIRECT_URL",
        find_fault=find_fault_in_redirect_url,
        hint='Set a path that starts with "/", or the name of a URL without arguments.',
    ),
    Rule(
        id="django_smart.E003",
        name="SMART_ENCRYPTION_KEYS",
        find_fault=find_fault_in_encryption_keys,
        hint=(
            "Set a list of keys made with cryptography.fernet.Fernet.generate_key(), "
            "the newest first."
        ),
    ),
    Rule(
        id="django_smart.E004",
        name="SMART_INSECURE_HTTP_HOSTS",
        find_fault=find_fault_in_hosts,
        hint='Set a list of names or addresses, such as ["localhost", "127.0.0.1"].',
    ),
    Rule(
        id="django_smart.E005",
        name="SMART_LAUNCH_PREFIX",
        find_fault=find_fault_in_launch_prefix,
        hint='Leave it out for the default, "~". An empty string turns prefixes off.',
    ),
    Rule(
        id="django_smart.E006",
        name="SMART_CLOCK_LEEWAY",
        find_fault=number_between(0, 300),
        hint="Set seconds; more than a minute means that a clock should be set right.",
    ),
    Rule(
        id="django_smart.E007",
        name="SMART_HTTP_TIMEOUT",
        find_fault=find_fault_in_timeout,
        hint="Set seconds, such as (5, 10, 20).",
    ),
    Rule(
        id="django_smart.E008",
        name="SMART_MAX_BODY",
        find_fault=find_fault_in_max_body,
        hint="Set bytes, such as 10 * 1024 * 1024.",
    ),
    Rule(
        id="django_smart.E009",
        name="SMART_AUTHORIZATION_LIFETIME",
        find_fault=number_between(60, _DAY),
        hint="Set seconds, such as 900.",
    ),
    Rule(
        id="django_smart.E010",
        name="SMART_LAUNCH_LIFETIME",
        find_fault=number_between(60, 30 * _DAY),
        hint="Set seconds, such as 12 * 3600.",
    ),
    Rule(
        id="django_smart.E011",
        name="SMART_DISCOVERY_LIFETIME",
        find_fault=number_between(60, 30 * _DAY),
        hint="Set seconds, such as 24 * 3600.",
    ),
    Rule(
        id="django_smart.E012",
        name="SMART_REFRESH_FRACTION",
        find_fault=number_between(0.2, 0.95),
        hint="Set the part of a token's life before it is refreshed, such as 0.75.",
    ),
    Rule(
        id="django_smart.E013",
        name="SMART_PURGE_AFTER",
        find_fault=number_between(3600, 36525 * _DAY),
        hint="Set seconds, such as 30 * 24 * 3600.",
    ),
    Rule(
        id="django_smart.E014",
        name="SMART_BROWSER_COOKIE_NAME",
        find_fault=find_fault_in_cookie_name,
        hint='Leave it out for the default, "smart_browser".',
    ),
    Rule(
        id="django_smart.E015",
        name="SMART_PICKER_SHOW_UNREGISTERED",
        find_fault=find_fault_in_flag,
        hint="Set True or False.",
    ),
    Rule(
        id="django_smart.E016",
        name="SMART_LOGO_LICENSES",
        find_fault=find_fault_in_links,
        hint="Set a list of URLs, as smart_import_brands prints them.",
    ),
    Rule(
        id="django_smart.E017",
        name="SMART_APP_STATE_SYSTEM",
        find_fault=find_fault_in_site_url,
        hint='Set scheme and host alone, such as "https://app.example.org".',
    ),
    Rule(
        id="django_smart.E018",
        name="SMART_APP_STATE_MAX_SIZE",
        find_fault=find_fault_in_state_size,
        hint="Set bytes, as the EHR documents them; without a word of it 256 * 1024.",
    ),
    Rule(
        id="django_smart.E019",
        name="SMART_KEY_ROTATION",
        find_fault=zero_or(number_between(_DAY, 3653 * _DAY)),
        hint="Set seconds, such as 90 * 24 * 3600, or 0 to rotate by hand.",
    ),
    Rule(
        id="django_smart.E028",
        name="SMART_LAUNCH_IDLE_LIFETIME",
        find_fault=number_between(60, 30 * _DAY),
        hint="Set seconds, such as 4 * 3600.",
    ),
    Rule(
        id="django_smart.E029",
        name="SMART_LAUNCHES_PER_BROWSER",
        find_fault=find_fault_in_launches,
        hint="Set how many charts one browser may have open, such as 20.",
    ),
    Rule(
        id="django_smart.E030",
        name="SMART_SCOPE_CHECK",
        find_fault=find_fault_in_scope_check,
        hint='Set "warn" to log missing scopes, "raise" to refuse, or "off".',
    ),
    Rule(
        id="django_smart.E045",
        name="SMART_REFRESH_FLOOR",
        find_fault=number_between(0, 3600),
        hint="Set seconds, such as 30.",
    ),
    Rule(
        id="django_smart.E046",
        name="SMART_REFRESH_IDLE_AFTER",
        find_fault=zero_or(number_between(_DAY, 3653 * _DAY)),
        hint="Set seconds, such as 30 * 24 * 3600, or 0 to refresh all grants alike.",
    ),
    Rule(
        id="django_smart.E047",
        name="SMART_REFRESH_THREADS",
        find_fault=find_fault_in_threads,
        hint="Set a whole number, such as 16.",
    ),
)

#: Every setting of the package, sorted.
KNOWN_SETTINGS = tuple(
    sorted(name for name in vars(SMARTSettings) if name.startswith("SMART_"))
)


def check_settings(
    app_configs: Sequence[Any] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """``E001`` to ``E019``, ``E028`` to ``E030``, ``E045`` to ``E047``: settings."""
    return [
        checks.Error(f"{rule.name} {fault}.", hint=rule.hint, id=rule.id)
        for rule in RULES
        if hasattr(settings, rule.name)
        and (fault := rule.find_fault(getattr(settings, rule.name)))
    ]


def check_unknown_settings(
    app_configs: Sequence[Any] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """``W021``: a name that is probably misspelled."""
    unknown = sorted(
        name
        for name in dir(settings)
        if name.startswith("SMART_") and name not in KNOWN_SETTINGS
    )
    return [
        checks.Warning(
            f"{name} is not a setting of django_smart.",
            hint=_suggest(name),
            id="django_smart.W021",
        )
        for name in unknown
    ]


def _suggest(name: str) -> str:
    if near := get_close_matches(name, KNOWN_SETTINGS, n=1):
        return f"Did you mean {near[0]}?"
    return "Take it out, or silence this check if another package reads it."
