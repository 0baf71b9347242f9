"""Begin a launch: from the EHR's or user's request to the authorization request."""

from __future__ import annotations

import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from urllib.parse import urlsplit

from django.core.validators import slug_re
from django.http import HttpRequest
from django.utils import timezone

from ..conf import conf
from ..exceptions import (
    InactiveRegistrationError,
    LaunchRequestError,
    SMARTError,
    UnsupportedServerError,
)
from ..fields import digest
from ..models import ClientRegistration, FHIRServer, Launch
from ..models.launch import LEFT_FRAME
from ..models.server import MAX_URL_LENGTH
from ..protocol.authorization import (
    AuthorizationRequest,
    build_authorization_request,
    build_code_challenge,
)
from ..protocol.configuration import Capability, SMARTConfiguration
from ..protocol.scopes import ScopeSet
from ..servers.discovery import (
    check_moved,
    doubt_configuration,
    get_configuration,
)
from ..servers.requirements import check_launch
from .browser import Browser, forget_ended, get_browser
from .failure import fail_launch
from .frames import is_framed
from .held import end_at_any_stage
from .request_state import get_user

__all__ = [
    "LaunchStart",
    "begin_ehr_launch",
    "begin_standalone_launch",
    "build_request",
    "get_ehr_registration",
    "get_standalone_registration",
]

logger = logging.getLogger(__name__)

# Characters of a URL that every server and proxy on the way accepts (AUTH-09).
_LONGEST_URL = 2000
# Pending launches of one browser: more than anybody has tabs open.
_MAX_PENDING = 10
# Limits: characters of an unknown iss, and base URLs that it is compared with.
_LONGEST_LOGGED = 200
_COMPARED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchStart:
    """
    A pending launch, and where to send the browser for it.

    Attributes:
        uses_post: whether the request is to be sent as a form (AUTH-08).
    """

    launch: Launch
    request: AuthorizationRequest
    uses_post: bool


def get_ehr_registration(iss: str, launch_slug: str = "") -> ClientRegistration:
    """
    Find the registration for an EHR launch from *iss*, without a request (EHRL-06).

    Args:
        launch_slug: from the launch URL of a specific registration; empty for the
            server's default.

    Raises:
        LaunchRequestError: no server has this base URL.
        InactiveRegistrationError: it, or its registration, is off or not for launches.
    """
    server: FHIRServer | None = None
    # A port may have any number of zeros; a column has a limit.
    if len(iss) <= MAX_URL_LENGTH:
        with suppress(SMARTError):
            registration = ClientRegistration.objects.find_ehr(iss, launch_slug)
            if registration is not None:
                return registration
            server = FHIRServer.objects.with_base_url(iss).first()
    if server is None:
        _log_nearest(iss)
        raise LaunchRequestError(
            "The iss of this launch is not the FHIR base URL of a registered server.",
            code="unknown_server",
        )
    name = f"named {launch_slug}" if launch_slug else "that is the default"
    raise InactiveRegistrationError(
        f"The server {server.slug} has no active registration {name} for EHR launches."
    )


