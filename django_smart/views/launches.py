"""Launch, login and callback: from the click to the first page of a launch."""

from __future__ import annotations

import logging
from contextlib import suppress
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import get_backends, login, logout
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.templatetags.static import static
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.module_loading import import_string
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache

from ..backends import SMARTAuthenticationBackend
from ..clients import build_fhir_client
from ..error_pages import Retry, harden
from ..error_pages.retry import (
    build_login_url,
    build_sign_in_url,
    can_pass,
    choose_organization,
    connect_again,
    connect_records,
    find_ehr_sign_in,
    find_site_sign_in,
    sign_in_again,
    try_again,
)
from ..exceptions import (
    IdentityError,
    LaunchRequestError,
    SMARTError,
    StateError,
    StateUsedError,
)
from ..launches.begin import (
    LaunchStart,
    begin_ehr_launch,
    begin_standalone_launch,
    get_ehr_registration,
    get_standalone_registration,
)
from ..launches.browser import get_browser
from ..launches.complete import (
    check_sign_out,
    complete_held_launch,
    complete_launch,
    look_at_held_launch,
    refuse_held_launch,
)
from ..launches.failure import fail_launch
from ..launches.frames import is_framed, is_same_site, may_embed, set_frame
from ..launches.held import (
    UndecidedError,
    has_account,
    read_held,
    signs_in,
)
from ..launches.messages import forget_messages, keep_messages_apart
from ..launches.people import (
    describe_arrived,
    describe_signed_in,
    get_display_name,
    get_own_name,
)
from ..launches.prefix import build_launch_url, get_protocol_url
from ..launches.request_state import get_user
from ..models import ClientRegistration, FHIRServer, Launch
from ..protocol.id_token import IDTokenClaims
from ..protocol.urls import get_origin
from ..signals import launch_completed
from ..templatetags.scope_words import in_words
from .base import ProtocolView, get_next_url, get_single
from .fresh_sign_in import build_choice_url, may_choose
from .picker import render_picker

__all__ = [
    "CallbackView",
    "DecideView",
    "LaunchView",
    "LoginView",
    "enter_frame",
    "go_to_server",
]

logger = logging.getLogger(__name__)

# The parameter that says that a cookie was set: if none comes back now, none ever will.
_TRIED = "cookies"
# The parameter that says that a new window led out of the EHR's frame.
_LEFT = "frame"
# Of Sec-Fetch-Site: a link on this site, and an address that was typed or bookmarked.
_CHOSEN_HERE = frozenset({"same-origin", "none"})
# A time (seconds) that keeps upstream's SessionRefresh away from our sessions.
_NEVER = 2**40
# Code of an error: the session ended, so that nobody is signed in any more.
_SIGNED_OUT = "user_signed_out"


class LaunchView(ProtocolView):
    """
    EHR launch: ``GET launch/?iss=…&launch=…`` (EHRL-01).

    ``launch/<launch slug>/`` is for a specific registration; ``launch/`` uses the
    default of the server that ``iss`` names.
    """

    http_method_names = ["get", "head", "options"]
    kind = Launch.Kind.EHR
    span_name = "smart launch"

    def get(self, request: HttpRequest, launch_slug: str = "") -> HttpResponse:
        """Send the browser to the EHR's authorization endpoint."""
        try:
            iss = get_single(request, "iss")
            ehr_launch_id = get_single(request, "launch")
            self.registration = registration = get_ehr_registration(iss, launch_slug)
        except SMARTError as exc:
            fail_launch(None, exc)
            raise
        window = _build_url(request, mark=_LEFT)
        first = enter_frame(request, registration.server, url=window)
        if first is not None:
            return first
        start = begin_ehr_launch(
            request,
            registration,
            iss=iss,
            ehr_launch_id=ehr_launch_id,
            left_frame=_LEFT in request.GET,
        )
        return go_to_server(request, start)

    def get_retry(self, error: SMARTError) -> Retry | None:
        """Offer the same URL again if its ``launch`` value was not used yet."""
        return try_again(self.request.get_full_path()) if can_pass(error) else None


