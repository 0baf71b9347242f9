"""What comes before a launch in a frame: whether it can be finished there."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render

from ..error_pages import harden
from ..launches.browser import get_browser
from ..launches.frames import is_framed, is_same_site, may_embed, set_frame
from ..models import FHIRServer

__all__ = ["enter_frame"]

# In the address once a cookie was set: if none comes back then, none ever will.
_TRIED = "cookies"


def enter_frame(
    request: HttpRequest, server: FHIRServer, *, url: str = ""
) -> HttpResponse | None:
    """
    Make sure that a launch can be finished in the frame it was started in.

    Nothing of the launch is touched before: another window is another cookie jar, and
    the EHR's ``launch`` value can be used once only.

    Args:
        url: where the launch begins in a new window; by default the request's address.

    Returns:
        ``None`` to go on.  Else the answer: the same address once more, with a cookie,
        or the button "Open in a new window".
    """
    if not is_framed(request):
        return None
    browser = get_browser(request)
    if not may_embed(server) or browser.frame not in (None, server.pk):
        # The page around the frame is not this server's.
        return _offer_window(request, server, url=url)
    set_frame(request, server)
    if not server.authorize_in_frame:
        return _offer_window(request, server, url=url)
    came_back = browser.digest is not None
    if is_same_site(request):
        browser.ensure()
    else:
        came_back = browser.frame is not None
        browser.enter_frame(server.pk)
    if came_back:
        return None
    if _TRIED in request.GET or request.method != "GET":
        return _offer_window(request, server, url=url)
    return harden(HttpResponseRedirect(_build_url(request, tried=True)))


def _offer_window(
    request: HttpRequest, server: FHIRServer, *, url: str
) -> HttpResponse:
    """
    The button that leads out of the frame.

    Template: ``django_smart/new_window.html``.
    """
    context = {"url": url or _build_url(request), "server": server}
    return harden(render(request, "django_smart/new_window.html", context))


def _build_url(request: HttpRequest, *, tried: bool = False) -> str:
    query = request.GET.copy()
    query.pop(_TRIED, None)
    if tried:
        query[_TRIED] = "tried"
    return f"{request.path}?{query.urlencode()}"
