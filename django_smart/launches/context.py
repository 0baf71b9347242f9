"""``request.smart``: the launch that a request belongs to, or why there is none."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import Error, router, transaction
from django.http import HttpRequest
from django.urls import get_script_prefix
from django.utils import timezone

from ..clients import build_async_client, build_fhir_client
from ..conf import conf
from ..exceptions import NoLaunchError, PrefixError
from ..models import Launch, TokenGrant
from ..models.launch import LEFT_FRAME
from ..protocol.context import DEFAULT_ROLE, FHIRContextItem, LaunchContext
from ..protocol.scopes import ScopeSet
from ..transport import is_in_event_loop
from .browser import get_browser
from .prefix import split_launch_key
from .request_state import get_user

if TYPE_CHECKING:
    from ..contrib.app_state import AppStateClient
    from ..fhir import AsyncFHIRClient
    from ..fhir.client import FHIRClient
    from ..models import FHIRServer
    from ..protocol.style import SMARTStyle

__all__ = ["SMARTContext", "get_context", "has_found_launch"]

logger = logging.getLogger(__name__)


class SMARTContext:
    """
    The launch of one request, looked up on first access.

    Falsy without a launch; then ``reason`` says why: ``no_launch``, ``ambiguous`` (more
    than one matches) or the code of a :class:`PrefixError`.
    """

    _reason = ""

    def __init__(self, request: HttpRequest, key: str | None) -> None:
        self._request = request
        self._key = key

    def __bool__(self) -> bool:
        return self.launch is not None

    def __repr__(self) -> str:
        return f"<SMARTContext: {'prefixed' if self._key else 'not prefixed'}>"

    async def aload(self) -> SMARTContext:
        """Find the launch from async code; afterwards, attributes need no query."""
        # Under a prefix, the middleware has found it already, and no thread is needed.
        if "launch" not in vars(self):
            await sync_to_async(lambda: self.launch)()
        return self

    @cached_property
    def launch(self) -> Launch | None:
        """The :class:`~django_smart.models.Launch`, with its grant and server."""
        try:
            launch = self._find_by_key() if self._key else self._find_without_key()
        except PrefixError as exc:
            self._reason = exc.code
            launch = None
        except SynchronousOnlyOperation as exc:
            raise SynchronousOnlyOperation(
                "In an async view, call await request.asmart() before request.smart "
                "is used."
            ) from exc
        return launch

    @cached_property
    def named_launch(self) -> Launch | None:
        """The launch whose key is in the URL, even if it cannot be used."""
        return Launch.objects.find_with_key(self._key or "")

    @property
    def reason(self) -> str:
        """Why there is no launch, or an empty string."""
        return "" if self else self._reason

    @property
    def grant(self) -> TokenGrant | None:
        """The launch's tokens."""
        return self.launch.grant if self.launch else None

    @property
    def server(self) -> FHIRServer | None:
        """The FHIR server the launch came from."""
        return self.launch.registration.server if self.launch else None

    @cached_property
    def _context(self) -> LaunchContext:
        return LaunchContext.from_parameters(
            self.context, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS
        )

    @property
    def context(self) -> Mapping[str, Any]:
        """The token response without the tokens, including unknown members."""
        context = self.launch.context if self.launch else {}
        return {name: context[name] for name in context if name != LEFT_FRAME}

    @property
    def patient_id(self) -> str | None:
        """ID of the patient in context (RESP-11)."""
        return self._context.patient

    @property
    def encounter_id(self) -> str | None:
        """ID of the encounter in context (RESP-12)."""
        return self._context.encounter

    @property
    def fhir_context(self) -> tuple[FHIRContextItem, ...]:
        """Other resources in context, with their roles (FCTX-01)."""
        return self._context.fhir_context

    def items_with_role(self, role: str = DEFAULT_ROLE) -> tuple[FHIRContextItem, ...]:
        """The items of :attr:`fhir_context` with *role* (FCTX-04)."""
        return self._context.items_with_role(role)

    @property
    def fhir_user(self) -> str | None:
        """Reference to the user's resource, relative if at this server (IDT-07)."""
        return (self.launch.fhir_user or None) if self.launch else None

    @property
    def intent(self) -> str | None:
        """Intent from the EHR, whose values are not standardized (RESP-14)."""
        return self._context.intent

    @property
    def tenant(self) -> str | None:
        """The launching organization, an opaque string (RESP-17)."""
        return self._context.tenant

    @property
    def need_patient_banner(self) -> bool | None:
        """
        Whether the page must show the patient; ``None`` if the EHR does not say.

        What it says of its own frame is not true of a new window that led out of it.
        """
        needed = self._context.need_patient_banner
        left_frame = self.launch is not None and LEFT_FRAME in self.launch.context
        return None if needed is False and left_frame else needed

    @property
    def style(self) -> SMARTStyle | None:
        """
        Style of the EHR; ``None`` if it has none that can be used (RESP-15).

        The first access with a new ``smart_style_url`` fetches it, which takes at most
        two seconds.  In an event loop, it returns what :meth:`astyle` has loaded.
        """
        if "_style" not in self.__dict__ and is_in_event_loop():
            return None
        return self._style

    async def astyle(self) -> SMARTStyle | None:
        """:attr:`style`, from async code."""
        return await sync_to_async(lambda: self._style)()

    @cached_property
    def _style(self) -> SMARTStyle | None:
        url = self._context.smart_style_url
        if self.launch is None or url is None:
            return None
        from ..contrib.style import get_style  # only for EHRs that have one

        return get_style(
            url, server=self.launch.registration.server, launch_id=self.launch.pk
        )

    @cached_property
    def scopes(self) -> ScopeSet:
        """The granted scopes, which can differ from the requested ones (RESP-03)."""
        return self.grant.scopes if self.grant else ScopeSet()

    @cached_property
    def fhir(self) -> FHIRClient:
        """
        A client for the launch's server, with the launch's token.

        Raises:
            NoLaunchError: there is no launch.
        """
        launch, grant = self._get_grant()
        return build_fhir_client(grant, launch=launch)

    @cached_property
    def afhir(self) -> AsyncFHIRClient:
        """
        :attr:`fhir` for async views, after ``await request.asmart()``.

        Raises:
            NoLaunchError: there is no launch.
        """
        return build_async_client(self.fhir)

    @cached_property
    def app_state(self) -> AppStateClient:
        """
        Client for the settings that this app stores at the EHR (experimental).

        Raises:
            NoLaunchError: there is no launch.
            AppStateUnsupportedError: the server does not support app state (STATE-03).
            TransportError, DiscoveryError: the server's configuration is unavailable.
        """
        from ..contrib.app_state import build_app_state_client

        return build_app_state_client(*self._get_grant())

    def _get_grant(self) -> tuple[Launch, TokenGrant]:
        if self.launch is None or self.launch.grant is None:
            raise NoLaunchError("This request has no launch.")
        grant = self.launch.grant
        grant.registration = self.launch.registration
        return self.launch, grant

    def check_prefix(self) -> None:
        """
        Check that this request may use the launch named in the URL.

        Raises:
            PrefixError: the launch is unknown, has ended, or is another browser's or
                user's.
        """
        if self._key:
            self.launch = self._find_by_key()

    def _find_by_key(self) -> Launch:
        launch = self.named_launch
        if launch is None or launch.completed_at is None:
            raise PrefixError("No launch has the key in this URL.")
        # Before comparing the browser: sign-out deletes the cookie, and an ended launch
        # holds nothing that its key could disclose.
        now = timezone.now()
        if not launch.is_live(now):
            raise PrefixError("This launch has ended.", code="launch_ended")
        is_here = get_browser(self._request).opens(launch)
        # A launch without a user belongs to its browser while nobody is signed in
        # there: it is never adopted by whoever signs in later.
        if is_here and launch.user_id != self._user_id:
            if self._user_id is None:
                # An expired session; a sign-out would have ended the launch.
                raise PrefixError(
                    "The user of this launch is no longer signed in.",
                    code="launch_signed_out",
                )
            if launch.user_id is None:
                # It may be the next user of a shared computer who signed in.
                raise PrefixError(
                    "This launch was opened before its user signed in.",
                    code="launch_without_user",
                )
        if not is_here or launch.user_id != self._user_id:
            raise PrefixError(
                "The launch in this URL was opened by another browser or user.",
                code="launch_foreign",
            )
        _note_use(launch, now=now)
        return launch

    def _find_without_key(self) -> Launch | None:
        self._reason = "no_launch"
        browser = get_browser(self._request)
        if not browser.digests:
            return None
        launches = Launch.objects.with_related().of_browser(browser.digests)[:2]
        if not launches:
            return None
        # Exactly one launch, counting those whose cookies or rows are gone. Anything
        # else would be a guess, because older tabs may show another patient.
        launch = launches[0]
        if (
            len(launches) > 1
            or not browser.is_only(launch)
            or self._comes_from_another(launch)
        ):
            self._reason = "ambiguous"
            return None
        now = timezone.now()
        if (
            not browser.opens(launch)
            or launch.user_id != self._user_id
            or not launch.is_live(now)
        ):
            return None
        # In a view's transaction, the row would stay locked, also for a refresh.
        transaction.on_commit(
            partial(_note_use, launch, now=now),
            using=router.db_for_write(Launch),
        )
        return launch

    def _comes_from_another(self, launch: Launch) -> bool:
        try:
            path = unquote(urlsplit(self._request.headers.get("Referer", "")).path)
        except ValueError:
            return False  # not a URL, so not a page of this site
        key, _ = split_launch_key("/" + path.removeprefix(get_script_prefix()))
        return key is not None and key != launch.key

    @property
    def _user_id(self) -> Any:
        user = get_user(self._request)
        return None if user is None else user.pk


def _note_use(launch: Launch, *, now: datetime) -> None:
    try:
        Launch.objects.note_use(launch, now=now)
    except Error as exc:
        # During a failover, pages that only read go on.
        logger.warning(
            "Launch %s: its use was not noted (%s)", launch.pk, type(exc).__name__
        )


def get_context(request: HttpRequest) -> SMARTContext:
    """
    ``request.smart``.

    Raises:
        ImproperlyConfigured: the request did not pass through the middleware.
    """
    smart: SMARTContext | None = getattr(request, "smart", None)
    if smart is None:
        raise ImproperlyConfigured(
            "django_smart.middleware.SMARTMiddleware is missing: put it first in "
            "MIDDLEWARE."
        )
    return smart


def has_found_launch(context: SMARTContext | None) -> bool:
    """Return whether this request has used a launch, without looking one up."""
    return context is not None and vars(context).get("launch") is not None
