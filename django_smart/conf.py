"""
The package's settings: flat, typed, checked and read from one declaration each.

They are read at access: nothing is read at import, and nothing is written to
``django.conf.settings``, so ``override_settings`` works everywhere.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.validators import slug_re
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch
from django.utils.functional import Promise

__all__ = ["CLOCK_LEEWAY", "SETTINGS", "SMARTSettings", "Setting", "conf"]

CLOCK_LEEWAY = timedelta(minutes=1)
"""By how much an EHR's clock may differ from ours."""

_T = TypeVar("_T")

_DAY = 24 * 3600
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_PREFIX = re.compile(r"[A-Za-z0-9_.!~-]{0,20}")
# RFC 6265 section 4.1.1, RFC 9110 section 5.6.2.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_URL = ("https://", "http://")


class Setting(Generic[_T]):
    """
    One setting.

    Args:
        default: the value of a site that does not have the setting.
        read: makes what code reads of a valid value.
        must: what a value must be, for people.
        is_valid: whether a value is; one for which it raises is not.
    """

    def __init__(
        self,
        default: Any,
        read: Callable[[Any], _T],
        must: str,
        is_valid: Callable[[Any], object],
    ) -> None:
        self.default = default
        self.must = must
        self._read = read
        self._is_valid = is_valid

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> _T:
        return self._read(getattr(settings, self._name, self.default))

    def accepts(self, value: Any) -> bool:
        """Return whether *value* is valid."""
        try:
            return bool(self._is_valid(value))
        except Exception:  # noqa: BLE001 (the value may be anything)
            return False


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seconds(
    default: int, least: int, most: int, *, or_zero: bool = False
) -> Setting[timedelta]:
    return Setting(
        default,
        lambda value: timedelta(seconds=value),
        f"be {'0 or ' if or_zero else ''}a number of seconds from {least:,} to "
        f"{most:,}, such as {default or 90 * _DAY:,}",
        lambda value: (
            _is_number(value) and (least <= value <= most or (or_zero and value == 0))
        ),
    )


def _whole(default: int, most: int) -> Setting[int]:
    return Setting(
        default,
        int,
        f"be a whole number from 1 to {most}",
        lambda value: _is_whole(value) and 1 <= value <= most,
    )


def _text(
    default: str, must: str, is_valid: Callable[[str], object] = lambda _: True
) -> Setting[str]:
    return Setting(
        default,
        str,
        must,
        lambda value: isinstance(value, str | Promise) and is_valid(str(value)),
    )


def _origin(must: str) -> Setting[str]:
    return Setting("", lambda value: str(value).rstrip("/"), must, _is_origin)


def _is_origin(value: str) -> bool:
    if not value:
        return value == ""
    parts = urlsplit(value.rstrip("/"))
    is_safe = parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in conf.SMART_INSECURE_HTTP_HOSTS
    )
    rest = value.rstrip("/").removeprefix(f"{parts.scheme}://{parts.netloc}")
    return bool(is_safe and parts.hostname and "@" not in parts.netloc and not rest)


def _list(must: str, is_valid: Callable[[str], object]) -> Setting[frozenset[str]]:
    return Setting((), frozenset, must, lambda value: _is_list(value, is_valid))


def _hosts(must: str) -> Setting[frozenset[str]]:
    return Setting(
        (),
        lambda value: frozenset(each.lower().strip("[]") for each in value),
        must,
        lambda value: _is_list(value, _is_host),
    )


def _is_list(value: Any, is_valid: Callable[[str], object]) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and all(
        isinstance(each, str) and is_valid(each) for each in value
    )


