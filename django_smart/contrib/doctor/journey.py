"""
A dry run of a launch: what a browser would meet at this site, without a launch.

Nothing is launched, so no signal is sent and nothing is counted: the views are asked
with ``OPTIONS``, in this process behind the site's own middleware, and over HTTP behind
its proxy as well.
"""

from __future__ import annotations

import contextvars
import functools
import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
from django.template.loader import render_to_string
from django.urls import (
    NoReverseMatch,
    get_resolver,
    get_script_prefix,
    re_path,
    reverse,
)

from ...conf import conf
from ...exceptions import SMARTError
from ...launches.prefix import find_route
from ...models import ClientRegistration
from ...protocol.messages import HTTPRequest
from ...protocol.urls import LOOPBACK_HOSTS
from ...servers.registering import get_site_url
from .findings import Finding, Severity, ask, build_finding

__all__ = [
    "find_cookie_faults",
    "find_page_faults",
    "find_session_faults",
    "walk",
]

# What a proxy answers that does not pass on OPTIONS proves nothing of the view.
_NOT_PASSED_ON = {403, 405, 501}


def find_session_faults() -> Iterator[Finding]:
    """A session that is saved has to be there at the next request."""
    store = import_module(settings.SESSION_ENGINE).SessionStore
    session = store()
    session["doctor"] = mark = secrets.token_hex(4)
    session.save()
    kept = store(session.session_key).get("doctor") == mark
    session.delete()
    if not kept:
        yield build_finding(
            "session_not_kept",
            what="A saved session is lost immediately: SESSION_ENGINE is "
            f"{settings.SESSION_ENGINE}.",
            fix="Use another SESSION_ENGINE, such as "
            "“django.contrib.sessions.backends.db”, or a cache that stores "
            "its values (SESSION_CACHE_ALIAS in CACHES): DummyCache stores "
            "nothing.",
        )


def find_cookie_faults(origins: Iterable[str]) -> Iterator[Finding]:
    """Cookies that browsers do not send to the callback, or to pages of a launch."""
    root = get_script_prefix()
    hosts = {urlsplit(each).hostname or "" for each in origins}
    for name in ("SESSION_COOKIE", "CSRF_COOKIE"):
        path = getattr(settings, f"{name}_PATH")
        domain = (getattr(settings, f"{name}_DOMAIN") or "").lstrip(".").lower()
        if not root.startswith(path.rstrip("/") + "/"):
            yield build_finding(
                "cookie_hidden",
                what=f"{name}_PATH is {path!r}, so browsers do not send that cookie "
                f"to every page below {root!r}, such as the callback and the "
                "pages of a launch.",
                fix=f"Set {name}_PATH = {root!r}.",
            )
        others = [
            each for each in hosts if domain and not f".{each}".endswith(f".{domain}")
        ]
        if others:
            yield build_finding(
                "cookie_hidden",
                what=f"{name}_DOMAIN is {domain!r}, but this site is "
                f"{', '.join(sorted(others))}: browsers refuse that cookie.",
                fix=f"Set {name}_DOMAIN = None, or to a domain above the site's host.",
            )
        insecure = [
            each
            for each in origins
            if each.startswith("http:")
            and urlsplit(each).hostname not in LOOPBACK_HOSTS
        ]
        if insecure and getattr(settings, f"{name}_SECURE"):
            yield build_finding(
                "cookie_hidden",
                what=f"{name}_SECURE is on, but this site is {insecure[0]}: "
                "browsers send that cookie only over https.",
                fix="Serve the site over https, and use https in SMART_SITE_URL.",
            )
    loopback = sorted(hosts & LOOPBACK_HOSTS)
    if len(loopback) > 1:
        yield build_finding(
            "hosts_differ",
            what="SMART_SITE_URL and the redirect URI use two names for this site, "
            f"{loopback[0]} and {loopback[1]}. Browsers treat them as "
            "different sites, so the callback does not receive the launch's "
            "cookie (state_foreign).",
            fix=f"Use {loopback[-1]} everywhere: in SMART_SITE_URL, in the "
            "redirect URI here and in the vendor's form, and in the browser.",
        )


