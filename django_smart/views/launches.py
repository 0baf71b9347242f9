"""Launch, login and callback: from the click to the first page of a launch."""

from __future__ import annotations

from collections.abc import Collection

from django.conf import settings
from django.contrib.auth import get_backends, login
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render, resolve_url
from django.templatetags.static import static
from django.utils import timezone
from django.utils.module_loading import import_string
from django.utils.translation import gettext_lazy as _

from ..backends import SMARTAuthenticationBackend
from ..clients import build_fhir_client
from ..conf import conf
from ..error_pages import Retry, harden
from ..error_pages.retry import (
    build_login_url,
    can_pass,
    choose_organisation,
    connect_again,
    connect_records,
    try_again,
)
from ..exceptions import (
    IdentityError,
    MissingParameterError,
    SMARTError,
    StateUsedError,
)
from ..grants.ending import enqueue_revocations
from ..launches.begin import (
    LaunchStart,
    begin_ehr_launch,
    begin_standalone_launch,
    get_ehr_registration,
    get_standalone_registration,
    refuse_ehr_request,
)
from ..launches.browser import Browser, get_browser
from ..launches.complete import Completion, complete_launch
from ..launches.frames import is_framed, is_same_site, may_embed, set_frame
from ..launches.messages import keep_messages_apart
from ..launches.prefix import build_launch_path
from ..launches.request_state import get_request_state
from ..models import ClientRegistration, FHIRServer, Launch
from ..protocol.urls import get_origin
from ..signals import launch_completed
from .base import ProtocolView, get_next_url, get_single, get_user
from .picker import render_picker

__all__ = ["CallbackView", "LaunchView", "LoginView", "enter_frame", "go_to_server"]

# The parameter that says that a cookie was set: if none comes back now, none ever will.
_TRIED = "cookies"
# A time (seconds) that keeps upstream's SessionRefresh away from our sessions.
_NEVER = 2**40


class LaunchView(ProtocolView):
    """EHR launch: ``GET launch/?iss=…&launch=…`` (EHRL-01)."""

    http_method_names = ["get", "head", "options"]
    kind = Launch.Kind.EHR

    def get(self, request: HttpRequest) -> HttpResponse:
        """Send the browser to the EHR's authorization endpoint."""
        try:
            iss = get_single(request, "iss")
            ehr_launch_id = get_single(request, "launch")
        except MissingParameterError as exc:
            refuse_ehr_request(request.GET.get("iss", ""), exc)
            raise
        self.registration = registration = get_ehr_registration(iss)
        first = enter_frame(request, registration.server)
        if first is not None:
            return first
        start = begin_ehr_launch(
            registration,
            iss=iss,
            ehr_launch_id=ehr_launch_id,
            browser_digest=get_browser(request).ensure(),
            user=get_user(request),
            is_framed=is_framed(request),
        )
        return go_to_server(request, start)

    def get_retry(self, error: SMARTError) -> Retry | None:
        """The same address, if that may help: its ``launch`` was not used yet."""
        return try_again(self.request.get_full_path()) if can_pass(error) else None


class LoginView(ProtocolView):
    """
    Standalone launch: ``GET login/?server=<slug>&next=<path>``.

    Anonymous: goes to the EHR at once, to sign in.  Signed in: shows a button, whose
    POST goes to the EHR, to connect.  Without ``server``: shows the picker.
    """

    http_method_names = ["get", "head", "options", "post"]
    kind = Launch.Kind.STANDALONE

    def get(self, request: HttpRequest) -> HttpResponse:
        """Choose, confirm or go."""
        slug, next_url = self._read(request.GET)
        if not slug:
            return render_picker(request, next_url=next_url)
        self.registration = registration = get_standalone_registration(slug)
        first = enter_frame(request, registration.server)
        if first is not None:
            return first
        if get_user(request) is None:
            return self._begin(request, registration, next_url=next_url)
        context = {"registration": registration, "next": next_url}
        return harden(render(request, "django_smart/confirm_connect.html", context))

    def post(self, request: HttpRequest) -> HttpResponse:
        """The confirm button."""
        slug, next_url = self._read(request.POST)
        self.registration = registration = get_standalone_registration(slug)
        url = build_login_url(server=slug, next_url=next_url)
        first = enter_frame(request, registration.server, url=url)
        if first is not None:
            return first
        return self._begin(request, registration, next_url=next_url)

    def get_retry(self, error: SMARTError) -> Retry | None:
        """The same organisation if that may help, or another one."""
        values = (
            self.request.POST if self.request.method == "POST" else self.request.GET
        )
        slug, next_url = self._read(values)
        if can_pass(error):
            return try_again(build_login_url(server=slug, next_url=next_url))
        return choose_organisation(next_url=next_url)

    def _read(self, values: QueryDict) -> tuple[str, str]:
        next_url = get_next_url(self.request, values.get("next", ""))
        return values.get("server", ""), next_url

    def _begin(
        self, request: HttpRequest, registration: ClientRegistration, *, next_url: str
    ) -> HttpResponse:
        start = begin_standalone_launch(
            registration,
            browser_digest=get_browser(request).ensure(),
            user=get_user(request),
            next_url=next_url,
            is_framed=is_framed(request),
        )
        return go_to_server(request, start)


