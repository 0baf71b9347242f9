"""Checks for a site in production: ``manage.py check --deploy``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import SplitResult, urlsplit

from django.conf import settings
from django.db import router
from django.http.request import validate_host
from django.urls import get_script_prefix
from django.utils.module_loading import import_string
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter

from ..diagnoses import Finding, build_finding
from ..error_pages.retry import has_login_page
from ..models import TokenGrant
from ..protocol.urls import LOOPBACK_HOSTS
from ..redaction import (
    RedactionFilter,
    SMARTExceptionReporter,
    SMARTExceptionReporterFilter,
)

__all__ = ["find_deployment_faults", "is_public_site"]

_ENVIRONMENT_HEADER = re.compile(r"HTTP_[A-Z0-9_]+")
# PgBouncer's, by default.
_POOLER_PORT = "6432"
# Cache backends that are not shared between processes.
_OWN_CACHES = ("locmem.LocMemCache", "dummy.DummyCache")


def find_deployment_faults() -> list[Finding]:
    """What is only safe in development."""
    return [
        *_check_debug(),
        *_check_site_url(),
        *_check_cookies(),
        *_check_scope_of_cookies(),
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


def is_public_site() -> bool:
    """Whether ``SMART_SITE_URL`` is one that others can open."""
    site = _split_site_url()
    return site.scheme == "https" and site.hostname not in LOOPBACK_HOSTS


def _check_debug() -> Iterator[Finding]:
    if settings.DEBUG and is_public_site():
        yield build_finding(
            "django_smart.E072",
            what=f"DEBUG is on, although this site is {settings.SMART_SITE_URL} "
            "(SMART_SITE_URL).",
            fix="Set DEBUG = False in production. On your own machine, use a "
            "SMART_SITE_URL with localhost.",
        )


def _check_site_url() -> Iterator[Finding]:
    if _split_site_url().scheme != "https":
        yield build_finding(
            "django_smart.W030",
            what="SMART_SITE_URL is not https.",
            fix='Set SMART_SITE_URL, such as "https://app.example.org".',
        )


def _check_cookies() -> Iterator[Finding]:
    if not settings.SESSION_COOKIE_SECURE:
        yield build_finding(
            "django_smart.W031",
            what="SESSION_COOKIE_SECURE is off.",
            fix="Set SESSION_COOKIE_SECURE = True.",
        )
    if not settings.CSRF_COOKIE_SECURE and not settings.CSRF_USE_SESSIONS:
        yield build_finding(
            "django_smart.W032",
            what="CSRF_COOKIE_SECURE is off.",
            fix="Set CSRF_COOKIE_SECURE = True.",
        )


def _check_scope_of_cookies() -> Iterator[Finding]:
    """Cookies that browsers do not send to the callback, or to pages of a launch."""
    root, site = get_script_prefix(), _split_site_url()
    host = site.hostname or ""
    for name in ("SESSION_COOKIE", "CSRF_COOKIE"):
        path = getattr(settings, f"{name}_PATH")
        domain = (getattr(settings, f"{name}_DOMAIN") or "").lstrip(".").lower()
        if not root.startswith(path.rstrip("/") + "/"):
            yield build_finding(
                "django_smart.E073",
                what=f"{name}_PATH is {path!r}, so browsers do not send that cookie "
                f"to every page below {root!r}, such as the callback and the "
                "pages of a launch.",
                fix=f"Set {name}_PATH = {root!r}.",
            )
        if host and domain and not f".{host}".endswith(f".{domain}"):
            yield build_finding(
                "django_smart.E073",
                what=f"{name}_DOMAIN is {domain!r}, but this site is {host} "
                "(SMART_SITE_URL): browsers refuse that cookie.",
                fix=f"Set {name}_DOMAIN = None, or to a domain above the site's host.",
            )
        if (
            site.scheme == "http"
            and host not in LOOPBACK_HOSTS
            and getattr(settings, f"{name}_SECURE")
        ):
            yield build_finding(
                "django_smart.E073",
                what=f"{name}_SECURE is on, but SMART_SITE_URL is http: browsers "
                "send that cookie only over https.",
                fix="Serve the site over https, and use https in SMART_SITE_URL.",
            )


def _check_encryption_keys() -> Iterator[Finding]:
    if not getattr(settings, "SMART_ENCRYPTION_KEYS", None):
        yield build_finding(
            "django_smart.W033",
            what="SMART_ENCRYPTION_KEYS is empty, so keys are derived from SECRET_KEY.",
            fix=(
                "Set SMART_ENCRYPTION_KEYS to a list with a key from "
                "cryptography.fernet.Fernet.generate_key()."
            ),
        )


def _check_insecure_hosts() -> Iterator[Finding]:
    if getattr(settings, "SMART_INSECURE_HTTP_HOSTS", None):
        yield build_finding(
            "django_smart.W034",
            what="SMART_INSECURE_HTTP_HOSTS is not empty.",
            fix="Remove SMART_INSECURE_HTTP_HOSTS.",
        )


def _check_proxy_header() -> Iterator[Finding]:
    header = settings.SECURE_PROXY_SSL_HEADER
    if header is None:
        if _split_site_url().scheme == "https":
            yield build_finding(
                "django_smart.I035",
                what="SECURE_PROXY_SSL_HEADER is not set.",
                fix=(
                    "Behind such a proxy, set SECURE_PROXY_SSL_HEADER = "
                    '("HTTP_X_FORWARDED_PROTO", "https"), and let the proxy '
                    "set that header on every request. Otherwise, silence "
                    "this check."
                ),
            )
    elif not _is_proxy_header(header):
        yield build_finding(
            "django_smart.W035",
            what="SECURE_PROXY_SSL_HEADER matches no request.",
            fix=(
                "Write the header name in WSGI form: SECURE_PROXY_SSL_HEADER "
                '= ("HTTP_X_FORWARDED_PROTO", "https") for X-Forwarded-Proto.'
            ),
        )
    elif "PROTO" in header[0] and header[1] != "https":
        yield build_finding(
            "django_smart.W035",
            what=f"SECURE_PROXY_SSL_HEADER expects {header[0]} to be {header[1]!r}, "
            "but proxies set it to 'https' in lowercase.",
            fix='Set SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https").',
        )


def _check_atomic_requests() -> Iterator[Finding]:
    for alias, database in settings.DATABASES.items():
        if database.get("ATOMIC_REQUESTS") and str(database.get("ENGINE")).endswith(
            "sqlite3"
        ):
            yield build_finding(
                "django_smart.W036",
                what=f"The database {alias!r} is SQLite with ATOMIC_REQUESTS.",
                fix="Use PostgreSQL or MariaDB, or turn ATOMIC_REQUESTS off.",
            )


def _check_pooler() -> Iterator[Finding]:
    alias = router.db_for_write(TokenGrant)
    database = settings.DATABASES.get(alias, {})
    if "postg" not in str(database.get("ENGINE")):
        return
    # Django's documentation asks for it with transaction pooling, and for nothing else.
    if database.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield build_finding(
            "django_smart.W061",
            what=f"DATABASES[{alias!r}] has DISABLE_SERVER_SIDE_CURSORS, which is for "
            "transaction pooling.",
            fix=(
                "Use session pooling for this database, or call FHIR before atomic() "
                "begins. If there is no transaction pooling, silence this check."
            ),
        )
    elif str(database.get("PORT")) == _POOLER_PORT:
        yield build_finding(
            "django_smart.I062",
            what=f"DATABASES[{alias!r}] has the port of PgBouncer.",
            fix=(
                "Use session pooling, and silence this check. With transaction pooling "
                "set DISABLE_SERVER_SIDE_CURSORS = True for this database."
            ),
        )


def _check_allowed_hosts() -> Iterator[Finding]:
    host = _split_site_url().hostname or ""
    # The format that Django compares with.
    host = f"[{host}]" if ":" in host else host
    if host and not validate_host(host, settings.ALLOWED_HOSTS):
        yield build_finding(
            "django_smart.W038",
            what=f"ALLOWED_HOSTS does not contain {host!r}, the host of "
            "SMART_SITE_URL.",
            fix=f'Add "{host}" to ALLOWED_HOSTS, or correct SMART_SITE_URL.',
        )


def _check_login_page() -> Iterator[Finding]:
    try:
        if has_login_page():
            return
    except Exception:  # noqa: BLE001 (E024, E064 and Django's checks report them)
        return
    yield build_finding(
        "django_smart.W065",
        what=f"LOGIN_URL is {settings.LOGIN_URL!r}, where this site has no page.",
        fix=(
            "Set LOGIN_URL to the path or URL name of your sign-in page, or "
            '"admin:login" if only staff have passwords.'
        ),
    )


def _check_cache() -> Iterator[Finding]:
    needed = {"default"}
    if settings.SESSION_ENGINE.endswith((".cache", ".cached_db")):
        needed.add(settings.SESSION_CACHE_ALIAS)
    for alias in sorted(needed):
        backend = settings.CACHES.get(alias, {}).get("BACKEND", "")
        if str(backend).endswith(_OWN_CACHES):
            yield build_finding(
                "django_smart.W039",
                what=f"The cache {alias!r} is not shared between processes.",
                fix="Use Redis, Memcached, files or the database for the "
                f'"{alias}" cache in CACHES.',
            )


def _check_reports() -> Iterator[Finding]:
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
            yield build_finding(
                "django_smart.W041",
                what=f"{name} is {path}.",
                fix=(
                    f'Set {name} = "django_smart.redaction.{ours.__name__}", or a '
                    "subclass of it."
                ),
            )


def _check_logs() -> Iterator[Finding]:
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
        yield build_finding(
            "django_smart.W042",
            what="No handler in LOGGING has a filter that removes secrets.",
            fix=(
                'Add {"()": "django_smart.redaction.RedactionFilter"} to the '
                "filters in LOGGING, and its name to the filters of each "
                "handler."
            ),
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