def _log_nearest(iss: str) -> None:
    """Log the unknown *iss* and the closest known base URL (EHRL-06)."""
    # Anybody can send one: only its host and path are logged, and it is compared with
    # few servers.
    try:
        parts = urlsplit(iss[:_LONGEST_LOGGED])
        host = parts.hostname or ""
    except ValueError:
        return
    if "@" in parts.netloc or not host:
        return
    shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
    known = FHIRServer.objects.active().order_by("pk")
    near = (
        known.filter(base_url__icontains=f"//{host}")[:_COMPARED] or known[:_COMPARED]
    )

    def get_likeness(url: str) -> tuple[float, float]:
        own = urlsplit(url).hostname or ""
        pairs = (host, own), (shown, url)
        first, second = (SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return first, second

    urls = [server.base_url for server in near]
    logger.warning(
        "An EHR launch came from %r, which is not a registered base URL; the "
        "closest one is %s. If it is the same server, register this base URL.",
        shown,
        max(urls, key=get_likeness, default="none"),
    )


def get_standalone_registration(slug: str, launch_slug: str = "") -> ClientRegistration:
    """
    Find the registration for a standalone launch, by the server's *slug* or its own.

    Raises:
        LaunchRequestError: no server has this slug.
        InactiveRegistrationError: it, or its registration, is off or not for this.
    """
    server: FHIRServer | None = None
    # Nothing else goes into a query: PostgreSQL rejects NUL.
    if slug_re.fullmatch(launch_slug or slug):
        registration = ClientRegistration.objects.find_standalone(slug, launch_slug)
        if registration is not None:
            return registration
        if launch_slug:
            named = ClientRegistration.objects.select_related("server")
            known = named.filter(launch_slug=launch_slug).first()
            server = known.server if known else None
        else:
            server = FHIRServer.objects.filter(slug=slug).first()
    if server is None or (not launch_slug and server.slug != slug):
        raise LaunchRequestError(
            "No server is registered with this name.", code="unknown_server"
        )
    raise InactiveRegistrationError(
        f"The server {server.slug} has no active registration for standalone launches."
    )


def _make_room(browser: Browser) -> None:
    """
    Make room in a browser that starts another launch.

    Cookies of launches that are over are deleted, and the oldest that are under way
    end: users who return from one of them get an error page and start again.
    """
    kept = forget_ended(browser)
    under_way = [each for each in kept if each.status in Launch.UNDER_WAY]
    if surplus := under_way[_MAX_PENDING - 1 :]:
        launches = Launch.objects.filter(pk__in=[each.pk for each in surplus])
        end_at_any_stage(launches, reason="too_many_pending")
        browser.keep(each for each in kept if each not in surplus)


def begin_ehr_launch(
    request: HttpRequest,
    registration: ClientRegistration,
    *,
    iss: str,
    ehr_launch_id: str,
    left_frame: bool = False,
) -> LaunchStart:
    """
    Begin an EHR launch: scope ``launch`` and the EHR's own ``launch`` value.

    Args:
        iss: as received; the request's ``aud``, character for character (EHRL-05),
            unless the server's ``aud_rule`` says otherwise.
        left_frame: whether a new window has led out of a frame of the server.

    Raises:
        TransportError, DiscoveryError: the server's configuration is unavailable.
        UnsupportedServerError: it lacks what this launch needs.
    """
    scope = registration.ehr_scope
    if "launch" not in ScopeSet.parse(scope):
        scope = f"launch {scope}"
    launch = Launch(kind=Launch.Kind.EHR, registration=registration, scope_asked=scope)
    if left_frame:
        launch.context = {LEFT_FRAME: True}
    return _begin(request, launch, iss=iss, ehr_launch_id=ehr_launch_id)


def begin_standalone_launch(
    request: HttpRequest,
    registration: ClientRegistration,
    *,
    next_url: str = "",
) -> LaunchStart:
    """
    Begin a standalone launch: to sign in, or to connect if a user is signed in.

    Raises:
        TransportError, DiscoveryError: the server's configuration is unavailable.
        UnsupportedServerError: it lacks what this launch needs.
    """
    connects = get_user(request) is not None
    launch = Launch(
        kind=Launch.Kind.STANDALONE,
        registration=registration,
        intent=Launch.Intent.CONNECT if connects else Launch.Intent.SIGN_IN,
        scope_asked=registration.standalone_scope,
        next_url=next_url,
    )
    return _begin(request, launch)


def _begin(
    request: HttpRequest,
    launch: Launch,
    *,
    iss: str = "",
    ehr_launch_id: str | None = None,
) -> LaunchStart:
    state = _make_random()
    registration = launch.registration
    launch.user = get_user(request)
    launch.is_framed = is_framed(request)
    launch.state_digest = digest(state)
    launch.callback_id = registration.callback_id
    launch.expires_at = timezone.now() + conf.SMART_AUTHORIZATION_LIFETIME
    try:
        configuration = get_configuration(registration.server, registration.client_id)
        if "openid" in launch.scopes_asked:
            check_moved(registration.server)
        _check_support(launch, configuration)
        asked = build_request(
            launch, configuration, state=state, iss=iss, ehr_launch_id=ehr_launch_id
        )
    except SMARTError as exc:
        fail_launch(None if exc.code == "discovery_busy" else launch, exc)
        raise
    browser = get_browser(request)
    _make_room(browser)
    browser.start(launch)
    launch.save()
    logger.info("Launch %s started at server %s", launch.pk, registration.server_id)
    return LaunchStart(
        launch=launch,
        request=asked,
        uses_post=_uses_post(configuration, asked),
    )


def build_request(
    launch: Launch,
    configuration: SMARTConfiguration,
    *,
    state: str,
    iss: str = "",
    ehr_launch_id: str | None = None,
) -> AuthorizationRequest:
    """
    Build the authorization request of *launch*; set nonce and code verifier.

    Args:
        iss, ehr_launch_id: of an EHR launch, as received.
    """
    registration = launch.registration
    launch.nonce = _make_random()
    # 86 unreserved characters; 43 to 128 are allowed (AUTH-04).
    launch.code_verifier = secrets.token_urlsafe(64)
    return build_authorization_request(
        authorization_endpoint=configuration.authorization_endpoint or "",
        client_id=registration.client_id,
        redirect_uri=registration.redirect_uri,
        scope=launch.scope_asked,
        state=state,
        aud=_choose_aud(registration.server, iss),
        code_challenge=build_code_challenge(launch.code_verifier),
        launch=ehr_launch_id,
        nonce=launch.nonce if "openid" in launch.scopes_asked else None,
        extra=tuple((registration.server.authorization_parameters or {}).items()),
    )


def _choose_aud(server: FHIRServer, iss: str) -> str:
    if server.quirks.aud_rule == "base_url":
        return server.base_url
    return iss or server.normalized_base_url


def _check_support(launch: Launch, configuration: SMARTConfiguration) -> None:
    server = launch.registration.server
    try:
        check_launch(launch, configuration)
    except UnsupportedServerError as exc:
        # The page shows only a code; the log has the fix for operators.
        logger.error("Server %s cannot be used for this launch: %s", server.pk, exc)  # noqa: TRY400
        # Not cached for a day: the server may be fixed by the next launch.
        doubt_configuration(server)
        raise


def _uses_post(
    configuration: SMARTConfiguration, request: AuthorizationRequest
) -> bool:
    # A redirect shows no page in between, so a form is used only for long requests.
    return len(request.url) > _LONGEST_URL and configuration.has(
        Capability.AUTHORIZE_POST
    )


def _make_random() -> str:
    # 256 bits; at least 122 are required (AUTH-06).
    return secrets.token_urlsafe(32)
