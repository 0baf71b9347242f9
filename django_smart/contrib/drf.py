"""
Django REST framework: views for the launch of a request.

Requires the extra ``drf``.  Scripts of a page use an API under the launch's prefix with
the browser's cookies, like any other view of the site.
"""

from __future__ import annotations

import logging
from typing import Any

from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView, set_rollback
from rest_framework.views import exception_handler as default_handler

from ..decorators import find_lack
from ..error_pages import is_trouble
from ..error_pages.words import find_page, get_title
from ..exceptions import ContextChangedError, SMARTError
from ..launches.context import get_context
from ..protocol.scopes import ScopeSet

__all__ = ["SMARTAuthentication", "SMARTPermission", "exception_handler"]

logger = logging.getLogger(__name__)


class SMARTAuthentication(SessionAuthentication):
    """
    Authenticates with the launch of the request.

    ``request.user`` is the launch's user, or anonymous if only the browser has the
    launch, and ``request.auth`` is ``request.smart``.  Without a launch, the next class
    is tried. Unsafe methods require the CSRF token, as with DRF's
    ``SessionAuthentication``, because browsers send the launch's cookie automatically.
    """

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        """Replace upstream's, which requires a session user instead of a launch."""
        smart = get_context(request._request)
        if not smart:
            return None
        # The launch was found for exactly this user, or for no one.
        user = request._request.user
        if user.is_authenticated and not user.is_active:
            return None
        self.enforce_csrf(request)
        return user, smart


class SMARTPermission(BasePermission):
    """
    Allows requests whose launch meets the view's requirements.

    Other requests get status 403 and an object with ``detail``, for people, and
    ``code``: ``no_launch``, ``ambiguous``, ``insufficient_scope`` (with ``missing``,
    the scopes), ``patient_missing`` or ``encounter_missing``.  Unsafe methods require
    the CSRF token, whatever class has authenticated the request.

    The view has the attributes of ``SMARTRequiredMixin``:

    - ``smart_scopes``: required scopes, as a scope string or ``ScopeSet``.
    - ``smart_context``: ``"patient"``, ``"encounter"``, both or neither.

    It raises ``PermissionDenied`` instead of returning ``False``: put it last if you
    combine permissions with ``|``; ``~`` is not supported.
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        """
        Check the launch, without other queries.

        Raises:
            PermissionDenied: it is insufficient.
        """
        smart = get_context(request._request)
        if smart and request.auth is not smart:
            # The browser sent the launch's cookie, which another class does not check.
            SMARTAuthentication().enforce_csrf(request)
        scopes = getattr(view, "smart_scopes", "")
        if isinstance(scopes, str):
            scopes = ScopeSet.parse(scopes, strict=True)
        lack = find_lack(
            smart,
            scopes=scopes,
            context=getattr(view, "smart_context", ()),
        )
        if lack is None:
            return True
        error, code = lack
        detail = {
            "detail": get_title(find_page(error, code), ""),
            "code": code or "insufficient_scope",
        }
        if missing := getattr(error, "missing", ""):
            detail["missing"] = missing
        raise PermissionDenied(detail, code=detail["code"])


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """
    Report EHR errors as JSON; for the setting ``EXCEPTION_HANDLER``.

    The response is an object with ``detail``, for people, and ``code``, with the status
    that the page would have.  The request's transaction is rolled back.  All other
    errors go to the framework's own handler.
    """
    if not isinstance(exc, SMARTError) or not (
        is_trouble(exc) or isinstance(exc, ContextChangedError)
    ):
        return default_handler(exc, context)
    set_rollback()
    smart = get_context(context["request"]._request)
    logger.warning(
        "Launch %s: API error: %s",
        smart.launch.pk if smart.launch else "unknown",
        exc.code,
        exc_info=exc,
    )
    name = smart.server.name if smart.server else ""
    return Response(
        {"detail": get_title(find_page(exc), name), "code": exc.code},
        status=exc.http_status,
    )
