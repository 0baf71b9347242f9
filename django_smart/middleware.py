"""
The outermost middleware: launch prefix, ``request.smart`` and the browser cookie.

A second middleware is for sites with Django's per-site cache, a third for sites that
use mozilla-django-oidc's.  None has rules of its own: :mod:`.launches.context` decides
which launch a request may use.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.db import connections, router
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.deprecation import MiddlewareMixin
from django.utils.encoding import escape_uri_path
from django.utils.http import escape_leading_slashes
from mozilla_django_oidc import middleware as upstream

from .conf import conf
from .error_pages import is_trouble, render_error, render_trouble
from .error_pages.retry import (
    connect_again,
    connect_records,
    find_ehr_sign_in,
    get_page,
    open_again,
    sign_in_again,
)
from .error_pages.words import ENDINGS
from .exceptions import (
    ContextChangedError,
    NoLaunchError,
    PrefixError,
    SMARTError,
    on_error,
)
from .grants.refresh import get_access_token
from .launches.context import SMARTContext, has_found_launch
from .launches.frames import adapt_response, may_be_framed
from .launches.messages import delete_cookies, keep_messages_apart
from .launches.prefix import LaunchPrefix, script_prefix
from .launches.request_state import RequestState, get_request_state
from .models import Launch, TokenGrant

__all__ = ["SMARTCacheMiddleware", "SMARTMiddleware", "SessionRefresh"]

logger = logging.getLogger(__name__)

_Response = HttpResponseBase | Awaitable[HttpResponseBase]

# Pages that are the same for every launch, with forms that post to fixed paths.
_APPS_OUTSIDE = frozenset({"admin", "django_smart"})
# mozilla-django-oidc's view that builds a redirect URI; its URLs have no namespace.
_VIEW_OUTSIDE = "oidc_authentication_init"
_SIGNED_OUT = "launch_signed_out"
# Codes of errors that only the launch's own browser sees.
_OF_OWN_BROWSER = frozenset({_SIGNED_OUT, "launch_ended", "launch_without_user"})


class SMARTMiddleware(MiddlewareMixin):
    """
    Provides ``request.smart``; put it first in ``MIDDLEWARE``.

    It removes the launch prefix from the path before other code sees it, checks that
    this browser and user may use the launch, marks pages of a launch as ``private,
    no-store``, adapts cookies and headers in the EHR's frame, and renders an error page
    for EHR errors that a view does not catch.
    """

    def __init__(self, get_response: Callable[[HttpRequest], _Response]) -> None:
        super().__init__(get_response)
        # Read once: most requests have no prefix and need no other setting.
        self._mark = conf.SMART_LAUNCH_PREFIX

    def __call__(self, request: HttpRequest) -> _Response:
        if self.async_mode:
            return self.__acall__(request)
        state, errors = _enter(request, self._mark), _Errors()
        try:
            response = cast("HttpResponseBase", self.get_response(request))
            if errors.seen and (hidden := errors.find_hidden(response)) is not None:
                response = self._uncover(request, hidden)
        finally:
            errors.forget()
            _leave(state)
        _finish(state, response)
        if may_be_framed(request, response):
            adapt_response(request, response)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        state, errors = _enter(request, self._mark), _Errors()
        try:
            pending = self.get_response(request)
            response = await cast("Awaitable[HttpResponseBase]", pending)
            if errors.seen and (hidden := errors.find_hidden(response)) is not None:
                response = await sync_to_async(self._uncover)(request, hidden)
        finally:
            errors.forget()
            _leave(state)
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
        """Check the key in the prefix, before the view and outside its transaction."""
        state = get_request_state(request)
        context, prefix = state.context, state.prefix
        if context is not None and prefix is not None:
            match = request.resolver_match
            if match is not None and (
                _APPS_OUTSIDE.intersection(match.app_names)
                or match.view_name == _VIEW_OUTSIDE
            ):
                return self._leave_prefix(request, prefix)
            if (refusal := _check_key(request, state)) is not None:
                return refusal
            keep_messages_apart(request, key=prefix.key)
        if _cannot_refresh(view):
            try:
                _refresh_before_transaction(context)
            except ContextChangedError as exc:
                return self.process_exception(request, exc)
        return None

    def process_exception(
        self, request: HttpRequest, exception: Exception
    ) -> HttpResponseBase | None:
        """Render a page for EHR errors; the view's transaction is rolled back."""
        if not isinstance(exception, SMARTError):
            return None
        state = get_request_state(request)
        launch = state.context.launch if state.context is not None else None
        if isinstance(exception, ContextChangedError):
            if state.prefix is not None:
                set_script_prefix(state.prefix.outer)
            return _render_ending(request, exception, launch)
        if not is_trouble(exception):
            return None
        logger.warning(
            "Launch %s: a page failed: %s",
            # None if the page used a client of its own.
            launch and launch.pk,
            exception.code,
            exc_info=exception,
        )
        return render_trouble(request, exception, launch)

    def _uncover(self, request: HttpRequest, error: SMARTError) -> HttpResponseBase:
        """Respond to an *error* that a template hid: the page may lack data."""
        response = self.process_exception(request, error)
        if response is None:
            raise error
        return response

    @staticmethod
    def _leave_prefix(request: HttpRequest, prefix: LaunchPrefix) -> HttpResponseBase:
        if request.method not in {"GET", "HEAD"}:
            raise Http404("Not served under a launch prefix.")
        # Quoted again, and never starting with "//", which would name another host.
        path = escape_leading_slashes(
            escape_uri_path(prefix.outer.rstrip("/") + request.path_info)
        )
        query = request.META.get("QUERY_STRING", "")
        return HttpResponseRedirect(f"{path}?{query}" if query else path)


