"""Decorators for views that require a launch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.utils.translation import gettext_lazy as _
from django.views.generic import View

from .conf import conf
from .error_pages import harden, render_error
from .error_pages.retry import (
    connect_again,
    connect_records,
    find_site_sign_in,
    get_page,
    reconnect,
)
from .exceptions import InsufficientScopeError, NoLaunchError, SMARTError
from .launches.context import SMARTContext, get_context
from .launches.open_charts import get_open_charts
from .launches.prefix import build_launch_url
from .launches.records import (
    find_records,
    is_navigation,
    open_record,
    read_names,
)
from .launches.request_state import get_user
from .models import Launch, TokenGrant
from .models.server import tell_apart
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

    Without a launch, an anonymous visitor is sent to the site's sign-in, and a patient
    with one connection to the same page under a launch of it.  Otherwise, the response
    is a page with status 403 that explains how to open the app or connect, and lists
    the open charts and the patient's connections if there are several.

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

        awrapped.smart_scopes = required  # type: ignore[attr-defined]  # for the doctor

        @wraps(view)
        def wrapped(
            request: HttpRequest, *args: Any, **kwargs: Any
        ) -> HttpResponseBase:
            refusal = refuse(request)
            return refusal or cast("HttpResponseBase", view(request, *args, **kwargs))

        wrapped.smart_scopes = required  # type: ignore[attr-defined]  # for the doctor
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
        return _respond_without_launch(request, error, code, scopes=scopes)
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


def _respond_without_launch(
    request: HttpRequest, error: SMARTError, code: str, *, scopes: ScopeSet
) -> HttpResponseBase:
    """
    Lead to a launch: an open one, a connection, the sign-in, or a new connection.

    Only a person who goes to a page is led anywhere; scripts and forms get the page
    that explains it.
    """
    page, user = get_page(request), get_user(request)
    extra: dict[str, object] = {
        "form_was_sent": request.method not in {"GET", "HEAD"},
        "page": page,
    }
    if code == "ambiguous" and not conf.SMART_LAUNCH_PREFIX:
        # Another launch would be as ambiguous.
        extra |= {"advice": _ONE_CHART, "signs_out": True}
        return render_error(request, error, code=code, extra=extra)
    open_charts, records = get_open_charts(request), find_records(user)
    is_shown = {chart.connection for chart in open_charts}
    if not is_shown <= {each.connection for each in records}:
        extra["open_charts"] = open_charts
        records = [each for each in records if each.connection not in is_shown]
        extra["records"] = _describe(request, records, scopes=scopes)
        return render_error(request, error, code=code, extra=extra)
    goes = is_navigation(request)
    connect = connect_records(next_url=page, has_some=bool(records))
    if user is None and goes and connect and (url := find_site_sign_in(request, page)):
        return harden(HttpResponseRedirect(url))
    if not records:
        kind = "" if connect else Launch.Kind.EHR
        return render_error(
            request, error, code=code, retry=connect, kind=kind, extra=extra
        )
    if len(records) == 1 and goes and records[0].status == TokenGrant.Status.ACTIVE:
        launch = open_record(request, records[0])
        return harden(HttpResponseRedirect(build_launch_url(launch, page)))
    extra["records"] = _describe(request, records, scopes=scopes)
    return render_error(
        request, error, code="grant_ambiguous", retry=connect, extra=extra
    )


def _describe(
    request: HttpRequest, records: list[TokenGrant], *, scopes: ScopeSet
) -> list[dict[str, object]]:
    """Return what the page shows of each record."""
    # Nobody sees the response to a script.
    if request.headers.get("Sec-Fetch-Dest", "") != "empty":
        read_names(records)
    page = get_page(request)
    servers = [each.registration.server for each in records]
    names = tell_apart({each.slug: str(each) for each in servers})
    return [
        {
            "grant": each,
            "name": names[each.registration.server.slug],
            "is_over": each.status != TokenGrant.Status.ACTIVE,
            "missing": str(each.scopes.missing(scopes)),
            "connect_again": reconnect(each.registration, next_url=page),
        }
        for each in records
    ]


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
