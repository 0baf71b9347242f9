"""Checks for a site in production: ``manage.py check --deploy``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from django.core import checks
from django.db import router
from django.http.request import validate_host
from django.utils.module_loading import import_string
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from ..error_pages.retry import has_login_page
from ..models import TokenGrant
from ..redaction import (
    RedactionFilter,
    SMARTExceptionReporter,
    SMARTExceptionReporterFilter,
)

__all__ = ["check_deployment"]

_ENVIRONMENT_HEADER = re.compile(r"HTTP_[A-Z0-9_]+")
# PgBouncer's, by default.
_POOLER_PORT = "6432"
# Cache backends that are not shared between processes.
_OWN_CACHES = ("locmem.LocMemCache", "dummy.DummyCache")


def check_deployment() -> list[checks.CheckMessage]:
    """``W030`` to ``W065``, ``I035``, ``I062``: what is only safe in development."""
    return [
        *_check_site_url(),
        *_check_cookies(),
        *_check_encryption_keys(),
        *_check_insecure_hosts(),
        *_check_proxy_header(),
        *_check_atomic_requests(),
        *_check_pooler(),
        *_check_allowed_hosts(),
        *_check_login_page(),
        *_check_cache(),
        *_check_reports(),
        *_check_logs(),
    ]


def _check_site_url() -> Iterator[checks.CheckMessage]:
    if _split_site_url().scheme != "https":
        yield checks.Warning(
            "SMART_SITE_URL is not https, so codes and launches are sent "
            'unencrypted (SMART App Launch 2.2, "App protection").',
            hint='Set SMART_SITE_URL, such as "https://app.example.org".',
            id="django_smart.W030",
        )


def _check_cookies() -> Iterator[checks.CheckMessage]:
    if not settings.SESSION_COOKIE_SECURE:
        yield checks.Warning(
            "SESSION_COOKIE_SECURE is off: anyone who intercepts the session "
            "cookie is signed in as its user, with every launch of that "
            "browser.",
            hint="Set SESSION_COOKIE_SECURE = True.",
            id="django_smart.W031",
        )
    if not settings.CSRF_COOKIE_SECURE and not settings.CSRF_USE_SESSIONS:
        yield checks.Warning(
            "CSRF_COOKIE_SECURE is off: anyone who can plant that cookie can "
            "connect or disconnect records.",
            hint="Set CSRF_COOKIE_SECURE = True.",
            id="django_smart.W032",
        )


def _check_encryption_keys() -> Iterator[checks.CheckMessage]:
    if not getattr(settings, "SMART_ENCRYPTION_KEYS", None):
        yield checks.Warning(
            "Tokens and secrets are encrypted with a key derived from "
            "SECRET_KEY: changing SECRET_KEY makes them unreadable.",
            hint=(
                "Set SMART_ENCRYPTION_KEYS to a list with a key from "
                "cryptography.fernet.Fernet.generate_key()."
            ),
            id="django_smart.W033",
        )


def _check_insecure_hosts() -> Iterator[checks.CheckMessage]:
    if getattr(settings, "SMART_INSECURE_HTTP_HOSTS", None):
        yield checks.Warning(
            "SMART_INSECURE_HTTP_HOSTS allows secrets and tokens to be sent "
            "over plain http.",
            hint="Remove SMART_INSECURE_HTTP_HOSTS.",
            id="django_smart.W034",
        )


def _check_proxy_header() -> Iterator[checks.CheckMessage]:
    header = settings.SECURE_PROXY_SSL_HEADER
    if header is None:
        if _split_site_url().scheme == "https":
            yield checks.Info(
                "SECURE_PROXY_SSL_HEADER is not set. Behind a proxy that "
                "terminates TLS, Django treats every request as plain http "
                "and builds http URLs.",
                hint=(
                    "Behind such a proxy, set SECURE_PROXY_SSL_HEADER = "
                    '("HTTP_X_FORWARDED_PROTO", "https"), and let the proxy '
                    "set that header on every request. Otherwise, silence "
                    "this check."
                ),
                id="django_smart.I035",
            )
    elif not _is_proxy_header(header):
        yield checks.Warning(
            "SECURE_PROXY_SSL_HEADER matches no request, so Django treats "
            "every request as plain http.",
            hint=(
                "Write the header name in WSGI form: SECURE_PROXY_SSL_HEADER "
                '= ("HTTP_X_FORWARDED_PROTO", "https") for X-Forwarded-Proto.'
            ),
            id="django_smart.W035",
        )
    elif "PROTO" in header[0] and header[1] != "https":
        yield checks.Warning(
            f"SECURE_PROXY_SSL_HEADER expects {header[0]} to be {header[1]!r}, "
            "but proxies set it to 'https' in lowercase, so Django treats "
            "every request as plain http.",
            hint='Set SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https").',
            id="django_smart.W037",
        )


def _check_atomic_requests() -> Iterator[checks.CheckMessage]:
    for alias, database in settings.DATABASES.items():
        if database.get("ATOMIC_REQUESTS") and str(database.get("ENGINE")).endswith(
            "sqlite3"
        ):
            yield checks.Warning(
                f"The database {alias!r} is SQLite with ATOMIC_REQUESTS: a "
                "token that expires while a view runs cannot be refreshed.",
                hint="Use PostgreSQL or MariaDB, or turn ATOMIC_REQUESTS off.",
                id="django_smart.W036",
            )


def _check_pooler() -> Iterator[checks.CheckMessage]:
    alias = router.db_for_write(TokenGrant)
    database = settings.DATABASES.get(alias, {})
    if "postg" not in str(database.get("ENGINE")):
        return
    # Django's documentation asks for it with transaction pooling, and for nothing else.
    if database.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield checks.Warning(
            f"DATABASES[{alias!r}] has DISABLE_SERVER_SIDE_CURSORS, which is for "
            "transaction pooling. A refresh inside atomic() sets lock_timeout for its "
            "session, and with transaction pooling it can reach another client's "
            "session instead.",
            hint=(
                "Use session pooling for this database, or call FHIR before atomic() "
                "begins. If there is no transaction pooling, silence this check."
            ),
            id="django_smart.W061",
        )
    elif str(database.get("PORT")) == _POOLER_PORT:
        yield checks.Info(
            f"DATABASES[{alias!r}] has the port of PgBouncer. With transaction pooling "
            "smart_purge fails unless server-side cursors are off, and a refresh "
            "inside atomic() is not safe.",
            hint=(
                "Use session pooling, and silence this check. With transaction pooling "
                "set DISABLE_SERVER_SIDE_CURSORS = True for this database."
            ),
            id="django_smart.I062",
        )


def _check_allowed_hosts() -> Iterator[checks.CheckMessage]:
    host = _split_site_url().hostname or ""
    # The format that Django compares with.
    host = f"[{host}]" if ":" in host else host
    if host and not validate_host(host, settings.ALLOWED_HOSTS):
        yield checks.Warning(
            f"ALLOWED_HOSTS does not contain {host!r}, the host of "
            "SMART_SITE_URL: people who return from the EHR get status 400.",
            hint=f'Add "{host}" to ALLOWED_HOSTS, or correct SMART_SITE_URL.',
            id="django_smart.W038",
        )


def _check_login_page() -> Iterator[checks.CheckMessage]:
    try:
        if has_login_page():
            return
    except Exception:  # noqa: BLE001 (E024, E064 and Django's checks report them)
        return
    yield checks.Warning(
        f"LOGIN_URL is {settings.LOGIN_URL!r}, where this site has no page: "
        "people who must sign in before their launch opens get status 404.",
        hint=(
            "Set LOGIN_URL to the path or URL name of your sign-in page, or "
            '"admin:login" if only staff have passwords.'
        ),
        id="django_smart.W065",
    )


def _check_cache() -> Iterator[checks.CheckMessage]:
    needed = {"default": "each process fetches the same data again, such as a style"}
    if settings.SESSION_ENGINE.endswith((".cache", ".cached_db")):
        alias = settings.SESSION_CACHE_ALIAS
        needed[alias] = "people are signed in or out depending on which one responds"
    for alias, consequence in needed.items():
        backend = settings.CACHES.get(alias, {}).get("BACKEND", "")
        if str(backend).endswith(_OWN_CACHES):
            yield checks.Warning(
                f"The cache {alias!r} is not shared between processes: {consequence}.",
                hint=(
                    "Use Redis, Memcached, files or the database for the "
                    f'"{alias}" cache in CACHES.'
                ),
                id="django_smart.W039",
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
        # Django itself reports a class that is not a reporter.
        if _is_a(path, base) and not _is_a(path, ours):
            yield checks.Warning(
                f"{name} is {path}: error reports can contain tokens and patient data.",
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
    # Sites that configure logging elsewhere are not checked.
    if settings.LOGGING_CONFIG and not in_use:
        yield checks.Warning(
            "No handler in LOGGING has a filter that removes secrets: access "
            "logs contain the query of the callback, with its code.",
            hint=(
                'Add {"()": "django_smart.redaction.RedactionFilter"} to the '
                "filters in LOGGING, and its name to the filters of each "
                "handler."
            ),
            id="django_smart.W042",
        )


def _get_parts(kind: str) -> list[tuple[Any, dict[str, Any]]]:
    """Return the dicts under *kind* in ``LOGGING``, by name."""
    configured: Any = settings.LOGGING
    parts = configured.get(kind) if isinstance(configured, dict) else None
    items = parts.items() if isinstance(parts, dict) else ()
    return [(name, part) for name, part in items if isinstance(part, dict)]


def _split_site_url() -> SplitResult:
    try:
        return urlsplit(str(getattr(settings, "SMART_SITE_URL", "")))
    except ValueError:
        return urlsplit("")


def _is_a(path: Any, expected: type) -> bool:
    """Return whether *path* is *expected* or a subclass; false if it cannot load."""
    try:
        cls = import_string(path) if isinstance(path, str) else path
    except Exception:  # noqa: BLE001 (a module of the site can fail in any way)
        return False
    return isinstance(cls, type) and issubclass(cls, expected)


def _is_proxy_header(header: Any) -> bool:
    match header:
        case [str(name), str()]:
            return bool(_ENVIRONMENT_HEADER.fullmatch(name))
    return False