class SMARTCacheMiddleware(MiddlewareMixin):
    """
    Put it between Django's ``UpdateCacheMiddleware`` and ``FetchFromCacheMiddleware``.

    It belongs after ``AuthenticationMiddleware``.  It checks a launch's key before the
    cache is consulted, and keeps pages of a launch out of the cache.
    """

    def __call__(self, request: HttpRequest) -> _Response:
        if self.async_mode:
            return self.__acall__(request)
        state = get_request_state(request)
        refusal = _check_key(request, state)
        response = refusal or cast("HttpResponseBase", self.get_response(request))
        _keep_from_caches(state, response)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        state = get_request_state(request)
        response = None
        if state.prefix is not None:
            response = await sync_to_async(_check_key)(request, state)
        if response is None:
            pending = cast("Awaitable[HttpResponseBase]", self.get_response(request))
            response = await pending
        _keep_from_caches(state, response)
        return response


class SessionRefresh(upstream.SessionRefresh):
    """
    mozilla-django-oidc's middleware, with URLs that contain no launch key.

    Upstream's sends a redirect URI under the launch prefix, which the identity provider
    does not know, keeps the exempt URLs of the first request for all later ones, and
    exempts no URL under a launch.
    """

    def is_refreshable_url(self, request: HttpRequest) -> bool:
        """Compare the path without the launch prefix with ``OIDC_EXEMPT_URLS``."""
        path, prefix = request.path, get_request_state(request).prefix
        if prefix is not None:
            request.path = prefix.outer.rstrip("/") + request.path_info
        try:
            return bool(super().is_refreshable_url(request))  # type: ignore[no-untyped-call]  # upstream's
        finally:
            request.path = path

    def process_request(self, request: HttpRequest) -> HttpResponseBase | None:
        prefix = get_request_state(request).prefix
        with script_prefix(prefix.outer) if prefix is not None else nullcontext():
            response: HttpResponseBase | None = super().process_request(request)  # type: ignore[no-untyped-call]  # upstream's
        return response


class _Errors:
    """
    Collects the errors of one request, to find one that a template has hidden.

    Django's ``{% if %}`` treats an error inside an operator as false, and some filters
    ignore errors, so a page whose read failed would show that there is no data.  The
    code that catches an error is the outermost frame of its traceback: if that is
    Django's template engine, no one has handled it.
    """

    __slots__ = ("_token", "seen")

    def __init__(self) -> None:
        self.seen: list[SMARTError] = []
        self._token = on_error.set(self._note)

    def forget(self) -> None:
        """Free what tracebacks hold: frames, and so data."""
        on_error.reset(self._token)
        self.seen.clear()

    def find_hidden(self, response: HttpResponseBase) -> SMARTError | None:
        if response.status_code >= 400:
            return None
        return next(filter(self._is_hidden, self.seen), None)

    def _note(self, error: SMARTError) -> None:
        if len(self.seen) >= 100:
            # The last errors may still be propagating.
            kept = filter(self._is_hidden, self.seen[:-10])
            self.seen[:-10] = kept
        self.seen.append(error)

    @staticmethod
    def _is_hidden(error: SMARTError) -> bool:
        traceback = error.__traceback__
        # A missing launch is no failure: templates may ask for it.
        if traceback is None or isinstance(error, NoLaunchError):
            return False
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        return module.startswith(("django.template.", "django.templatetags."))


