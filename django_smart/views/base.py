"""What the protocol's views have in common: errors made pages, and their parameters."""

from __future__ import annotations

import re
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import method_decorator
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.debug import (
    sensitive_post_parameters,
    sensitive_variables,
)
from django.views.generic import View

from ..error_pages import Retry, render_error
from ..exceptions import MissingParameterError, SMARTError
from ..models import ClientRegistration
from ..redaction import hide_parameters

__all__ = ["ProtocolView", "get_next_url", "get_single", "get_user"]

# A value that can be stored, and sent on in an address: no control characters.
_VALUE = re.compile(r"[^\x00-\x1f\x7f]{1,8192}")


# Reached before anybody is signed in; a launch is the way to sign in.
@method_decorator(login_not_required, name="dispatch")
@method_decorator(transaction.non_atomic_requests, name="dispatch")
# Codes, tokens and claims pass through here: a report of an error gets none of them,
# whatever filter the site has.
@method_decorator(sensitive_post_parameters(), name="dispatch")
@method_decorator(sensitive_variables(), name="dispatch")
class ProtocolView(View):
    """
    Turns every error of the package into a page with the right status.

    Attributes:
        registration: set as soon as it is known, so that an error page can name the
            organisation.
        kind: how the launch begins, for advice that differs.
    """

    registration: ClientRegistration | None = None
    kind = ""

    def dispatch(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """As Django's, with :class:`SMARTError` made a page."""
        try:
            return super().dispatch(request, *args, **kwargs)
        except SMARTError as exc:
            retry, extra = self.get_retry(exc), self.get_error_context(exc)
            # Django logs what a template lacks, with the request it was given.
            hide_parameters(request)
            return render_error(
                request,
                exc,
                retry=retry,
                server_name=self.registration.server.name if self.registration else "",
                kind=self.kind,
                extra=extra,
            )
        except Exception:
            hide_parameters(request)
            raise

    # Hooks for subclasses

    def get_retry(self, error: SMARTError) -> Retry | None:
        """The error page's button, if one can help."""
        return None

    def get_error_context(self, error: SMARTError) -> dict[str, object]:
        """Further values for the error page's template."""
        return {}


def get_user(request: HttpRequest) -> Any:
    user = getattr(request, "user", None)
    return user if user is not None and user.is_authenticated else None


def get_single(request: HttpRequest, name: str) -> str:
    values = request.GET.getlist(name)
    if len(values) != 1 or not _VALUE.fullmatch(values[0]):
        raise MissingParameterError(
            f"A launch carries {name} exactly once, neither empty nor oversized nor "
            "with control characters.",
            parameter=name,
        )
    return values[0]


def get_next_url(request: HttpRequest, value: str) -> str:
    """*value* if it is a path of this site, else empty (CALL-08)."""
    if (
        value.startswith("/")
        and _VALUE.fullmatch(value)
        and url_has_allowed_host_and_scheme(
            value, allowed_hosts=None, require_https=request.is_secure()
        )
    ):
        return value
    return ""