class LoginView(ProtocolView):
    """
    Standalone launch: ``GET login/?server=<slug>&next=<path>``.

    ``registration=<launch slug>`` instead of ``server`` is for a specific registration.

    An anonymous user who follows a link of this site is redirected to the EHR to sign
    in.  Signed-in users, who connect their records, and those who come from elsewhere
    first see a button; pressing it (``POST``) redirects them to the EHR.
    Without ``server`` and ``registration``, the organization picker is shown.
    """

    http_method_names = ["get", "head", "options", "post"]
    kind = Launch.Kind.STANDALONE
    span_name = "smart launch"

    def get(self, request: HttpRequest) -> HttpResponse:
        """Choose, confirm or go."""
        chosen, next_url = self._read(request.GET)
        if not any(chosen.values()):
            return render_picker(request, next_url=next_url)
        self.registration = registration = self._find(chosen)
        first = enter_frame(request, registration.server)
        if first is not None:
            return first
        user = get_user(request)
        # Another site must not sign its visitors in here, perhaps with an account of
        # its own at one of the EHRs.
        if user is None and request.headers.get("Sec-Fetch-Site") in _CHOSEN_HERE:
            return self._begin(request, registration, next_url=next_url)
        # Not straight to the EHR, which might sign the same person in again.
        context = {
            "registration": registration,
            "next": next_url,
            "user_pk": "" if user is None else str(user.pk),
            "user_name": get_own_name(user),
            "after_sign_out": find_site_sign_in(
                request, build_login_url(**chosen, next_url=next_url)
            ),
        }
        return harden(render(request, "django_smart/confirm_connect.html", context))

    def post(self, request: HttpRequest) -> HttpResponse:
        """The confirm button."""
        chosen, next_url = self._read(request.POST)
        self.registration = registration = self._find(chosen)
        url = build_login_url(**chosen, next_url=next_url)
        user, named = get_user(request), request.POST.get("user", "")
        if user is None and named:
            # The session ran out: the launch would sign in, perhaps a new user.
            error = IdentityError(
                "Whoever confirmed to connect is no longer signed in.",
                code=_SIGNED_OUT,
            )
            fail_launch(None, error)
            raise error
        if user is not None and named != str(user.pk):
            # The page named another user, as when support staff impersonate one.
            return harden(HttpResponseRedirect(url))
        first = enter_frame(request, registration.server, url=url)
        if first is not None:
            return first
        return self._begin(request, registration, next_url=next_url)

    def get_retry(self, error: SMARTError) -> Retry | None:
        """Offer the same organization again if that may help, or another one."""
        values = (
            self.request.POST if self.request.method == "POST" else self.request.GET
        )
        chosen, next_url = self._read(values)
        url = build_login_url(**chosen, next_url=next_url)
        # Another site may have sent the form. Without a user, the URL would redirect to
        # the EHR at once, because the button is a link of this site.
        has_page = error.code == "form_outdated" and get_user(self.request) is not None
        if can_pass(error) or has_page:
            return try_again(url)
        again = None
        if error.code == _SIGNED_OUT:
            last = Launch.objects.last_with_user(get_browser(self.request).digests)
            user = last.user if last else None
            again = sign_in_again(self.request, user, next_url=url)
        return again or choose_organization(next_url=next_url)

    def _read(self, values: QueryDict) -> tuple[dict[str, str], str]:
        """What selects the registration, and where to go afterwards."""
        next_url = get_next_url(self.request, values.get("next", ""))
        names = ("server", "registration")
        return {name: values.get(name, "") for name in names}, next_url

    @staticmethod
    def _find(chosen: dict[str, str]) -> ClientRegistration:
        try:
            return get_standalone_registration(chosen["server"], chosen["registration"])
        except SMARTError as exc:
            fail_launch(None, exc)
            raise

    def _begin(
        self, request: HttpRequest, registration: ClientRegistration, *, next_url: str
    ) -> HttpResponse:
        start = begin_standalone_launch(request, registration, next_url=next_url)
        return go_to_server(request, start)