def _enter(request: HttpRequest, mark: str) -> RequestState:
    """Give *request* its context, and remove the launch prefix if there is one."""
    state = get_request_state(request)
    if request.path_info.startswith(mark, 1):
        state.prefix = LaunchPrefix.find(request)
    prefix = state.prefix
    state.context = context = SMARTContext(
        request, None if prefix is None else prefix.key
    )
    # The attributes that views use.
    request.smart = context  # type: ignore[attr-defined]
    request.asmart = context.aload  # type: ignore[attr-defined]
    if prefix is not None:
        prefix.enter()
    return state


def _leave(state: RequestState) -> None:
    if state.prefix is not None:
        state.prefix.leave()


def _check_key(request: HttpRequest, state: RequestState) -> HttpResponseBase | None:
    """Return the refusal page for a launch that this request cannot use."""
    context, prefix = state.context, state.prefix
    if context is None or prefix is None or state.is_checked:
        return None
    state.is_checked = True
    try:
        context.check_prefix()
    except PrefixError as exc:
        # Links on the page must not carry the refused key.
        set_script_prefix(prefix.outer)
        # Only for an ended launch, and to its own browser, the page may explain how to
        # start again.
        is_named = exc.code in _OF_OWN_BROWSER
        launch = context.named_launch if is_named else None
        return _render_ending(
            request, exc, launch, form_was_sent=request.method not in {"GET", "HEAD"}
        )
    return None


def _render_ending(
    request: HttpRequest,
    error: SMARTError,
    launch: Launch | None,
    *,
    form_was_sent: bool = False,
) -> HttpResponseBase:
    extra: dict[str, object] = {"form_was_sent": form_was_sent}
    page = get_page(request)
    if launch is None:
        retry = connect_records(next_url=page)
        kind = "" if retry else Launch.Kind.EHR
        return render_error(request, error, retry=retry, kind=kind, extra=extra)
    extra["reason"] = ENDINGS.get(launch.why_ended(timezone.now()), "")
    retry = None
    # Those who sign in through the EHR may have no password here, and return to it.
    if error.code == _SIGNED_OUT and not (
        launch.signs_in_here
        or (launch.kind == Launch.Kind.EHR and find_ehr_sign_in(launch.user))
    ):
        # As login_required, whatever the method.
        retry = sign_in_again(request, launch.user, next_url=request.get_full_path())
    retry = retry or open_again(launch, next_url=page)
    retry = retry or connect_again(launch, next_url=page)
    return render_error(request, error, retry=retry, launch=launch, extra=extra)


def _keep_from_caches(state: RequestState, response: HttpResponseBase) -> None:
    """Keep patient data out of every cache, unless the view sets other headers."""
    if state.browser is not None:
        # Also without a launch: the same URL shows something else with one.
        patch_vary_headers(response, ["Cookie"])
    is_of_launch = state.prefix is not None or has_found_launch(state.context)
    if is_of_launch and not response.has_header("Cache-Control"):
        response.headers["Cache-Control"] = "private, no-store"


def _finish(state: RequestState, response: HttpResponseBase) -> None:
    if state.prefix is not None:
        state.prefix.keep_for(response)
    elif state.browser is None:
        return  # as for most requests; a launch is found by its browser
    _keep_from_caches(state, response)
    if state.browser is not None:
        state.browser.apply(response)
        delete_cookies(response, state.unneeded_cookies)


def _cannot_refresh(view: Callable[..., Any]) -> bool:
    """Whether *view* runs in a transaction in which no token can be stored."""
    # Asked for each request, so without the setting by nothing else.
    for alias, values in connections.settings.items():
        if (
            values["ATOMIC_REQUESTS"]
            and alias not in getattr(view, "_non_atomic_requests", ())
            and alias == router.db_for_write(TokenGrant)
            and connections[alias].vendor == "sqlite"
        ):
            return True
    return False


def _refresh_before_transaction(context: SMARTContext | None) -> None:
    """
    Refresh a due token before a transaction could be rolled back.

    A view that does not use FHIR must not fail because the EHR is down, so an error is
    left to the client's first request.

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
