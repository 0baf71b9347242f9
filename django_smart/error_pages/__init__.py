"""Error pages: what happened, and what to do next."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from ..conf import conf
from ..diagnoses import build_docs_url
from ..exceptions import (
    BearerBoundaryError,
    CredentialsError,
    DiscoveryError,
    FHIRStatusError,
    ForeignPatientError,
    InactiveRegistrationError,
    MalformedFHIRResponseError,
    ReauthorizationRequiredError,
    ReplacedPatientError,
    ResponseTooLargeError,
    ServerTimeoutError,
    ServerUnreachableError,
    SMARTError,
    TokenError,
    TooManyResultsError,
    TransportError,
)
from ..models import Launch
from .retry import Retry, can_pass, connect_again, get_page, try_again
from .words import OUTCOME_UNKNOWN, find_page, get_advice, get_title

__all__ = ["Retry", "harden", "is_trouble", "render_error", "render_trouble"]

# Errors that the EHR or an operator causes.  Errors in the site's own code go to its
# error reports.
_TROUBLE = (
    BearerBoundaryError,
    CredentialsError,
    DiscoveryError,
    FHIRStatusError,
    ForeignPatientError,
    InactiveRegistrationError,
    MalformedFHIRResponseError,
    ReauthorizationRequiredError,
    TokenError,
    TooManyResultsError,
    TransportError,
)


def render_error(
    request: HttpRequest,
    error: SMARTError,
    *,
    code: str = "",
    retry: Retry | None = None,
    server_name: str = "",
    kind: str = "",
    launch: Launch | None = None,
    extra: dict[str, object] | None = None,
) -> HttpResponse:
    """
    Render the page for *error*, with its status (``error.http_status``).

    Template: ``django_smart/error.html``.

    Args:
        code: shown instead of the error's code.
        retry: the page's button, or ``None`` for none.
        server_name: the organization that the page names, if it is known.
        kind: how the launch began (``Launch.Kind``), for advice that differs.
        launch: whose number is shown beside the code, for support staff; its
            organization and kind replace *server_name* and *kind*.
        extra: additional values for the template context.
    """
    if launch is not None:
        server_name, kind = launch.registration.server.name, launch.kind
    page = find_page(error, code, kind=kind)
    context = {
        "code": code or error.code,
        "docs_url": build_docs_url(code or error.code),
        "support_url": conf.SMART_SUPPORT_URL,
        "title": get_title(page, server_name),
        "advice": get_advice(page, kind, can_retry=retry is not None),
        "error_description": getattr(error, "error_description", ""),
        "error_uri": getattr(error, "error_uri", ""),
        "missing_scopes": getattr(error, "missing", ""),
        "retry": retry,
        # Its advice is to sign out.
        "signs_out": error.code == "identity_in_use",
        "server_name": server_name,
        "launch_id": launch.pk if launch else None,
        **(extra or {}),
    }
    response = render(
        request, "django_smart/error.html", context, status=error.http_status
    )
    return harden(response)


def render_trouble(
    request: HttpRequest, error: SMARTError, launch: Launch | None
) -> HttpResponse:
    """Render the page for *error*, raised in a view that used *launch*, if any."""
    page = get_page(request)
    extra: dict[str, object] = {}
    if can_pass(error):
        retry = try_again(page) if page else None
    else:
        retry = connect_again(launch, next_url=page) if launch is not None else None
    if request.method not in {"GET", "HEAD"} and _may_be_stored(error):
        extra["advice"] = OUTCOME_UNKNOWN
    return render_error(request, error, retry=retry, launch=launch, extra=extra)


def _may_be_stored(error: SMARTError) -> bool:
    """Return whether *error* may have followed a write that the EHR has stored."""
    match error:
        case FHIRStatusError(status_code=status):
            return status >= 500
        case ReplacedPatientError():
            return False
    return isinstance(
        error,
        (
            MalformedFHIRResponseError,
            ResponseTooLargeError,
            ServerTimeoutError,
            ServerUnreachableError,
        ),
    )


def is_trouble(error: SMARTError) -> bool:
    """Return whether the EHR or an operator caused *error*, not the site's code."""
    return isinstance(error, _TROUBLE) or error.code == "refresh_busy"


def harden(response: HttpResponse) -> HttpResponse:
    """
    Keep the page out of caches, and its URL out of ``Referer`` (CALL-10).

    In a frame of the EHR, it can be shown as the launch's own pages can.

    The pages themselves relax this to ``strict-origin`` with a ``meta`` element: under
    ``no-referrer``, browsers send "Origin: null" with a page's forms (a site's sign-out
    button, say), which Django's CSRF check refuses.
    """
    # "private", too: early releases of Django 5.2 store what says no-store alone.
    response.headers["Cache-Control"] = "private, no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    # For the middleware, as Django's "xframe_options_exempt" is for its own.
    response.leads_to_launch = True  # type: ignore[attr-defined]
    return response
