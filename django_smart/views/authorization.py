"""Sending the browser to the EHR: a redirect, or a form that sends itself."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.templatetags.static import static

from ..error_pages import harden
from ..launches.begin import LaunchStart
from ..protocol.urls import get_origin

__all__ = ["go_to_server"]


def go_to_server(request: HttpRequest, start: LaunchStart) -> HttpResponse:
    """
    Send the browser to the authorization endpoint, by GET or by POST (AUTH-08).

    Template: ``django_smart/authorize_post.html``.
    """
    if not start.uses_post:
        return harden(HttpResponseRedirect(start.request.url))
    context = {
        "request_form": start.request,
        "server": start.launch.registration.server,
    }
    response = harden(render(request, "django_smart/authorize_post.html", context))
    response.headers["Content-Security-Policy"] = _build_policy(start.request.endpoint)
    return response


def _build_policy(endpoint: str) -> str:
    """
    What the page may do: show itself, run our script, send its form.

    Chromium holds the redirects that follow a form to ``form-action`` too, and EHRs
    send people to log in at other hosts, and from there back to this site: any https
    address has to be allowed.  Nothing on the page comes from outside unescaped.
    """
    files = " ".join(_get_file_origins())
    directives = {
        "default-src": "'none'",
        "script-src": files,
        "style-src": files,
        "img-src": files,
        "font-src": files,
        "form-action": f"{get_origin(endpoint)} 'self' https:",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _get_file_origins() -> list[str]:
    """Where static files may stand: here, or at the host of ``STATIC_URL``."""
    url = static("django_smart/authorize-post.js")
    if url.startswith("//"):
        return ["'self'", url.split("/")[2]]
    return ["'self'"] if url.startswith("/") else ["'self'", get_origin(url)]