class _CompletingView(ProtocolView):
    """What the callback and the answer to its question have in common."""

    # Hooks for subclasses

    def get_backend(self) -> SMARTAuthenticationBackend:
        """
        Return the backend whose hooks find and create users.

        It is the site's own subclass, if ``AUTHENTICATION_BACKENDS`` has one.
        """
        for backend in get_backends():
            if isinstance(backend, SMARTAuthenticationBackend):
                return backend
        return SMARTAuthenticationBackend()

    def get_launch_url(self, launch: Launch) -> str:
        """Return the URL of a completed launch's page, under its own prefix."""
        return build_launch_url(launch, launch.next_url)

    # Not meant to be overridden

    def _finish(
        self,
        request: HttpRequest,
        launch: Launch,
        claims: IDTokenClaims | None,
        backend: SMARTAuthenticationBackend,
    ) -> HttpResponse:
        """Sign in, if the launch is for that, and go to its page."""
        self._fill_user(launch, claims, backend)
        # Messages of the sign-in's signals are for the page the browser goes on to.
        keep_messages_apart(request, key=launch.key)
        user = get_user(request)
        if launch.user is not None and launch.user_id != (user and user.pk):
            self._sign_in(request, launch, backend)
            _say_who(request, launch, claims)
        forget_messages(request)
        get_browser(request).note_open(launch)
        self._set_frame(launch)
        if launch.intent == Launch.Intent.CONNECT:
            _say_what_is_missing(request, launch)
        launch_completed.send(
            sender=Launch,
            launch=launch,
            request=request,
            missing_scope=launch.missing_scope,
        )
        response = HttpResponseRedirect(self.get_launch_url(launch))
        if _runs_code_of_site(backend):
            try:
                check_sign_out(launch)
            except StateError:
                # No earlier check is needed: the browser has nothing of this session.
                logout(request)
                raise
        return harden(response)

    def _connect_again(self, error: SMARTError) -> Retry | None:
        """A button that starts again, if the launch started on this site."""
        next_url = self.launch.next_url if self.launch else ""
        again = connect_again(self.launch, next_url=next_url)
        if again is not None and error.code == _SIGNED_OUT:
            # Without a user, it would sign in through the EHR instead of connecting.
            user = self.launch.user if self.launch else None
            return sign_in_again(self.request, user, next_url=again.url) or again
        return again

    def _set_frame(self, launch: Launch) -> None:
        server = launch.registration.server
        set_frame(self.request, server if launch.is_framed else None)

    @staticmethod
    def _fill_user(
        launch: Launch,
        claims: IDTokenClaims | None,
        backend: SMARTAuthenticationBackend,
    ) -> None:
        """Let the site fill in who signs in; whoever connects has an account."""
        if (
            claims is None
            or launch.user is None
            or launch.identity is None
            or launch.grant is None
            or launch.intent != Launch.Intent.SIGN_IN
            or not signs_in([launch.identity], launch.user, launch.registration.server)
        ):
            return
        fhir = build_fhir_client(launch.grant, launch=launch)
        backend.complete_user(launch.user, claims, launch.registration, fhir)

    @staticmethod
    def _sign_in(
        request: HttpRequest, launch: Launch, backend: SMARTAuthenticationBackend
    ) -> None:
        # Its receiver ends what others had open in this browser.
        get_browser(request).set_aside(launch)
        if get_user(request) is not None:
            # The session may be the new user's, who impersonates the other in it.
            request.session.flush()
        login(request, launch.user, backend=_find_path(type(backend)))
        request.session["oidc_id_token_expiration"] = _NEVER


def _runs_code_of_site(backend: SMARTAuthenticationBackend) -> bool:
    """
    Whether code of the site delays the response to a launch that has completed.

    Without it, there is hardly time for a sign-out in another tab.
    """
    return (
        type(backend).fill_user is not SMARTAuthenticationBackend.fill_user
        or launch_completed.has_listeners(Launch)
    )