def find_page_faults() -> Iterator[Finding]:
    """The pages of this package, in the templates of the site."""
    try:
        path = reverse("django_smart:launch")
    except NoReverseMatch:
        return  # a system check reports that the URLs are not included
    inside = _Inside(conf.SMART_SITE_URL or "https://localhost")
    words, page, is_complete = inside.show_error(path)
    if isinstance(page, Exception):
        if isinstance(page, AttributeError) and not is_complete:
            return  # a middleware that was not reached may set it
        yield build_finding(
            "page_broken",
            what=f"The error page cannot be rendered: {type(page).__name__}: {page}",
            fix="Fix the template or context processor that the error names.",
        )
        return
    missing = [name for name, word in words.items() if word not in page]
    if missing:
        yield build_finding(
            "page_empty",
            what=f"The error page shows no {' and no '.join(missing)}.",
            fix="Define {% block title %} and {% block content %} in the site's "
            "django_smart/base.html or in the template it extends; the pages "
            "fill them.",
        )


def walk(
    origin: str, registrations: Iterable[ClientRegistration], *, is_up: bool
) -> Iterator[Finding]:
    """
    Ask the launch URL and the callback, and see whether there is a landing page.

    Args:
        is_up: whether this site answers at *origin*; only then it is asked there.
    """
    try:
        paths = [reverse("django_smart:launch"), reverse("django_smart:login")]
    except NoReverseMatch:
        return  # a system check reports that the URLs are not included
    landing_pages = set()
    for each in registrations:
        landing_pages.add(each.landing_page or conf.SMART_LAUNCH_REDIRECT_URL)
        if each.redirect_uri and get_site_url(each) == origin:
            paths.append(urlsplit(each.redirect_uri).path)
    inside = _Inside(origin)
    blocked = []
    for path in dict.fromkeys(paths):
        found = list(_judge(origin + path, *inside.ask(path)))
        blocked += found or (list(_ask_view(origin + path)) if is_up else [])
    yield from blocked
    if not blocked:
        yield from inside.find_lost_cookies(paths[-1])
    for page in sorted(landing_pages):
        yield from _find_landing_page(origin if is_up else "", page)


def _ask_view(url: str) -> Iterator[Finding]:
    try:
        answer = ask(HTTPRequest(method="OPTIONS", url=url), server=None)
    except SMARTError:
        return  # The address itself has been asked for the JWK Set.
    yield from _judge(url, answer.status_code, answer.headers)


def _judge(url: str, status: int, headers: Mapping[str, str]) -> Iterator[Finding]:
    """*headers* with names in lower case."""
    if status in _NOT_PASSED_ON or (status < 300 and "allow" in headers):
        return
    where = headers.get("location", "").partition("?")[0]
    yield build_finding(
        "url_blocked",
        what=f"Requests for {url} do not reach this app: the response has status "
        f"{status}{f' and redirects to {where}' if where else ''}.",
        fix="Configure the proxy and middleware to pass requests for this path, "
        "including its trailing slash, without requiring sign-in and without "
        "redirecting.",
    )


