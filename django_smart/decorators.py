"""Decorators for views that require a launch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.translation import gettext_lazy as _
from django.views.generic import View

from .conf import conf
from .error_pages import render_error
from .error_pages.retry import connect_again, connect_records, get_page
from .exceptions import InsufficientScopeError, NoLaunchError, SMARTError
from .launches.context import SMARTContext, get_context
from .launches.open_charts import get_open_charts
from .models import Launch
from .protocol.scopes import ScopeSet

__all__ = ["find_lack", "smart_required"]

logger = logging.getLogger(__name__)

_ONE_CHART = _(
    "This site shows one chart until you sign out. Sign out, then open the app again."
)

_View = TypeVar("_View", bound=Callable[..., Any])


@overload
def smart_required(view: _View) -> _View: ...


@overload
def smart_required(
    *, scopes: str | ScopeSet = "", context: str | tuple[str, ...] = ()
) -> Callable[[_View], _View]: ...


def smart_required(
    view: _View | None = None,
    *,
    scopes: str | ScopeSet = "",
    context: str | tuple[str, ...] = (),
) -> Any:
    """
    Run the view only with a launch that has the granted *scopes* and *context*.

    Otherwise, the response is a page with status 403 that explains how to open the app
    or connect, and lists the open charts if several match.

    Args:
        scopes: required scopes, as a scope string or :class:`ScopeSet`.
        context: required context: ``"patient"``, ``"encounter"`` or both.
    """
    required = (
        ScopeSet.parse(scopes, strict=True) if isinstance(scopes, str) else scopes
    )

    refuse = partial(_find_refusal, scopes=required, context=context)

    def decorate(view: _View) -> _View:
        @wraps(view)
        async def awrapped(
            request: HttpRequest, *args: Any, **kwargs: Any
        ) -> HttpResponseBase:
            refusal = await sync_to_async(refuse)(request)
            return refusal or cast(
                "HttpResponseBase", await view(request, *args, **kwargs)
            )

        @wraps(view)
        def wrapped(
            request: HttpRequest, *args: Any, **kwargs: Any
        ) -> HttpResponseBase:
            refusal = refuse(request)
            return refusal or cast("HttpResponseBase", view(request, *args, **kwargs))

        return cast("_View", awrapped if _is_async(view) else wrapped)

    return decorate if view is None else decorate(view)


def _is_async(view: Any) -> bool:
    """Return whether *view* returns a coroutine."""
    if iscoroutinefunction(view):
        return True
    # SMARTRequiredMixin passes dispatch(), and method_decorator a partial of it: plain
    # functions that return a coroutine if the class is asynchronous.
    while view is not None:
        owner = getattr(getattr(view, "func", view), "__self__", None)
        if isinstance(owner, View):
            return owner.view_is_async
        view = getattr(view, "__wrapped__", None)
    return False


def _find_refusal(
    request: HttpRequest, *, scopes: ScopeSet, context: str | tuple[str, ...]
) -> HttpResponseBase | None:
    """
    Return the page to respond with if the request's launch is insufficient, or
    ``None``.

    Raises:
        ImproperlyConfigured: the middleware is not installed.
    """
    smart = get_context(request)
    lack = find_lack(smart, scopes=scopes, context=context)
    if lack is None:
        return None
    (error, code), launch = lack, smart.launch
    if launch is None:
        open_charts = get_open_charts(request)
        extra: dict[str, object] = {
            "open_charts": open_charts,
            "form_was_sent": request.method not in {"GET", "HEAD"},
        }
        retry = None if open_charts else connect_records(next_url=get_page(request))
        if code == "ambiguous" and not conf.SMART_LAUNCH_PREFIX:
            # Another launch would be as ambiguous.
            extra |= {"advice": _ONE_CHART, "signs_out": True}
            retry = None
        return render_error(request, error, code=code, retry=retry, extra=extra)
    if isinstance(error, InsufficientScopeError):
        _log_unasked(launch, ScopeSet.parse(error.missing))
    return render_error(
        request,
        error,
        code=code,
        # The missing scopes may be granted when they are requested again.
        retry=connect_again(launch, next_url=get_page(request)),
        launch=launch,
    )


def find_lack(
    smart: SMARTContext, *, scopes: ScopeSet, context: str | tuple[str, ...]
) -> tuple[SMARTError, str] | None:
    """
    Return what *smart* lacks of what a view requires, or ``None``.

    The code is shown instead of the error's, unless it is empty.
    """
    if not smart:
        return NoLaunchError("The view requires a launch."), smart.reason
    if missing := str(smart.scopes.missing(scopes)):
        text = "The granted scopes are insufficient."
        return InsufficientScopeError(text, missing=missing), ""
    for name in (context,) if isinstance(context, str) else context:
        if getattr(smart, f"{name}_id") is None:
            error = NoLaunchError(f"The launch context has no {name}.")
            return error, f"{name}_missing"
    return None


def _log_unasked(launch: Launch, missing: ScopeSet) -> None:
    """Name what no approval can grant; what the EHR declined is logged before."""
    unasked = launch.scopes_asked.missing(missing)
    if unasked:
        logger.warning(
            "Launch %s: a page needs scopes that the registration does not request: "
            "%s. Add them in the admin or with smart_register, and launch again.",
            launch.pk,
            unasked,
        )
