"""
The outermost middleware: launch prefix, ``request.smart`` and the browser cookie.

It has no rules of its own: :mod:`.launches.context` decides which launch a request may
use.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.db import connections
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.encoding import escape_uri_path
from django.utils.http import escape_leading_slashes

from .error_pages import is_trouble, render_error, render_trouble
from .error_pages.retry import connect_again, connect_records, get_page
from .error_pages.words import ENDINGS
from .exceptions import ContextChangedError, EndedLaunchError, PrefixError, SMARTError
from .grants.refresh import get_access_token
from .launches.context import SMARTContext
from .launches.frames import adapt_response, may_be_framed
from .launches.messages import keep_messages_apart
from .launches.prefix import LaunchPrefix
from .launches.request_state import RequestState, get_request_state
from .models import Launch

__all__ = ["SMARTMiddleware"]

logger = logging.getLogger(__name__)

_Response = HttpResponseBase | Awaitable[HttpResponseBase]

# Their pages are the same for every launch, and their forms post to fixed paths.
_APPS_OUTSIDE = frozenset({"admin", "django_smart"})


class SMARTMiddleware:
    """Put it first in ``MIDDLEWARE``."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], _Response]) -> None:
        self.get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> _Response:
        if self._is_async:
            return self._acall(request)
        state = _enter(request)
        try:
            response = cast("HttpResponseBase", self.get_response(request))
        finally:
            _leave(state)
        if _came_without_a_view(state, response):
            response = self._check_late(request, state) or response
        _finish(state, response)
        if may_be_framed(request, response):
            adapt_response(request, response)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        state = _enter(request)
        try:
            pending = cast("Awaitable[HttpResponseBase]", self.get_response(request))
            response = await pending
        finally:
            _leave(state)
        if _came_without_a_view(state, response):
            response = await sync_to_async(self._check_late)(request, state) or response
        _finish(state, response)
        if may_be_framed(request, response):
            await sync_to_async(adapt_response)(request, response)
        return response

    def process_view(
        self,
        request: HttpRequest,
        view: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> HttpResponseBase | None:
        """Check the key of the prefix, before the view and outside its transaction."""
        state = get_request_state(request)
        context, prefix = state.context, state.prefix
        if context is not None and prefix is not None:
            match = request.resolver_match
            if match is not None and _APPS_OUTSIDE.intersection(match.app_names):
                return self._leave_prefix(request, prefix)
            state.is_checked = True
            if (refusal := self._check_prefix(request, context, prefix)) is not None:
                return refusal
            keep_messages_apart(request, key=prefix.key)
        if _opens_transaction(view):
            try:
                _refresh_before_transaction(context)
            except ContextChangedError as exc:
                return self.process_exception(request, exc)
        return None

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponseBase | None:
        """Render trouble with the EHR; a transaction of the view is rolled back."""
        if not isinstance(exception, SMARTError):
            return None
        state = get_request_state(request)
        launch = state.context.launch if state.context is not None else None
        if isinstance(exception, ContextChangedError):
            if state.prefix is not None:
                set_script_prefix(state.prefix.outer)
            return self._render_ending(request, exception, launch)
        if launch is None or not is_trouble(exception):
            return None
        logger.warning(
            "Launch %s: a page failed: %s",
            launch.pk,
            exception.code,
            exc_info=exception,
        )
        return render_trouble(request, exception, launch)

    def _check_late(
        self, request: HttpRequest, state: RequestState
    ) -> HttpResponseBase | None:
        """The check of a page that another middleware answered, such as a cache."""
        if state.context is None or state.prefix is None:
            return None
        return self._check_prefix(request, state.context, state.prefix)

    def _check_prefix(
        self, request: HttpRequest, context: SMARTContext, prefix: LaunchPrefix
    ) -> HttpResponseBase | None:
        try:
            context.check_prefix()
        except PrefixError as exc:
            # Links of the page must not carry the key that was just refused.
            set_script_prefix(prefix.outer)
            # Only an ended launch may say how to start it again.
            is_ended = isinstance(exc, EndedLaunchError)
            launch = context.named_launch if is_ended else None
            return self._render_ending(request, exc, launch)
        return None

    @staticmethod
    def _render_ending(
        request: HttpRequest, error: SMARTError, launch: Launch | None
    ) -> HttpResponseBase:
        if launch is None:
            return render_error(
                request, error, retry=connect_records(next_url=get_page(request))
            )
        return render_error(
            request,
            error,
            retry=connect_again(launch, next_url=get_page(request)),
            server_name=launch.registration.server.name,
            kind=launch.kind,
            extra={"reason": ENDINGS.get(launch.why_ended(timezone.now()), "")},
        )

    @staticmethod
    def _leave_prefix(request: HttpRequest, prefix: LaunchPrefix) -> HttpResponseBase:
        if request.method not in {"GET", "HEAD"}:
            raise Http404("Not served under a launch prefix.")
        # Quoted again, and never "//": that would be the start of another host.
        path = escape_leading_slashes(
            escape_uri_path(prefix.outer.rstrip("/") + request.path_info)
        )
        query = request.META.get("QUERY_STRING", "")
        return HttpResponseRedirect(f"{path}?{query}" if query else path)


def _enter(request: HttpRequest) -> RequestState:
    """Give *request* its context, and take the launch prefix off if there is one."""
    state = get_request_state(request)
    state.prefix = prefix = LaunchPrefix.find(request)
    state.context = context = SMARTContext(
        request, None if prefix is None else prefix.key
    )
    # The names that views use.
    request.smart = context  # type: ignore[attr-defined]
    request.asmart = context.aload  # type: ignore[attr-defined]
    if prefix is not None:
        prefix.enter()
    return state


def _leave(state: RequestState) -> None:
    if state.prefix is not None:
        state.prefix.leave()


def _came_without_a_view(state: RequestState, response: HttpResponseBase) -> bool:
    return (
        state.prefix is not None and not state.is_checked and response.status_code < 300
    )


def _finish(state: RequestState, response: HttpResponseBase) -> None:
    if state.prefix is not None:
        state.prefix.keep_for(response)
        # The data of a patient stays in no cache, unless the view says otherwise.
        if not response.has_header("Cache-Control"):
            response.headers["Cache-Control"] = "private, no-store"
    if state.browser is not None:
        state.browser.apply(response)
        patch_vary_headers(response, ["Cookie"])


def _opens_transaction(view: Callable[..., Any]) -> bool:
    for alias, values in connections.settings.items():
        if values["ATOMIC_REQUESTS"] and alias not in getattr(
            view, "_non_atomic_requests", ()
        ):
            return True
    return False


def _refresh_before_transaction(context: SMARTContext | None) -> None:
    """
    Refresh a due token while nothing is rolled back yet.

    A view that does not touch FHIR must not fail because the EHR is away, so a failure
    is left for the first request of the client to meet.

    Raises:
        ContextChangedError: the launch was ended, so the view must not run.
    """
    launch = context.launch if context is not None else None
    if launch is None or launch.grant is None:
        return
    grant = launch.grant
    grant.registration = launch.registration
    try:
        get_access_token(grant)
    except ContextChangedError:
        raise
    except SMARTError as exc:
        grant.refresh_failure = exc