def _say_who(
    request: HttpRequest, launch: Launch, claims: IDTokenClaims | None
) -> None:
    """Let the page that follows say whom the launch has signed in."""
    name = get_display_name(launch.user, claims) or get_own_name(launch.user)
    # A link can sign in with an account of whoever sent it, who chooses the name there.
    text = (
        gettext("You are now signed in as %(name)s, with an account at %(server)s.")
        if name
        else gettext("You are now signed in with an account at %(server)s.")
    )
    server = launch.registration.server.name
    messages.info(request, text % {"name": name, "server": server}, fail_silently=True)


def _say_what_is_missing(request: HttpRequest, launch: Launch) -> None:
    """Let the page that follows say what the organization did not allow."""
    missing = launch.missing_scope.split()
    name = launch.registration.server.name
    if words := in_words(" ".join(set(missing) - {"offline_access"})):
        text = gettext(
            "%(name)s did not grant everything that was requested. Not granted: "
            "%(what)s"
        ) % {
            "name": name,
            "what": "; ".join(words),
        }
        messages.warning(request, text, fail_silently=True)
    if "offline_access" in missing:
        text = gettext(
            "%(name)s did not grant access while you are away: this "
            "connection ends when you sign out, or sooner."
        ) % {"name": name}
        messages.warning(request, text, fail_silently=True)


class CallbackView(_CompletingView):
    """
    The redirect URI: ``GET callback/<callback_id>/?code=…&state=…``.

    Attributes:
        callback_id: the registration's callback id, if a site routes the view at its
            own path: ``CallbackView.as_view(callback_id="…")``.
    """

    # Not HEAD, which link checkers and mail filters send: a state is used once.
    http_method_names = ["get", "options"]
    callback_id = ""
    span_name = "smart callback"

    def get(self, request: HttpRequest, callback_id: str = "") -> HttpResponse:
        """Complete the launch, sign in if it is for that, and go to its page."""
        backend = self.get_backend()
        try:
            launch, claims = complete_launch(
                request,
                [
                    (name, value)
                    for name, values in request.GET.lists()
                    for value in values
                ],
                # From the route: proxies change paths and hosts.
                callback_id=callback_id or self.callback_id,
                resolve_user=backend.resolve_user,
            )
        except SMARTError:
            self._note_launch(request)
            raise
        self.launch = launch
        if launch.question:
            self._set_frame(launch)
            return harden(HttpResponseRedirect(_build_decide_url(launch)))
        return self._finish(request, launch, claims, backend)

    # Hooks for subclasses

    def get_retry(self, error: SMARTError) -> Retry | None:
        """Offer the page of a launch that has completed, or to start again."""
        launch, user = self.launch, get_user(self.request)
        if launch is None:
            return connect_records()
        if isinstance(error, IdentityError) and error.code != _SIGNED_OUT:
            return None
        if launch.status == Launch.Status.HELD:
            return Retry(url=_build_decide_url(launch), label=_("Continue"))
        if (
            isinstance(error, StateUsedError)
            and launch.is_live(timezone.now())
            and launch.user_id == (user and user.pk)
        ):
            return Retry(
                url=self.get_launch_url(launch), label=_("Continue to the page")
            )
        return self._connect_again(error)

    def get_error_context(self, error: SMARTError) -> dict[str, object]:
        """Remove the code from the address bar, and say whether anything was done."""
        launch = self.launch
        is_stored = launch is not None and launch.completed_at is not None
        is_used = error.code == StateUsedError.code
        return {
            "clean_address": True,
            # Without a query, it is the reload of a page that has removed it.
            "nothing_done": bool(self.request.GET) and not (is_stored or is_used),
            "is_signed_in": get_user(self.request) is not None,
        }

    # Not meant to be overridden

    def _note_launch(self, request: HttpRequest) -> None:
        """Let the error page name the launch, if it is this browser's."""
        state = request.GET.get("state", "")
        launch = Launch.objects.find_with_state(state)
        if launch is None:
            return
        self._set_frame(launch)
        if get_browser(request).knows(launch):
            self.launch = launch


