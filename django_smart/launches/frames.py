"""
Pages in a frame of the EHR: who may frame them, and cookies that work there.

Browsers do not send a site's ordinary cookies from another site's frame. They send
``SameSite=None; Secure; Partitioned`` cookies, which they store separately for the page
around the frame: a frame acts as another browser. One of the cookies of its
:class:`.browser.Browser` says whose frame it is, so that pages without a launch know
it, too.
"""

from __future__ import annotations

from http.cookies import Morsel
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch, get_script_prefix
from django.utils.cache import patch_vary_headers

from ..conf import conf
from ..models import FHIRServer, Launch
from .browser import FRAME_MARK, peek_browser
from .context import has_found_launch
from .prefix import get_protocol_url, split_launch_key
from .request_state import get_request_state

__all__ = [
    "adapt_response",
    "is_framed",
    "is_same_site",
    "may_be_framed",
    "may_embed",
    "set_frame",
]

_DESTINATIONS = frozenset({"embed", "frame", "iframe", "object"})
_SAME_SITE = frozenset({"same-origin", "same-site"})
_POLICIES = ("Content-Security-Policy", "Content-Security-Policy-Report-Only")
_ATTRIBUTES: dict[str, Any] = {
    "partitioned": True,
    "samesite": "None",
    "secure": True,
}


class _PartitionedMorsel(Morsel[str]):
    """A cookie that can be ``Partitioned``; Python supports this from 3.14 on."""

    _reserved = {**Morsel._reserved, "partitioned": "Partitioned"}  # type: ignore[attr-defined]
    _flags = {*Morsel._flags, "partitioned"}  # type: ignore[attr-defined]


def is_framed(request: HttpRequest) -> bool:
    """Return whether the browser shows the response inside another page."""
    return request.META.get("HTTP_SEC_FETCH_DEST") in _DESTINATIONS


def is_same_site(request: HttpRequest) -> bool:
    """Return whether a page of this site made the request: its frames share cookies."""
    return request.headers.get("Sec-Fetch-Site", "") in _SAME_SITE


def may_embed(server: FHIRServer) -> bool:
    """Return whether *server* may show this site in a frame."""
    return bool(server.frame_origins)


def set_frame(request: HttpRequest, server: FHIRServer | None) -> None:
    """
    Set whose frame the response is for, if neither prefix nor cookie shows it.

    Args:
        server: ``None`` for a response that is not for a frame.
    """
    state = get_request_state(request)
    state.is_frame_known, state.frame_server = True, server


def may_be_framed(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Return whether :func:`adapt_response` may have work to do, without a query."""
    # Runs for every page: read META, because headers are built from it on access.
    destination = request.META.get("HTTP_SEC_FETCH_DEST")
    if destination:
        if destination in _DESTINATIONS:
            return True
        if not response.cookies:
            return False  # such as a file, which cannot contain a frame
    state = get_request_state(request)
    if state.is_frame_known or state.prefix is not None:
        return True
    if state.browser is None and FRAME_MARK not in request.META.get("HTTP_COOKIE", ""):
        return False
    return peek_browser(request).frame is not None


def adapt_response(request: HttpRequest, response: HttpResponseBase) -> None:
    """
    Make the cookies of *response* work in the frame.

    Pages of its launch, and those that lead to one, may be shown in it.  The page
    around the frame gets no other page: it could cover the page, to redirect clicks.
    """
    server = _find_server(request)
    if server is None or not may_embed(server):
        return
    if _belongs_to_launch(request, response):
        _set_frame_ancestors(response, " ".join(server.frame_origins))
        response.headers.pop("X-Frame-Options", None)
    patch_vary_headers(response, ["Cookie"])
    # In a frame of this site itself, cookies are shared with its other windows.
    if peek_browser(request).frame is not None:
        _partition_cookies(response)


def _find_server(request: HttpRequest) -> FHIRServer | None:
    state = get_request_state(request)
    if state.is_frame_known:
        return state.frame_server
    if state.context is not None and state.prefix is not None:
        launch = state.context.named_launch
        if launch is not None:
            return launch.registration.server if launch.is_framed else None
    browser = peek_browser(request)
    if browser.frame is not None:
        if request.headers.get("Sec-Fetch-Dest") == "document":
            return None  # a window of its own
        return FHIRServer.objects.filter(pk=browser.frame).first()
    if not browser.digests or not is_framed(request):
        return None
    launch = (
        Launch.objects.with_related()
        .filter(browser_digest__in=browser.digests, is_framed=True)
        .first()
    )
    return launch.registration.server if launch else None


def _belongs_to_launch(request: HttpRequest, response: HttpResponseBase) -> bool:
    state = get_request_state(request)
    return (
        state.is_frame_known
        or state.prefix is not None
        or getattr(response, "leads_to_launch", False)
        or (not conf.SMART_LAUNCH_PREFIX and has_found_launch(state.context))
        or _asks_to_sign_in(request)
    )


def _asks_to_sign_in(request: HttpRequest) -> bool:
    """Return whether it is the site's sign-in page, and leads back to a launch."""
    try:
        login_url = resolve_url(settings.LOGIN_URL)
    except NoReverseMatch:
        return False
    if request.path != urlsplit(login_url).path:
        return False
    next_url = request.GET.get("next") or request.POST.get("next", "")
    path = urlsplit(next_url).path
    decide = get_protocol_url("decide", key="-").removesuffix("-/")
    inner = "/" + path.removeprefix(get_script_prefix())
    return path.startswith(decide) or split_launch_key(inner)[0] is not None


def _set_frame_ancestors(response: HttpResponseBase, origins: str) -> None:
    """Replace this directive in the site's own policy, or add it."""
    response.headers.setdefault(_POLICIES[0], "")
    for name in _POLICIES:
        if name in response.headers:
            response.headers[name] = ", ".join(
                _replace_frame_ancestors(policy, origins)
                # Several policies in one header: each of them must allow it.
                for policy in response.headers[name].split(",")
            )


def _replace_frame_ancestors(policy: str, origins: str) -> str:
    directives = [each.strip() for each in policy.split(";")]
    kept = [
        each
        for each in directives
        if each and each.split()[0].lower() != "frame-ancestors"
    ]
    return "; ".join([*kept, f"frame-ancestors {origins}"])


def _partition_cookies(response: HttpResponseBase) -> None:
    """
    Adapt all cookies, including deletions: a frame's cookies are stored separately.
    """
    for name, cookie in list(response.cookies.items()):
        morsel = _PartitionedMorsel()
        morsel.set(name, cookie.value, cookie.coded_value)
        morsel.update(cookie)
        morsel.update(_ATTRIBUTES)
        response.cookies[name] = morsel