class _Inside:
    """This site's middleware in this process, asked as if by a browser at *origin*."""

    def __init__(self, origin: str) -> None:
        self._parts = urlsplit(origin)
        self._handler = BaseHandler()
        self._handler.load_middleware()

    def ask(self, path: str) -> tuple[int, dict[str, str]]:
        """Status and headers, in lower case, of the answer to ``OPTIONS``."""
        _, response = self._send(path)
        headers = {name.lower(): text for name, text in response.items()}
        return response.status_code, headers

    def show_error(self, path: str) -> tuple[dict[str, str], str | Exception, bool]:
        """
        Words of an error page, the page or why it cannot be rendered, and whether the
        request passed all middleware.
        """
        urlconf = _build_urls(settings.ROOT_URLCONF, _show_error)
        request, _ = self._send(path, urlconf=urlconf)
        is_complete = hasattr(request, "doctor_page")
        if not is_complete:
            _show_error(request)
        return *request.doctor_page, is_complete

    def find_lost_cookies(self, path: str) -> Iterator[Finding]:
        """A session that a view saves has to leave with the settings' cookie."""
        request, response = self._send(
            path, urlconf=_build_urls(settings.ROOT_URLCONF, _save_session)
        )
        session = getattr(request, "session", None)
        if session is None or not session.modified:
            return  # a system check reports that there are no sessions
        session.delete()
        if response.status_code >= 500:
            return  # It could not be saved, which is reported with the sessions.
        morsel = response.cookies.get(settings.SESSION_COOKIE_NAME)
        wanted = (settings.SESSION_COOKIE_PATH, settings.SESSION_COOKIE_DOMAIN or "")
        if morsel is None:
            what = "lost"
        elif (morsel["path"], morsel["domain"]) != wanted:
            what = f"sent with path {morsel['path']!r} and domain {morsel['domain']!r}"
        else:
            return
        yield build_finding(
            "cookie_hidden",
            what=f"The cookie {settings.SESSION_COOKIE_NAME} of a session that was "
            f"saved is {what} in this site's middleware.",
            fix="Change the middleware that alters cookies so that this one stays as "
            "SessionMiddleware and SMARTMiddleware set it.",
        )

    def _send(self, path: str, urlconf: Any = None) -> tuple[Any, Any]:
        root = get_script_prefix()
        host, port = self._parts.hostname or "", self._parts.port
        is_secure = self._parts.scheme == "https"
        environ = {
            "REQUEST_METHOD": "OPTIONS",
            "SCRIPT_NAME": root.rstrip("/"),
            "PATH_INFO": "/" + path.removeprefix(root).lstrip("/"),
            "QUERY_STRING": "",
            "HTTP_HOST": self._parts.netloc,
            "SERVER_NAME": host,
            "SERVER_PORT": str(port or (443 if is_secure else 80)),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.url_scheme": self._parts.scheme,
            "wsgi.input": io.BytesIO(),
        }
        if is_secure and settings.SECURE_PROXY_SSL_HEADER:
            name, value = settings.SECURE_PROXY_SSL_HEADER
            environ[name] = value
        request = WSGIRequest(environ)
        if urlconf is not None:
            request.urlconf = urlconf
        # Language, time zone and URLs of whoever asks the doctor stay theirs.
        response = contextvars.copy_context().run(self._handler.get_response, request)
        return request, response


@functools.cache
def _build_urls(urlconf: Any, view: Callable[..., HttpResponse]) -> ModuleType:
    """The URLs of *urlconf* behind *view* for every path."""
    urls = ModuleType("django_smart_doctor_urls")
    urls.urlpatterns = [  # type: ignore[attr-defined]  # a module made here
        re_path("", view),
        # Not with include(), which refuses i18n_patterns.
        *get_resolver(urlconf).url_patterns,
    ]
    return urls


@login_not_required
def _save_session(request: HttpRequest, **_: Any) -> HttpResponse:
    if hasattr(request, "session"):
        request.session["doctor"] = 1
    return HttpResponse()


@login_not_required
def _show_error(request: HttpRequest, **_: Any) -> HttpResponse:
    words = {name: f"{name}-{secrets.token_hex(4)}" for name in ("title", "advice")}
    page: str | Exception
    try:
        page = render_to_string(
            "django_smart/error.html", {**words, "code": "doctor"}, request
        )
    except Exception as exc:  # noqa: BLE001 (the site's own templates and processors)
        page = exc
    request.doctor_page = words, page  # type: ignore[attr-defined]  # for the doctor
    return HttpResponse()


def _find_landing_page(origin: str, page: str) -> Iterator[Finding]:
    try:
        path = urlsplit(resolve_url(page)).path
    except NoReverseMatch:
        path = page
    if find_route(path, follow=True):
        return
    severity = None if origin else Severity.WARNING
    try:
        if origin and ask(
            HTTPRequest(method="GET", url=origin + path), server=None
        ).status_code not in {404, 410}:
            return
    except SMARTError:
        severity = Severity.WARNING
    yield build_finding(
        "landing_page_missing",
        severity=severity,
        what=f"There is no page at {path}, where people are sent after a launch.",
        fix="Set SMART_LAUNCH_REDIRECT_URL, or the registration's landing page, "
        "to a path or URL name of this site, or add a view for that path.",
    )