@method_decorator(never_cache, name="dispatch")
class DecideView(_CompletingView):
    """
    The page that asks the user before a launch continues: ``decide/<key>/``.

    ``POST`` with ``choice``: ``no``, ``yes`` or ``cancel``.

    Template: ``django_smart/decide.html``.
    """

    # Not HEAD: a launch whose user has signed in goes on.
    http_method_names = ["get", "options", "post"]
    span_name = "smart decision"

    def get(self, request: HttpRequest, key: str) -> HttpResponse:
        """Ask, or go on if the launch's user has signed in meanwhile."""
        return self._answer(request, key, "")

    def post(self, request: HttpRequest, key: str) -> HttpResponse:
        """Do what the person has chosen."""
        return self._answer(request, key, request.POST.get("choice", ""))

    def _answer(self, request: HttpRequest, key: str, choice: str) -> HttpResponse:
        launch = self._find(request, key)
        if launch.status == Launch.Status.OPEN:
            return harden(HttpResponseRedirect(self.get_launch_url(launch)))
        if choice == "cancel":
            canceled = LaunchRequestError("Canceled.", code="decision_declined")
            refuse_held_launch(request, launch, canceled)
        asked = look_at_held_launch(
            request, launch, resolve_user=self.get_backend().resolve_user
        )
        if _is_owner(get_user(request), asked):
            return self._complete(request, launch)
        if choice == "no" and asked.question == Launch.Question.SIGN_IN:
            # Keep the launch for the one to sign in; the receiver of the sign-out ends
            # what the other had open.
            get_browser(request).set_aside(launch)
            logout(request)
            return harden(HttpResponseRedirect(_build_decide_url(launch)))
        if choice == "no":
            return self._complete(request, launch, answer=asked.question)
        if choice == "yes" and _may_link(request, asked, launch.registration):
            launch.intent = Launch.Intent.CONNECT
            return self._complete(request, launch, answer=asked.question)
        if request.method == "POST":
            return harden(HttpResponseRedirect(_build_decide_url(launch)))
        return self._ask(request, launch, asked)

    def _ask(
        self, request: HttpRequest, launch: Launch, asked: UndecidedError
    ) -> HttpResponse:
        claims, _context = read_held(launch)
        url = _build_decide_url(launch)
        registration, user = launch.registration, get_user(request)
        is_ehr_sign_in = bool(find_ehr_sign_in(asked.owner))
        context = {
            "launch": launch,
            "server": registration.server,
            "question": asked.question,
            "here": user and describe_signed_in(user, get_browser(request)),
            "there": describe_arrived(asked.owner, claims, launch),
            "may_say_no": asked.question != Launch.Question.LINK
            or registration.create_users,
            "may_link": _may_link(request, asked, registration),
            "decide_url": url,
            # Not their own organizations: it may be somebody else who sees this page.
            "sign_in_url": build_login_url(next_url=url)
            if is_ehr_sign_in
            else build_sign_in_url(request, url),
            "site_sign_in_url": find_site_sign_in(request, url)
            if is_ehr_sign_in
            else "",
        }
        return harden(render(request, "django_smart/decide.html", context))

    # Hooks for subclasses

    def get_retry(self, error: SMARTError) -> Retry | None:
        """Ask again, or offer to start again if the launch started on this site."""
        if error.code == "form_outdated":
            return try_again(self.request.path)
        return self._connect_again(error)

    # Not meant to be overridden

    def _find(self, request: HttpRequest, key: str) -> Launch:
        """The launch that this browser is asked about, or one it has just finished."""
        user = get_user(request)
        launch = Launch.objects.find_with_key(key)
        if launch is None or not get_browser(request).opens(launch):
            raise LaunchRequestError(
                "There is no open question for this browser.", code="decision_unknown"
            )
        self.launch = launch
        self._set_frame(launch)
        now = timezone.now()
        if launch.is_live(now) and user is not None and launch.user_id == user.pk:
            return launch
        if launch.status != Launch.Status.HELD or now >= launch.expires_at:
            expired = LaunchRequestError(
                "The question expired.", code="decision_expired"
            )
            refuse_held_launch(request, launch, expired)
        return launch

    def _complete(
        self, request: HttpRequest, launch: Launch, *, answer: str = ""
    ) -> HttpResponse:
        backend = self.get_backend()
        try:
            claims = complete_held_launch(
                request, launch, resolve_user=backend.resolve_user, answer=answer
            )
        except (UndecidedError, StateUsedError):
            # Something else is to be asked than was answered, or a second click: the
            # page leads to what the first has opened.
            return harden(HttpResponseRedirect(_build_decide_url(launch)))
        response = self._finish(request, launch, claims, backend)
        identity = launch.identity
        if (
            launch.intent == Launch.Intent.CONNECT
            and identity is not None
            and may_choose(request, identity)
        ):
            url = build_choice_url(identity, next_url=response["Location"])
            return harden(HttpResponseRedirect(url))
        return response


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
    if not server.quirks.authorize_in_frame:
        return _offer_window(request, server, url=url)
    if browser.enter_frame(None if is_same_site(request) else server.pk):
        return None
    if _TRIED in request.GET or request.method != "GET":
        return _offer_window(request, server, url=url)
    return harden(HttpResponseRedirect(_build_url(request, mark=_TRIED)))


