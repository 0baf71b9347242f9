"""
Django REST framework: views for the launch of a request.

Needs the extra ``drf``.  An API under the launch's prefix is used by the scripts of a
page with the browser's cookies, as any other view of the site.
"""

from __future__ import annotations

import logging
from typing import Any

from django.utils.translation import gettext as _
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView, set_rollback
from rest_framework.views import exception_handler as default_handler

from ..error_pages import is_trouble
from ..error_pages.words import find_words
from ..exceptions import ContextChangedError, SMARTError
from ..launches.context import get_context
from ..protocol.scopes import ScopeSet

__all__ = ["SMARTAuthentication", "SMARTPermission", "exception_handler"]

logger = logging.getLogger(__name__)


class SMARTAuthentication(SessionAuthentication):
    """
    Signs in by the launch of the request.

    ``request.user`` is whose launch it is, anonymous where it is the browser's alone,
    and ``request.auth`` is ``request.smart``.  Without a launch the next class is
    asked.  What may change something needs the CSRF token, as with DRF's
    ``SessionAuthentication``: a browser sends the launch's cookie by itself.
    """

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        """Replace upstream's, which asks for a session and no launch."""
        smart = get_context(request._request)
        if not smart:
            return None
        # The launch was found for this very user, or for nobody.
        user = request._request.user
        if user.is_authenticated and not user.is_active:
            return None
        self.enforce_csrf(request)
        return user, smart


class SMARTPermission(BasePermission):
    """
    Lets requests through whose launch suffices for the view.

    Others are answered with 403 and an object with ``detail``, in words, and ``code``:
    ``no_launch``, ``ambiguous``, ``insufficient_scope`` (with ``missing``, the scopes),
    ``patient_missing`` or ``encounter_missing``.

    The view's attributes are those of ``SMARTRequiredMixin``:

    - ``smart_scopes``: a scope string or ``ScopeSet`` that has to be granted.
    - ``smart_context``: ``"patient"``, ``"encounter"``, both, or neither.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        """
        Look at the launch; no query beyond that of the launch itself.

        Raises:
            PermissionDenied: it does not suffice.
        """
        smart = get_context(request._request)
        if not smart:
            raise _refuse(smart.reason, _("No chart is open for this."))
        scopes = getattr(view, "smart_scopes", "")
        if isinstance(scopes, str):
            scopes = ScopeSet.parse(scopes, strict=True)
        missing = str(scopes.missing_from(smart.scopes))
        if missing:
            raise _refuse(
                "insufficient_scope",
                _("The EHR has not allowed this."),
                missing=missing,
            )
        context = getattr(view, "smart_context", ())
        for name in (context,) if isinstance(context, str) else context:
            if getattr(smart, f"{name}_id") is None:
                raise _refuse(
                    f"{name}_missing",
                    _("The launch has no %(name)s in context.") % {"name": name},
                )
        return True


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """
    Tell of trouble with the EHR in JSON; for the setting ``EXCEPTION_HANDLER``.

    An object with ``detail``, in words, and ``code``, with the status that the page
    would have.  A transaction of the request is rolled back.  Anything else is left to
    the framework's own handler.
    """
    if not isinstance(exc, SMARTError) or not (
        is_trouble(exc) or isinstance(exc, ContextChangedError)
    ):
        return default_handler(exc, context)
    set_rollback()
    smart = get_context(context["request"]._request)
    logger.warning(
        "Launch %s: an API failed: %s",
        smart.launch.pk if smart.launch else "unknown",
        exc.code,
        exc_info=exc,
    )
    name = smart.server.name if smart.server else ""
    return Response(
        {"detail": str(find_words(exc).get_title(name)), "code": exc.code},
        status=exc.http_status,
    )


def _refuse(code: str, detail: str, **members: str) -> PermissionDenied:
    return PermissionDenied({"detail": detail, "code": code, **members}, code=code)