class CallbackView(ProtocolView):
    """
    The redirect URI: ``GET callback/<callback_id>/?code=…&state=…``.

    Attributes:
        callback_id: of the registration that the URI belongs to, where a site routes
            the view at a path of its own: ``CallbackView.as_view(callback_id="…")``.
    """

    # Not HEAD, which link checkers and mail filters send: a state is used once.
    http_method_names = ["get", "options"]
    callback_id = ""
    launch: Launch | None = None

    def get(self, request: HttpRequest, callback_id: str = "") -> HttpResponse:
        """Complete the launch, sign in if it is for that, and go to its page."""
        browser = get_browser(request)
        backend = self.get_backend()
        digests_at_start = self._follow_rotation(request, browser)
        try:
            completion = complete_launch(
                [
                    (name, value)
                    for name, values in request.GET.lists()
                    for value in values
                ],
                # From the route: proxies change paths and hosts.
                callback_id=callback_id or self.callback_id,
                browser_digests=browser.digests,
                digests_at_start=digests_at_start,
                new_browser_digest=browser.prepare_rotation(),
                user=get_user(request),
                resolve_user=backend.resolve_user,
            )
        except SMARTError:
            self._note_launch(request, digests_at_start)
            raise
        if completion.ended_earlier:
            browser.rotate(keeps_starts=True)
        browser.note_launch()
        self._fill_user(completion, backend)
        # Messages of the sign-in's signals are for the page the browser goes on to.
        keep_messages_apart(request, key=completion.launch.key)
        if completion.user is not None:
            self._sign_in(request, completion.user, backend)
        enqueue_revocations(completion.grants_to_revoke)
        self._set_frame(completion.launch)
        launch_completed.send(sender=Launch, launch=completion.launch, request=request)
        return harden(HttpResponseRedirect(self.get_success_url(completion)))

    # Hooks for subclasses

    def get_backend(self) -> SMARTAuthenticationBackend:
        """
        The backend whose hooks find and create users.

        The site's own subclass, if ``AUTHENTICATION_BACKENDS`` has one.
        """
        for backend in get_backends():
            if isinstance(backend, SMARTAuthenticationBackend):
                return backend
        return SMARTAuthenticationBackend()

    def get_success_url(self, completion: Completion) -> str:
        """Where the browser goes when a launch has completed."""
        return self.get_launch_url(completion.launch)

    def get_launch_url(self, launch: Launch) -> str:
        """The page of a completed launch, under its own prefix."""
        # Input from outside is a path, and never the name of a URL.
        path = launch.next_url or resolve_url(
            launch.registration.landing_page or conf.SMART_LAUNCH_REDIRECT_URL
        )
        return build_launch_path(launch.key, path)

    def get_retry(self, error: SMARTError) -> Retry | None:
        """The page of a launch that has completed, or the same start again."""
        launch, user = self.launch, get_user(self.request)
        if launch is None:
            return connect_records()
        if isinstance(error, IdentityError):
            return None
        if (
            isinstance(error, StateUsedError)
            and launch.is_live(timezone.now())
            and launch.user_id == (user and user.pk)
        ):
            return Retry(url=self.get_launch_url(launch), label=_("Go on to the page"))
        return connect_again(launch, next_url=launch.next_url)

    def get_error_context(self, error: SMARTError) -> dict[str, object]:
        """The address holds secrets; only a completed launch has stored anything."""
        return {
            "clean_address": True,
            "nothing_done": not isinstance(error, StateUsedError),
        }

    # Not meant to be overridden

    @staticmethod
    def _follow_rotation(request: HttpRequest, browser: Browser) -> tuple[str, ...]:
        """
        What a launch of this browser may have been started with.

        A callback at the same moment may have replaced the cookie that this request
        came with: another user than before signs in, with several tabs or frames.
        """
        digests = browser.digests_at_start
        replaced = browser.prepare_rotation()
        # Without an earlier launch or session there is nobody to take over from.
        had_somebody = (
            browser.has_launched or settings.SESSION_COOKIE_NAME in request.COOKIES
        )
        if digests and had_somebody and Launch.objects.of_browser([replaced]).exists():
            browser.rotate(keeps_starts=True)
            return (replaced, *digests)
        return digests

    def _note_launch(
        self, request: HttpRequest, browser_digests: Collection[str]
    ) -> None:
        """Let the error page name the launch, if it is this browser's."""
        state = request.GET.get("state", "")
        launch = Launch.objects.with_related().with_state(state).first()
        if launch is None:
            return
        self._set_frame(launch)
        if launch.browser_digest in browser_digests:
            self.launch, self.registration = launch, launch.registration
            self.kind = launch.kind

    def _set_frame(self, launch: Launch) -> None:
        server = launch.registration.server
        set_frame(self.request, server if launch.is_framed else None)

    @staticmethod
    def _fill_user(completion: Completion, backend: SMARTAuthenticationBackend) -> None:
        """Let the site fill in who signs in; whoever connects has an account."""
        launch, claims = completion.launch, completion.claims
        if (
            claims is None
            or launch.user is None
            or launch.grant is None
            or launch.intent != Launch.Intent.SIGN_IN
        ):
            return
        fhir = build_fhir_client(launch.grant, launch=launch)
        backend.complete_user(launch.user, claims, launch.registration, fhir)

    @staticmethod
    def _sign_in(
        request: HttpRequest,
        user: AbstractBaseUser,
        backend: SMARTAuthenticationBackend,
    ) -> None:
        # The completion has ended what others had open in this browser.
        get_request_state(request).taken_over_by = user.pk
        path = _find_path(type(backend))
        login(request, user, backend=path)  # type: ignore[arg-type]  # any user class
        request.session["oidc_id_token_expiration"] = _NEVER