def go_to_server(request: HttpRequest, start: LaunchStart) -> HttpResponse:
    """
    Send the browser to the authorization endpoint, by GET or by POST (AUTH-08).

    Template: ``django_smart/authorize_post.html``.
    """
    _note_other_host(request, start.launch)
    if not start.uses_post:
        return harden(HttpResponseRedirect(start.request.url))
    context = {
        "request_form": start.request,
        "server": start.launch.registration.server,
    }
    response = harden(render(request, "django_smart/authorize_post.html", context))
    response.headers["Content-Security-Policy"] = _build_policy(start.request.endpoint)
    return response


def _note_other_host(request: HttpRequest, launch: Launch) -> None:
    """Say in the log why the callback will not get the cookie of this launch."""
    callback_host = urlsplit(launch.registration.redirect_uri).netloc
    with suppress(DisallowedHost):
        if request.get_host() != callback_host:
            logger.warning(
                "Launch %s was started at the host %s, but its redirect URI "
                "has %s. Unless a proxy changes the host, the browser will "
                "not send its cookie there (state_foreign).",
                launch.pk,
                request.get_host(),
                callback_host,
            )


def _offer_window(
    request: HttpRequest, server: FHIRServer, *, url: str
) -> HttpResponse:
    """
    Show the button that leads out of the frame.

    Template: ``django_smart/new_window.html``.
    """
    context = {"url": url or _build_url(request), "server": server}
    return harden(render(request, "django_smart/new_window.html", context))


def _build_url(request: HttpRequest, *, mark: str = "") -> str:
    query = request.GET.copy()
    query.pop(_TRIED, None)
    if mark:
        query[mark] = "1"
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


def _may_link(
    request: HttpRequest, asked: UndecidedError, registration: ClientRegistration
) -> bool:
    """
    Whether the user can link the account that a held launch came with.

    Whoever is still signed in must not keep the next clinician's account.
    """
    return asked.question == Launch.Question.LINK and not has_account(
        get_user(request), registration.server
    )


def _is_owner(user: AbstractBaseUser | None, asked: UndecidedError) -> bool:
    """Whether *user* is whom the question is about, also as an object of a subclass."""
    return user is not None and asked.owner is not None and user.pk == asked.owner.pk


def _build_decide_url(launch: Launch) -> str:
    return get_protocol_url("decide", key=launch.key)


def _find_path(backend: type[SMARTAuthenticationBackend]) -> str:
    """The path of *backend* in ``AUTHENTICATION_BACKENDS``, which Django compares."""
    for path in settings.AUTHENTICATION_BACKENDS:
        if import_string(path) is backend:
            return path
    return f"{backend.__module__}.{backend.__qualname__}"
