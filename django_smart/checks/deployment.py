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
from .structure import find_classes

__all__ = ["find_deployment_faults", "is_public_site"]

_ENVIRONMENT_HEADER = re.compile(r"HTTP_[A-Z0-9_]+")
# Cache backends that are not shared between processes.
_OWN_CACHES = ("locmem.LocMemCache", "dummy.DummyCache")


def find_deployment_faults() -> Iterator[Finding]:
    """What is only safe in development."""
    if settings.DEBUG and is_public_site():
        yield build_finding("django_smart.E072")
    if _split_site_url().scheme != "https":
        yield build_finding("django_smart.W030")
    yield from _check_cookies()
    if not getattr(settings, "SMART_ENCRYPTION_KEYS", None):
        yield build_finding("django_smart.W033")
    if getattr(settings, "SMART_INSECURE_HTTP_HOSTS", None):
        yield build_finding("django_smart.W034")
    if not _matches_requests(settings.SECURE_PROXY_SSL_HEADER):
        yield build_finding("django_smart.W035")
    yield from _check_database()
    yield from _check_allowed_hosts()
    if not _has_login_page():
        yield build_finding(
            "django_smart.W065",
            what=f"LOGIN_URL, {str(settings.LOGIN_URL)!r}, is not a page of this site.",
        )
    yield from _check_cache()
    yield from _check_reports()
    # Sites that configure logging elsewhere are not checked.
    if settings.LOGGING_CONFIG and not _has_redacted_logs():
        yield build_finding("django_smart.W042")


def is_public_site() -> bool:
    """Whether ``SMART_SITE_URL`` is one that others can open."""
    site = _split_site_url()
    return site.scheme == "https" and site.hostname not in LOOPBACK_HOSTS


def _split_site_url() -> SplitResult:
    try:
        return urlsplit(str(getattr(settings, "SMART_SITE_URL", "")))
    except ValueError:
        return urlsplit("")


def _check_cookies() -> Iterator[Finding]:
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
                f"to every page below {root!r}.",
                fix=f"Set {name}_PATH = {root!r}.",
            )
        if host and domain and not f".{host}".endswith(f".{domain}"):
            yield build_finding(
                "django_smart.E073",
                what=f"{name}_DOMAIN is {domain!r}, but this site is {host} "
                "(SMART_SITE_URL), so browsers refuse that cookie.",
                fix=f"Set {name}_DOMAIN = None, or to a domain above the site's host.",
            )


def _matches_requests(header: Any) -> bool:
    """Whether ``SECURE_PROXY_SSL_HEADER`` is unset, or can match a request."""
    match header:
        case None:
            return True
        case [str(name), str(value)]:
            is_usual = "PROTO" not in name or value == "https"
            return bool(_ENVIRONMENT_HEADER.fullmatch(name)) and is_usual
    return False


def _check_database() -> Iterator[Finding]:
    alias = router.db_for_write(TokenGrant)
    database = settings.DATABASES.get(alias, {})
    engine = str(database.get("ENGINE"))
    if engine.endswith("sqlite3") and database.get("ATOMIC_REQUESTS"):
        yield build_finding("django_smart.W036")
    # Django's documentation asks for it with transaction pooling, and for nothing else.
    if "postg" in engine and database.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield build_finding("django_smart.W061")


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


def _has_login_page() -> bool:
    try:
        return has_login_page()
    except Exception:  # noqa: BLE001 (the site's URLs can fail in any way)
        return False


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
            )


def _check_reports() -> Iterator[Finding]:
    for suffix, base, ours in (
        ("", ExceptionReporter, SMARTExceptionReporter),
        ("_FILTER", SafeExceptionReporterFilter, SMARTExceptionReporterFilter),
    ):
        name = f"DEFAULT_EXCEPTION_REPORTER{suffix}"
        used = [getattr(settings, name)]
        # Django itself reports a class that is not a reporter.
        if find_classes(used, base) and not find_classes(used, ours):
            yield build_finding(
                "django_smart.W041",
                what=f"{name} is {used[0]}.",
                fix=f'Set {name} = "django_smart.redaction.{ours.__name__}", or a '
                "subclass of it.",
            )


def _has_redacted_logs() -> bool:
    filters, handlers = _get_logging("filters"), _get_logging("handlers")
    ours = {
        name
        for name, each in filters.items()
        if find_classes([each.get("()")], RedactionFilter)
    }
    return any(
        isinstance(each, RedactionFilter) or each in ours
        for handler in handlers.values()
        for each in handler.get("filters") or ()
    )


def _get_logging(kind: str) -> dict[str, dict[str, Any]]:
    """Return the dicts under *kind* in ``LOGGING``, by name."""
    configured: Any = settings.LOGGING
    parts = configured.get(kind) if isinstance(configured, dict) else None
    return {name: each for name, each in (parts or {}).items() if each}
