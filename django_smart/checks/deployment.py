"""Checks for a site in production: ``manage.py check --deploy``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks
from django.http.request import validate_host
from django.middleware.cache import UpdateCacheMiddleware
from django.utils.module_loading import import_string
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from ..redaction import (
    RedactionFilter,
    SMARTExceptionReporter,
    SMARTExceptionReporterFilter,
)

__all__ = ["check_deployment"]

_ENVIRONMENT_HEADER = re.compile(r"HTTP_[A-Z0-9_]+")
# Backends that each process has its own of.
_OWN_CACHES = ("locmem.LocMemCache", "dummy.DummyCache")


def check_deployment(
    app_configs: Sequence[Any] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """``W030`` to ``W042`` and ``I035``: what is right for development only."""
    return [
        *_check_site_url(),
        *_check_cookies(),
        *_check_encryption_keys(),
        *_check_insecure_hosts(),
        *_check_proxy_header(),
        *_check_atomic_requests(),
        *_check_allowed_hosts(),
        *_check_cache(),
        *_check_cached_pages(),
        *_check_reports(),
        *_check_logs(),
    ]


def _check_site_url() -> Iterator[checks.CheckMessage]:
    if not _is_https():
        yield checks.Warning(
            "SMART_SITE_URL is not https, so codes and launches travel in the clear "
            '(SMART App Launch 2.2, "App protection").',
            hint='Set SMART_SITE_URL, such as "https://app.example.org".',
            id="django_smart.W030",
        )


def _check_cookies() -> Iterator[checks.CheckMessage]:
    if not settings.SESSION_COOKIE_SECURE:
        yield checks.Warning(
            "SESSION_COOKIE_SECURE is off: whoever reads the session's cookie on the "
            "wire is signed in, with every launch of that browser.",
            hint="Set SESSION_COOKIE_SECURE = True.",
            id="django_smart.W031",
        )
    if not settings.CSRF_COOKIE_SECURE and not settings.CSRF_USE_SESSIONS:
        yield checks.Warning(
            "CSRF_COOKIE_SECURE is off: who can plant that cookie can have records "
            "connected or disconnected.",
            hint="Set CSRF_COOKIE_SECURE = True.",
            id="django_smart.W032",
        )


def _check_encryption_keys() -> Iterator[checks.CheckMessage]:
    if not getattr(settings, "SMART_ENCRYPTION_KEYS", None):
        yield checks.Warning(
            "The keys that tokens and secrets are stored with are derived from "
            "SECRET_KEY: a new SECRET_KEY makes them unreadable.",
            hint=(
                "Set SMART_ENCRYPTION_KEYS to a list with a key made with "
                "cryptography.fernet.Fernet.generate_key()."
            ),
            id="django_smart.W033",
        )


def _check_insecure_hosts() -> Iterator[checks.CheckMessage]:
    if getattr(settings, "SMART_INSECURE_HTTP_HOSTS", None):
        yield checks.Warning(
            "SMART_INSECURE_HTTP_HOSTS lets secrets and tokens travel over plain http.",
            hint="Take SMART_INSECURE_HTTP_HOSTS out.",
            id="django_smart.W034",
        )


def _check_proxy_header() -> Iterator[checks.CheckMessage]:
    header = settings.SECURE_PROXY_SSL_HEADER
    if header is None:
        if _is_https():
            yield checks.Info(
                "SECURE_PROXY_SSL_HEADER is not set. Behind a proxy that ends TLS, "
                "Django takes every request for plain http and builds http addresses.",
                hint=(
                    "If there is such a proxy, set SECURE_PROXY_SSL_HEADER = "
                    '("HTTP_X_FORWARDED_PROTO", "https"), and have it set that header '
                    "on every request. If not, silence this check."
                ),
                id="django_smart.I035",
            )
    elif not _is_proxy_header(header):
        yield checks.Warning(
            "SECURE_PROXY_SSL_HEADER matches no request, so Django takes every request "
            "for plain http.",
            hint=(
                "Write the header as WSGI does: SECURE_PROXY_SSL_HEADER = "
                '("HTTP_X_FORWARDED_PROTO", "https") for X-Forwarded-Proto.'
            ),
            id="django_smart.W035",
        )
    elif "PROTO" in header[0] and header[1] != "https":
        yield checks.Warning(
            f"SECURE_PROXY_SSL_HEADER takes a request for https if {header[0]} is "
            f"{header[1]!r}, and proxies set it to 'https', in small letters: Django "
            "takes every request for plain http.",
            hint='Set SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https").',
            id="django_smart.W037",
        )


def _check_atomic_requests() -> Iterator[checks.CheckMessage]:
    for alias, database in settings.DATABASES.items():
        if database.get("ATOMIC_REQUESTS") and str(database.get("ENGINE")).endswith(
            "sqlite3"
        ):
            yield checks.Warning(
                f"The database {alias!r} is SQLite with ATOMIC_REQUESTS: a token that "
                "ends while a view runs cannot be refreshed.",
                hint="Use PostgreSQL or MariaDB, or turn ATOMIC_REQUESTS off.",
                id="django_smart.W036",
            )


def _check_allowed_hosts() -> Iterator[checks.CheckMessage]:
    host = _get_site_host()
    if host and not validate_host(host, settings.ALLOWED_HOSTS):
        yield checks.Warning(
            f"ALLOWED_HOSTS does not have {host!r}, the host of SMART_SITE_URL: people "
            "who come back from the EHR are answered with 400.",
            hint=f'Add "{host}" to ALLOWED_HOSTS, or correct SMART_SITE_URL.',
            id="django_smart.W038",
        )


def _check_cache() -> Iterator[checks.CheckMessage]:
    backend = settings.CACHES.get("default", {}).get("BACKEND", "")
    if str(backend).endswith(_OWN_CACHES):
        yield checks.Warning(
            "The default cache is not shared between processes, so each of them "
            "fetches anew what one has fetched already, such as the style of an EHR.",
            hint=(
                "Set a cache of Redis, Memcached, files or the database as the "
                '"default" of CACHES.'
            ),
            id="django_smart.W039",
        )


def _check_cached_pages() -> Iterator[checks.CheckMessage]:
    if any(_is_a(path, UpdateCacheMiddleware) for path in settings.MIDDLEWARE):
        yield checks.Warning(
            "UpdateCacheMiddleware keeps every page in the cache, those with a "
            "patient's data too.",
            hint=(
                "Take it out of MIDDLEWARE, and put cache_page() on the views whose "
                "pages are the same for everybody."
            ),
            id="django_smart.W040",
        )


def _check_reports() -> Iterator[checks.CheckMessage]:
    upstream: tuple[tuple[str, type, type], ...] = (
        ("DEFAULT_EXCEPTION_REPORTER", ExceptionReporter, SMARTExceptionReporter),
        (
            "DEFAULT_EXCEPTION_REPORTER_FILTER",
            SafeExceptionReporterFilter,
            SMARTExceptionReporterFilter,
        ),
    )
    for name, base, ours in upstream:
        path = getattr(settings, name)
        # What is no reporter at all is not ours to tell of.
        if _is_a(path, base) and not _is_a(path, ours):
            yield checks.Warning(
                f"{name} is {path}: reports of errors can show tokens and the data of "
                "patients.",
                hint=(
                    f'Set {name} = "django_smart.redaction.{ours.__name__}", or a '
                    "subclass of it."
                ),
                id="django_smart.W041",
            )


def _check_logs() -> Iterator[checks.CheckMessage]:
    ours = {
        name
        for name, each in _get_parts("filters")
        if _is_a(each.get("()"), RedactionFilter)
    }
    in_use = any(
        isinstance(each, RedactionFilter) or (isinstance(each, str) and each in ours)
        for _, handler in _get_parts("handlers")
        for each in handler.get("filters") or ()
    )
    # A site that sets up its logs elsewhere is not asked.
    if settings.LOGGING_CONFIG and not in_use:
        yield checks.Warning(
            "No handler of LOGGING has a filter that takes secrets out: access logs "
            "have the query of the callback, with its code.",
            hint=(
                'Add {"()": "django_smart.redaction.RedactionFilter"} to the filters '
                "of LOGGING, and its name to the filters of each handler."
            ),
            id="django_smart.W042",
        )


def _get_parts(kind: str) -> list[tuple[Any, dict[str, Any]]]:
    """The *kind* of things that ``LOGGING`` has, by name; none that is no dict."""
    configured: Any = settings.LOGGING
    parts = configured.get(kind) if isinstance(configured, dict) else None
    items = parts.items() if isinstance(parts, dict) else ()
    return [(name, part) for name, part in items if isinstance(part, dict)]


def _get_site_host() -> str:
    try:
        host = urlsplit(str(getattr(settings, "SMART_SITE_URL", ""))).hostname or ""
    except ValueError:
        return ""
    # As Django has it.
    return f"[{host}]" if ":" in host else host


def _is_a(path: Any, expected: type) -> bool:
    """Whether *path* names *expected* or a subclass; what cannot be loaded is not."""
    try:
        cls = import_string(path) if isinstance(path, str) else path
    except Exception:  # noqa: BLE001 (a module of the site can fail in any way)
        return False
    return isinstance(cls, type) and issubclass(cls, expected)


def _is_https() -> bool:
    url = getattr(settings, "SMART_SITE_URL", "")
    try:
        return isinstance(url, str) and urlsplit(url).scheme == "https"
    except ValueError:
        return False


def _is_proxy_header(header: Any) -> bool:
    if not isinstance(header, list | tuple) or len(header) != 2:
        return False
    name, value = header
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and bool(_ENVIRONMENT_HEADER.fullmatch(name))
    )
