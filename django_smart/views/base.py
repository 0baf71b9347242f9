"""What the protocol's views share: error pages and parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.http.response import HttpResponseBase
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import (
    sensitive_post_parameters,
    sensitive_variables,
)
from django.views.generic import View

from ..error_pages import Retry, harden, render_error
from ..exceptions import LaunchRequestError, SMARTError
from ..models import ClientRegistration, Launch
from ..redaction import hide_parameters
from ..tracing import span

__all__ = [
    "ProtocolView",
    "get_next_url",
    "get_single",
    "outside_transactions",
]

_View = TypeVar("_View", bound=Callable[..., Any])

# A value that can be stored and sent in a URL: no control characters.
_VALUE = re.compile(r"[^\x00-\x1f\x7f]+")
_MAX_VALUE = 8192
# Length of a page's URL, which is stored with each launch that leads to it.
_MAX_NEXT = 2000


def outside_transactions(view: _View) -> _View:
    """Exempt *view* from ``ATOMIC_REQUESTS``, whichever database has it."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


class ProtocolView(View):
    """
    Converts every error of the package to a page with the right status.

    Attributes:
        registration: set as soon as it is known, so that an error page can name the
            organization.
        kind: how the launch started, for advice that differs.
        launch: set if there is one that this browser may know of.
        span_name: for traces; empty for views that are not traced.
    """

    registration: ClientRegistration | None = None
    launch: Launch | None = None
    kind = ""
    span_name = ""

    # From the site's own middleware, whose page leads nowhere: the check is below.
    @csrf_exempt
    # Reached before anyone is signed in, because a launch is the way to sign in.
    @login_not_required
    @outside_transactions
    def dispatch(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Check the form's token, and render :class:`SMARTError` as a page."""

        def respond(request: HttpRequest) -> HttpResponseBase:
            rejected = check.process_view(request, respond, args, kwargs)
            return self._respond(
                request, args, kwargs, is_outdated=rejected is not None
            )

        check = CsrfViewMiddleware(respond)
        return cast("HttpResponseBase", check(request))

    # Codes, tokens and claims pass through here; error reports get none of them,
    # whatever filter the site uses.
    @method_decorator(sensitive_post_parameters())
    @sensitive_variables()
    def _respond(
        self, request: HttpRequest, args: Any, kwargs: Any, *, is_outdated: bool
    ) -> HttpResponseBase:
        if "prefetch" in request.headers.get(
            "Sec-Purpose", request.headers.get("Purpose", "")
        ):
            # Nobody has clicked yet.  Not 503, which Django reports as an error.
            return harden(HttpResponseForbidden())
        with span(self.span_name) as traced:
            try:
                if is_outdated:
                    raise LaunchRequestError(
                        "The form has no valid CSRF token.", code="form_outdated"
                    )
                return super().dispatch(request, *args, **kwargs)
            except SMARTError as exc:
                traced["error"] = exc.code
                return self._render_error(request, exc)
            except Exception:
                hide_parameters(request)
                raise
            finally:
                registration = self.registration
                if self.launch is not None:
                    registration = self.launch.registration
                    traced["deviations"] = [code for code, _ in self.launch.deviations]
                if registration is not None:
                    traced["server"] = registration.server.slug

    def _render_error(self, request: HttpRequest, error: SMARTError) -> HttpResponse:
        retry, extra = self.get_retry(error), self.get_error_context(error)
        # Django logs what a template lacks, with the request it was given.
        hide_parameters(request)
        return render_error(
            request,
            error,
            retry=retry,
            server_name=self.registration.server.name if self.registration else "",
            kind=self.kind,
            launch=self.launch,
            extra=extra,
        )

    # Hooks for subclasses

    def get_retry(self, error: SMARTError) -> Retry | None:
        """Return the error page's button, or ``None``."""
        return None

    def get_error_context(self, error: SMARTError) -> dict[str, object]:
        """Return additional values for the error page's template."""
        return {}


def get_single(request: HttpRequest, name: str) -> str:
    values = request.GET.getlist(name)
    if len(values) != 1:
        raise LaunchRequestError(
            f"The launch URL must have one {name} parameter, but it has {len(values)}."
        )
    (value,) = values
    if len(value) > _MAX_VALUE:
        raise LaunchRequestError(
            f"The {name} parameter of the launch URL has {len(value)} characters; "
            f"{_MAX_VALUE} are allowed."
        )
    if not _VALUE.fullmatch(value):
        raise LaunchRequestError(
            f"The {name} parameter of the launch URL is empty or contains control "
            "characters."
        )
    return value


def get_next_url(request: HttpRequest, value: str) -> str:
    """Return *value* if it is a path of this site of usual length, or "" (CALL-08)."""
    if (
        value.startswith("/")
        and len(value) <= _MAX_NEXT
        and _VALUE.fullmatch(value)
        and url_has_allowed_host_and_scheme(
            value, allowed_hosts=None, require_https=request.is_secure()
        )
    ):
        return value
    return ""