def _is_host(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return bool(_HOST.fullmatch(host))
    return True


def _is_path_or_name(value: str) -> bool:
    try:
        url = resolve_url(value)
    except NoReverseMatch:
        return False
    except Exception:  # noqa: BLE001 (Django's own checks report the site's URLs)
        return True
    return url.startswith("/") and not url.startswith("//")


def _is_timeout(value: Any) -> bool:
    connect, read, total = value
    return (
        isinstance(value, list | tuple)
        and all(_is_number(each) and 0 < each <= 3600 for each in value)
        and total >= max(connect, read)
    )


def _is_support_url(url: str) -> bool:
    is_path = url.startswith("/") and not url.startswith("//")
    return not url or is_path or url.startswith((*_URL, "mailto:"))


def _is_cookie_name(name: str) -> bool:
    taken = {
        settings.SESSION_COOKIE_NAME,
        settings.CSRF_COOKIE_NAME,
        settings.LANGUAGE_COOKIE_NAME,
    }
    has_prefix = name.lower().startswith(("__host-", "__secure-"))
    return bool(_TOKEN.fullmatch(name)) and not has_prefix and name not in taken


class SMARTSettings:
    """Each setting, under its own name."""

    SMART_SITE_URL = _origin(
        'be an https scheme and host, such as "https://app.example.org"; for plain '
        "http in development, add the host to SMART_INSECURE_HTTP_HOSTS"
    )
    """
    Scheme and host of this site.

    New registrations derive their ``redirect_uri`` from it.
    """

    SMART_LAUNCH_REDIRECT_URL = _text(
        "/",
        'be a path that starts with "/", or the name of a URL without arguments',
        _is_path_or_name,
    )
    """Path or URL name to open after a launch."""

    SMART_ENCRYPTION_KEYS: Setting[tuple[str, ...]] = Setting(
        (),
        tuple,
        "be a list of keys from cryptography.fernet.Fernet.generate_key(), newest "
        "first",
        lambda value: isinstance(value, list | tuple) and [*map(Fernet, value), True],
    )
    """
    Fernet keys for secrets and tokens at rest; the first encrypts, all decrypt.

    Keys derived from ``SECRET_KEY`` and its fallbacks come last.
    """

    SMART_INSECURE_HTTP_HOSTS = _hosts(
        "be a list of host names without scheme and port, such as "
        '["localhost", "127.0.0.1"]'
    )
    """Hosts for which plain ``http`` is accepted, for development only."""

    SMART_PRIVATE_HOSTS = _hosts(
        "be a list of host names without scheme and port, such as "
        '["login.hospital.internal"]'
    )
    """
    Hosts that may have a private address.

    ``localhost`` and loopback addresses need no entry if
    ``SMART_INSECURE_HTTP_HOSTS`` lists them.
    """

    SMART_LAUNCH_PREFIX = _text(
        "~", "be at most 20 letters, digits or characters of _.!~-", _PREFIX.fullmatch
    )
    """
    Prefix of a launch's key in the path.

    An empty string disables the prefix; a browser can then use only one launch.
    """

    SMART_HTTP_TIMEOUT: Setting[tuple[float, float, float]] = Setting(
        (5, 10, 20),
        lambda value: (float(value[0]), float(value[1]), float(value[2])),
        "be three numbers of seconds up to 3600, such as (5, 10, 20): to connect, "
        "between two reads, and in total, which is no less than the others",
        _is_timeout,
    )
    """Seconds to connect, between two reads, and for a whole call."""

    SMART_AUTHORIZATION_LIFETIME = _seconds(900, 60, _DAY)
    """From the start of a launch to the callback."""

    SMART_LAUNCH_LIFETIME = _seconds(12 * 3600, 60, 30 * _DAY)
    """How long a completed launch can be used."""

    SMART_LAUNCH_IDLE_LIFETIME = _seconds(4 * 3600, 60, 30 * _DAY)
    """After which an unused launch ends."""

    SMART_LAUNCHES_PER_BROWSER = _whole(20, most=50)
    """Launches that a browser can have open."""

    SMART_DISCOVERY_LIFETIME = _seconds(_DAY, 60, 30 * _DAY)
    """
    How long a server's configuration and keys are cached at most.

    The server may shorten it, down to five minutes.
    """

    SMART_REFRESH_IDLE_AFTER = _seconds(0, _DAY, 3653 * _DAY, or_zero=True)
    """
    After which an unused grant is only kept alive.

    0, never: every access token is replaced before it expires.
    """

    SMART_REFRESH_THREADS = _whole(16, most=64)
    """Concurrent requests of one worker process."""

    SMART_PURGE_AFTER = _seconds(30 * _DAY, 3600, 36525 * _DAY)
    """How long ended launches and grants are kept."""

    SMART_KEY_ROTATION = _seconds(0, _DAY, 3653 * _DAY, or_zero=True)
    """How long a key signs before the next one replaces it; 0: manual rotation."""

    SMART_BROWSER_COOKIE_NAME = _text(
        "smart_browser",
        "be a cookie name that no other cookie of this site has, without a prefix, "
        "which is added over https",
        _is_cookie_name,
    )
    """How the names of launch cookies begin."""

    SMART_SUPPORT_URL = _text(
        "", "be a URL, a path or a mailto: address", _is_support_url
    )
    """The site's support page, linked from error pages."""

    SMART_STAFF_SIGN_IN_SERVERS = _list(
        'be a list of slugs of servers, such as ["harbour"]', slug_re.fullmatch
    )
    """
    Slugs of the servers that may sign in staff and superusers.

    From other servers, they sign in at ``LOGIN_URL`` first.
    """

    SMART_PICKER_SHOW_UNREGISTERED: Setting[bool] = Setting(
        default=False,
        read=bool,
        must="be True or False",
        is_valid=lambda value: isinstance(value, bool),
    )
    """Whether ``login/`` shows organizations that cannot be connected yet."""

    SMART_LOGO_LICENSES = _list(
        "be a list of URLs, as printed by smart_import_brands",
        lambda url: url.startswith(_URL),
    )
    """
    URLs of the logo licenses that this site has agreed to.

    A logo with another license is not shown.
    """

    SMART_APP_STATE_SYSTEM = _origin(
        'be an https scheme and host, such as "https://app.example.org"'
    )
    """Origin of app state codes; the site's own if empty."""

    SMART_SCOPE_CHECK = _text(
        "warn",
        'be "warn", "raise" or "off"',
        lambda value: value in {"warn", "raise", "off"},
    )
    """
    What happens before a FHIR request that the granted scopes do not cover.

    ``warn`` logs the missing scope, ``raise`` raises, and ``off`` sends the request
    silently.
    """

    SMART_RECORDS_SINK = _text(
        "", "be the dotted path of a callable that returns a sink"
    )
    """
    Dotted path of a callable that returns where whole records go.

    For ``django_smart.contrib.records``.
    """


conf = SMARTSettings()

SETTINGS: dict[str, Setting[Any]] = {
    name: value
    for name, value in vars(SMARTSettings).items()
    if isinstance(value, Setting)
}
"""Every setting, by its name."""
