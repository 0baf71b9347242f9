"""
A launch of this site at a simulated EHR, in this process: ``smart_doctor --launch``.

It passes through the site's own middleware, views and templates.  Server, user and
launch are rolled back, and the site's receivers of signals are off; what middleware,
hooks and views do outside of the database cannot be held back.
"""

from __future__ import annotations

import re
import secrets
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from weakref import ReferenceType

from django.conf import settings
from django.contrib.auth import signals as auth_signals
from django.core import signals as core_signals
from django.db import connections, transaction
from django.db.models import signals as model_signals
from django.dispatch import Signal
from django.shortcuts import resolve_url
from django.test import Client
from django.urls import (
    NoReverseMatch,
    URLPattern,
    URLResolver,
    get_resolver,
    get_script_prefix,
    reverse,
)
from django.utils.html import escape

from ... import signals as own_signals
from ...conf import conf
from ...diagnoses import DIAGNOSES, Finding, build_finding
from ...error_pages.words import get_advice, get_title
from ...models import ClientRegistration, Launch
from ...protocol.scopes import ScopeSet
from ...redaction import redact
from ...testing.simulator.ehr import EHRSimulator
from ...testing.site import create_registration, mounted_ehr

__all__ = ["NOT_HELD_BACK", "find_unrequested_scopes", "try_launch"]

NOT_HELD_BACK = (
    "The launch was rolled back in all databases of DATABASES, without receivers of "
    "signals. Mail, tasks, files, caches and requests to other services that "
    "middleware, hooks or views started themselves were not held back."
)

_CODE = re.compile(r"<code>([a-z_]+)</code>")
_SCOPE = "openid fhirUser online_access patient/*.cruds user/*.cruds"
# From the landing page to the first that shows something.
_MOST_REDIRECTS = 5


def try_launch() -> Iterator[Finding]:
    """Launch, open the landing page and an error page, and keep nothing."""
    site = (conf.SMART_SITE_URL or "https://localhost").rstrip("/")
    name = f"doctor-{secrets.token_hex(4)}"
    active = ClientRegistration.objects.active().select_related("server")
    is_framed = site.startswith("https:") and any(
        each.server.frame_origins for each in active
    )
    with _nothing_kept(), mounted_ehr(f"https://{name}.invalid/fhir") as ehr:
        registration = create_registration(
            ehr,
            site_url=site,
            client_id=name,
            token_endpoint_auth_method=ClientRegistration.AuthMethod.NONE,
            ehr_scope=f"launch {_SCOPE}",
            standalone_scope="",
            server__slug=name,
            server__name="Simulated EHR",
            server__frame_origins=[f"https://{name}.invalid"] if is_framed else [],
            server__quirks={"authorize_in_frame": True} if is_framed else {},
        )
        browser = _Browser(site, is_framed=is_framed)
        try:
            yield from _launch(browser, ehr, registration)
            yield from _find_error_page_fault(browser)
        finally:
            browser.forget_session()


class _Browser(Client):
    """A browser in whose frame the EHR is, or that opens the site in a tab."""

    def __init__(self, site: str, *, is_framed: bool) -> None:
        self._site = urlsplit(site)
        dest = "iframe" if is_framed else "document"
        headers: dict[str, Any] = {
            "HTTP_HOST": self._site.netloc,
            "HTTP_SEC_FETCH_SITE": "cross-site",
            "HTTP_SEC_FETCH_DEST": dest,
            "HTTP_SEC_FETCH_MODE": "navigate",
        }
        super().__init__(raise_request_exception=False, **headers)
        self.is_framed = is_framed

    def open(self, url: str, query: Any = None) -> Any:
        """Request *url* of this site."""
        parts, root = urlsplit(url), get_script_prefix()
        return self.get(
            "/" + parts.path.removeprefix(root).lstrip("/"),
            query or parse_qsl(parts.query, keep_blank_values=True),
            secure=self._site.scheme == "https",
            SCRIPT_NAME=root.rstrip("/"),
        )

    def is_here(self, url: str) -> bool:
        """Return whether *url* is one of this site."""
        return urlsplit(url).netloc in {"", self._site.netloc}

    def forget_session(self) -> None:
        """Delete the session, which may be in a cache or file."""
        cookie = self.cookies.get(settings.SESSION_COOKIE_NAME)
        if cookie is not None and cookie.value:
            store = import_module(settings.SESSION_ENGINE).SessionStore
            store(cookie.value).delete()


