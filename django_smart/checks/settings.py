"""Checks of each setting: its type, its values, and what they mean together."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from cryptography.fernet import Fernet
from django.conf import settings
from django.core import checks
from django.core.validators import slug_re
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch
from django.utils.functional import Promise

from ..conf import SMARTSettings
from ..exceptions import InsecureURLError
from ..servers.registering import validate_site_url

__all__ = ["KNOWN_SETTINGS", "RULES", "check_settings"]


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


def bytes_from(least: int) -> Validator:
    """Return a validator of whole numbers of bytes from *least*."""
    return require(
        lambda value: _is_whole(value) and value >= least,
        f"must be a whole number of bytes, at least {least:,}",
    )


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
            'Set only scheme and host, such as "https://app.example.org". For '
            "plain http in development, add the host to "
            "SMART_INSECURE_HTTP_HOSTS."
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
            "Set a list of keys from "
            "cryptography.fernet.Fernet.generate_key(), newest first."
        ),
    ),
    Rule(
        id="django_smart.E004",
        name="SMART_INSECURE_HTTP_HOSTS",
        find_fault=list_of("host names", _is_host, detail=" without scheme and port"),
        hint='Set a list of host names or IP addresses, such as ["localhost", '
        '"127.0.0.1"].',
    ),
    Rule(
        id="django_smart.E051",
        name="SMART_PRIVATE_HOSTS",
        find_fault=list_of("host names", _is_host, detail=" without scheme and port"),
        hint="Set a list of host names or IP addresses, such as "
        '["login.hospital.internal"].',
    ),
    Rule(
        id="django_smart.E005",
        name="SMART_LAUNCH_PREFIX",
        find_fault=require(
            lambda value: isinstance(value, str) and _PREFIX.fullmatch(value),
            "must be at most 20 letters, digits or characters of _.!~-",
        ),
        hint='Remove it to use the default, "~". An empty string disables prefixes.',
    ),
    Rule(
        id="django_smart.E006",
        name="SMART_CLOCK_LEEWAY",
        find_fault=number_between(0, 300),
        hint="Set seconds. If you need more than 60, fix the clock instead.",
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
        find_fault=bytes_from(64 * 1024),
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
        hint="Set the fraction of a token's lifetime after which it is refreshed, "
        "such as 0.75.",
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
        hint='Remove it to use the default, "smart_browser".',
    ),
    Rule(
        id="django_smart.E015",
        name="SMART_PICKER_SHOW_UNREGISTERED",
        find_fault=require(
            lambda value: isinstance(value, bool), "must be True or False"
        ),
        hint="Set True or False.",
    ),
    Rule(
        id="django_smart.E016",
        name="SMART_LOGO_LICENSES",
        find_fault=list_of("URLs", lambda url: url.startswith(("https://", "http://"))),
        hint="Set a list of URLs, as printed by smart_import_brands.",
    ),
    Rule(
        id="django_smart.E017",
        name="SMART_APP_STATE_SYSTEM",
        find_fault=find_fault_in_site_url,
        hint='Set only scheme and host, such as "https://app.example.org".',
    ),
    Rule(
        id="django_smart.E018",
        name="SMART_APP_STATE_MAX_SIZE",
        find_fault=bytes_from(1024),
        hint="Set the limit in bytes that the EHR documents. If it documents none, "
        "use 256 * 1024.",
    ),
    Rule(
        id="django_smart.E019",
        name="SMART_KEY_ROTATION",
        find_fault=zero_or(number_between(_DAY, 3653 * _DAY)),
        hint="Set seconds, such as 90 * 24 * 3600, or 0 to rotate keys manually.",
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
        find_fault=whole_number_between(1, 50),
        hint="Set how many charts a browser may have open, such as 20.",
    ),
    Rule(
        id="django_smart.E030",
        name="SMART_SCOPE_CHECK",
        find_fault=require(
            lambda value: value in ("warn", "raise", "off"),
            'must be "warn", "raise" or "off"',
        ),
        hint='Set "warn" to log missing scopes, "raise" to refuse the request, or '
        '"off".',
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
        hint="Set seconds, such as 30 * 24 * 3600, or 0 to refresh all grants in time.",
    ),
    Rule(
        id="django_smart.E047",
        name="SMART_REFRESH_THREADS",
        find_fault=whole_number_between(1, 64),
        hint="Set a whole number, such as 16.",
    ),
    Rule(
        id="django_smart.E055",
        name="SMART_PURGE_FAILED_AFTER",
        find_fault=number_between(3600, 36525 * _DAY),
        hint="Set seconds, such as 24 * 3600.",
    ),
    Rule(
        id="django_smart.E056",
        name="SMART_STAFF_SIGN_IN_SERVERS",
        find_fault=list_of("slugs", slug_re.fullmatch, detail=" of servers"),
        hint='Set a list of server slugs, such as ["harbour"].',
    ),
    Rule(
        id="django_smart.E063",
        name="SMART_SUPPORT_URL",
        find_fault=find_fault_in_support_url,
        hint='Set a URL, such as "https://www.example.org/help/".',
    ),
    Rule(
        id="django_smart.E058",
        name="SMART_ASYNC_THREADS",
        find_fault=whole_number_between(1, 512),
        hint="Set a whole number, such as 64.",
    ),
    Rule(
        id="django_smart.E075",
        name="SMART_RECORDS_SINK",
        find_fault=require(lambda value: isinstance(value, str), "must be a string"),
        hint="Set the dotted path of a callable that returns a sink.",
    ),
)

#: Every setting of the package, sorted.
KNOWN_SETTINGS = tuple(
    sorted(name for name in vars(SMARTSettings) if name.startswith("SMART_"))
)


def check_settings() -> list[checks.CheckMessage]:
    """Each of ``RULES``; ``W021``: a name is probably misspelled."""
    wrong: list[checks.CheckMessage] = [
        checks.Error(f"{rule.name} {fault}.", hint=rule.hint, id=rule.id)
        for rule in RULES
        if hasattr(settings, rule.name)
        and (fault := rule.find_fault(getattr(settings, rule.name)))
    ]
    unknown = [
        checks.Warning(
            f"{name} is not a setting of django_smart.",
            hint=_suggest(name),
            id="django_smart.W021",
        )
        for name in dir(settings)
        if name.startswith("SMART_") and name not in KNOWN_SETTINGS
    ]
    return [*wrong, *unknown]


def _suggest(name: str) -> str:
    if near := get_close_matches(name, KNOWN_SETTINGS, n=1):
        return f"Did you mean {near[0]}?"
    return "Remove it, or silence this check if another package uses it."
