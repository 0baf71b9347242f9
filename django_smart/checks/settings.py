"""Checks of the settings, one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core import checks

from ..conf import SMARTSettings
from .values import (
    Validator,
    find_fault_in_cookie_name,
    find_fault_in_encryption_keys,
    find_fault_in_flag,
    find_fault_in_hosts,
    find_fault_in_launch_prefix,
    find_fault_in_launches,
    find_fault_in_links,
    find_fault_in_max_body,
    find_fault_in_redirect_url,
    find_fault_in_scope_check,
    find_fault_in_site_url,
    find_fault_in_state_size,
    find_fault_in_threads,
    find_fault_in_timeout,
    number_between,
    zero_or,
)

__all__ = ["KNOWN_SETTINGS", "RULES", "check_settings", "check_unknown_settings"]

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