def enter_frame(
    request: HttpRequest, server: FHIRServer, *, url: str = ""
) -> HttpResponse | None:
    """
    Make sure that a launch can be completed in the frame it started in.

    Call it before the launch begins: a new window has another cookie jar, and the EHR's
    ``launch`` value can be used only once.

    Args:
        url: where the launch begins in a new window; by default the request's address.

    Returns:
        ``None`` to go on.  Otherwise the response: the same address again, with a
        cookie, or the button "Open in a new window".
    """
    if not is_framed(request):
        return None
    browser = get_browser(request)
    if not may_embed(server) or browser.frame not in (None, server.pk):
        # The page around the frame is not one of this server.
        return _offer_window(request, server, url=url)
    set_frame(request, server)
    if not server.authorize_in_frame:
        return _offer_window(request, server, url=url)
    came_back = browser.digest is not None
    if is_same_site(request):
        browser.ensure()
    else:
        came_back = browser.frame is not None
        browser.enter_frame(server.pk)
    if came_back:
        return None
    if _TRIED in request.GET or request.method != "GET":
        return _offer_window(request, server, url=url)
    return harden(HttpResponseRedirect(_build_url(request, tried=True)))


def go_to_server(request: HttpRequest, start: LaunchStart) -> HttpResponse:
    """
    Send the browser to the authorization endpoint, by GET or by POST (AUTH-08).

    Template: ``django_smart/authorize_post.html``.
    """
    if not start.uses_post:
        return harden(HttpResponseRedirect(start.request.url))
    context = {
        "request_form": start.request,
        "server": start.launch.registration.server,
    }
    response = harden(render(request, "django_smart/authorize_post.html", context))
    response.headers["Content-Security-Policy"] = _build_policy(start.request.endpoint)
    return response


def _offer_window(
    request: HttpRequest, server: FHIRServer, *, url: str
) -> HttpResponse:
    """
    Show the button that leads out of the frame.

    Template: ``django_smart/new_window.html``.
    """
    context = {"url": url or _build_url(request), "server": server}
    return harden(render(request, "django_smart/new_window.html", context))


def _build_url(request: HttpRequest, *, tried: bool = False) -> str:
    query = request.GET.copy()
    query.pop(_TRIED, None)
    if tried:
        query[_TRIED] = "tried"
    return f"{request.path}?{query.urlencode()}"


def _build_policy(endpoint: str) -> str:
    """
    Let the page show itself, run our script and send its form, and nothing else.

    Chromium applies ``form-action`` to the redirects that follow a form, too, and EHRs
    send people to log in at other hosts, and from there back to this site: any https
    address has to be allowed.  Nothing on the page comes from outside unescaped.
    """
    files = " ".join(_get_file_origins())
    directives = {
        "default-src": "'none'",
        "script-src": files,
        "style-src": files,
        "img-src": files,
        "font-src": files,
        "form-action": f"{get_origin(endpoint)} 'self' https:",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def _get_file_origins() -> list[str]:
    """Where static files are served: here, or at the host of ``STATIC_URL``."""
    url = static("django_smart/authorize-post.js")
    if url.startswith("//"):
        return ["'self'", url.split("/")[2]]
    return ["'self'"] if url.startswith("/") else ["'self'", get_origin(url)]


def _find_path(backend: type[SMARTAuthenticationBackend]) -> str:
    """The path of *backend* in ``AUTHENTICATION_BACKENDS``, which Django compares."""
    for path in settings.AUTHENTICATION_BACKENDS:
        if import_string(path) is backend:
            return path
    return f"{backend.__module__}.{backend.__qualname__}"