def _launch(
    browser: _Browser, ehr: EHRSimulator, registration: ClientRegistration
) -> Iterator[Finding]:
    patient = next(iter(ehr.data["Patient"]))
    launch_id = ehr.create_launch(registration.client_id, patient=patient)
    response = browser.open(
        reverse("django_smart:launch"), {"iss": ehr.base_url, "launch": launch_id}
    )
    authorize = response.headers.get("Location", "")
    if browser.is_framed and authorize.startswith("/"):
        # Whether the frame keeps cookies is tried first.
        response = browser.open(authorize)
        authorize = response.headers.get("Location", "")
    if not authorize.startswith(ehr.base_url.removesuffix("/fhir")):
        yield _build_broken("The launch URL", response)
        return
    response = browser.open(ehr.authorize(authorize))
    launch = Launch.objects.filter(registration=registration).last()
    if launch is None or launch.status != Launch.Status.OPEN:
        yield _build_broken("The callback", response)
        return
    morsel = response.cookies.get(settings.SESSION_COOKIE_NAME)
    wanted = (settings.SESSION_COOKIE_PATH, settings.SESSION_COOKIE_DOMAIN or "")
    if morsel is None or (morsel["path"], morsel["domain"]) != wanted:
        yield build_finding(
            "launch_broken",
            what="The session's cookie is lost or changed in this site's middleware.",
            fix="Change the middleware that alters cookies so that the cookie "
            f"{settings.SESSION_COOKIE_NAME} stays as SessionMiddleware and "
            "SMARTMiddleware set it.",
        )
        return
    yield from _open_landing_page(browser, response["Location"])


def _open_landing_page(browser: _Browser, url: str) -> Iterator[Finding]:
    try:
        login_path = urlsplit(resolve_url(settings.LOGIN_URL)).path
    except NoReverseMatch:  # a system check reports it
        login_path = str(settings.LOGIN_URL)
    response: Any = None
    for _number in range(_MOST_REDIRECTS):
        response = browser.open(url)
        url = response.headers.get("Location", "")
        if not url or urlsplit(url).path.endswith(login_path):
            break
        if not browser.is_here(url):
            return
    smart = getattr(response.wsgi_request, "smart", None)
    what = "The page that the launch opens"
    if url or response.status_code >= 400:
        yield _build_broken(what, response)
    elif not smart or not response.wsgi_request.user.is_authenticated:
        lost = "its launch" if not smart else "the user who has just signed in"
        yield build_finding(
            "launch_broken",
            what=f"{what} does not have {lost}.",
        )
    elif browser.is_framed and (fault := _find_frame_fault(response)):
        yield build_finding(
            "launch_broken",
            what=f"{what} cannot be shown in the EHR's frame: {fault}.",
            fix="Let the middleware that sets this header leave pages of a launch to "
            "SMARTMiddleware.",
        )


def _find_frame_fault(response: Any) -> str:
    if "X-Frame-Options" in response.headers:
        return f"X-Frame-Options is {response.headers['X-Frame-Options']}"
    policies = response.headers.get("Content-Security-Policy", "").split(",")
    for directive in (each.strip() for one in policies for each in one.split(";")):
        if directive in {"frame-ancestors 'none'", "frame-ancestors 'self'"}:
            return f"Content-Security-Policy has {directive}"
    return ""


def _find_error_page_fault(browser: _Browser) -> Iterator[Finding]:
    response = browser.open(reverse("django_smart:launch"))
    page = DIAGNOSES["missing_parameter"].page
    shown = response.content.decode(errors="replace")
    if response.status_code != 400:
        yield _build_broken("The error page", response, code="error_page_broken")
    elif page and not (
        escape(get_title(page, "")) in shown
        and escape(get_advice(page, Launch.Kind.EHR)) in shown
    ):
        yield build_finding("error_page_broken")


def _build_broken(what: str, response: Any, *, code: str = "launch_broken") -> Finding:
    """Return a finding that names the error, its place or its code; no traceback."""
    exc_info = getattr(response, "exc_info", None)
    shown = _CODE.search(response.content.decode(errors="replace"))
    if exc_info:
        error = exc_info[1]
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = redact(str(error)).partition("\n")[0][:300]
        why = (
            f"raises {type(error).__name__} at {frame.filename}:{frame.lineno}: {text}"
        )
        fix = "Fix the middleware, hook, view or template at that place."
    elif target := response.headers.get("Location", "").partition("?")[0]:
        why = f"redirects to {target}"
        fix = (
            "Let middleware pass requests for the URLs of django_smart and the pages "
            "of a launch, without requiring sign-in and without redirecting."
        )
    elif shown:
        why = f"responds with status {response.status_code} and the code {shown[1]}"
        fix = f"Look up {shown[1]} in the documentation, and see the log."
    else:
        why = f"responds with status {response.status_code}"
        fix = "See the log, and add the page if it is missing."
    return build_finding(code, what=f"{what} {why}.", fix=fix)


# What is not kept


@contextmanager
def _nothing_kept() -> Iterator[None]:
    with ExitStack() as stack:
        for alias in connections:
            stack.enter_context(_rolled_back(alias))
        stack.enter_context(_without_receivers())
        yield


@contextmanager
def _rolled_back(alias: str) -> Iterator[None]:
    with transaction.atomic(using=alias):
        try:
            yield
        finally:
            transaction.set_rollback(True, using=alias)


@contextmanager
def _without_receivers() -> Iterator[None]:
    """Turn the site's receivers off; Django and this package keep theirs."""
    modules = (own_signals, auth_signals, core_signals, model_signals)
    members = [each for module in modules for each in vars(module).values()]
    kept = {each: each.receivers for each in members if isinstance(each, Signal)}
    try:
        # Django has no public way to do so; factory_boy does the same.
        for signal, receivers in kept.items():
            _set_receivers(signal, [each for each in receivers if not _is_site(each)])
        yield
    finally:
        for signal, receivers in kept.items():
            _set_receivers(signal, receivers)


def _set_receivers(signal: Signal, receivers: list[Any]) -> None:
    with signal.lock:
        signal.receivers = receivers
        signal.sender_receivers_cache.clear()


def _is_site(entry: Any) -> bool:
    receiver = entry[1]
    if isinstance(receiver, ReferenceType):
        receiver = receiver()
    module = getattr(receiver, "__module__", None) or ""
    return module.partition(".")[0] not in {"django", "django_smart"}


# Scopes


def find_unrequested_scopes() -> Iterator[Finding]:
    """Views whose required scopes no registration requests."""
    registrations = list(ClientRegistration.objects.active())
    offered = [
        ScopeSet.parse(scope)
        for each in registrations
        for scope in (each.ehr_scope, each.standalone_scope)
        if scope
    ]
    for route, required in _find_required_scopes(get_resolver().url_patterns):
        missing = [str(each.missing(required)) for each in offered]
        if missing and all(missing):
            yield build_finding(
                "scopes_not_requested",
                what=f"The view at {route} requires {required}, which no active "
                f"registration requests: {min(missing, key=len)} is missing.",
            )


def _find_required_scopes(
    patterns: Iterable[Any], prefix: str = "/"
) -> Iterator[tuple[str, ScopeSet]]:
    for each in patterns:
        route = prefix + str(each.pattern).removeprefix("^")
        if isinstance(each, URLResolver):
            yield from _find_required_scopes(each.url_patterns, route)
        elif isinstance(each, URLPattern):
            view = getattr(each.callback, "view_class", each.callback)
            scopes = getattr(view, "smart_scopes", "")
            if scopes:
                yield route, ScopeSet.parse(str(scopes))
