"""Begin a launch: from the EHR's or a person's wish to the authorization request."""

from __future__ import annotations

import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.core.validators import slug_re
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
from ..models.server import MAX_URL_LENGTH
from ..protocol.authorization import (
    AuthorizationRequest,
    build_authorization_request,
    build_code_challenge,
)
from ..protocol.capabilities import Capability
from ..protocol.discovery import SMARTConfiguration
from ..servers.discovery import check_dispute, get_configuration
from ..servers.requirements import check_launch
from .failure import fail_launch, refuse_launch

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

__all__ = [
    "LaunchStart",
    "begin_ehr_launch",
    "begin_standalone_launch",
    "get_ehr_registration",
    "get_standalone_registration",
    "refuse_ehr_request",
]

logger = logging.getLogger(__name__)

# Characters of an address that every server and proxy on the way takes (AUTH-09).
_LONGEST_URL = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchStart:
    """
    A pending launch, and where the browser has to go for it.

    Attributes:
        uses_post: whether the request is to be sent as a form (AUTH-08).
    """

    launch: Launch
    request: AuthorizationRequest
    uses_post: bool


def get_ehr_registration(iss: str) -> ClientRegistration:
    """
    The registration that an EHR launch from *iss* uses, without any request (EHRL-06).

    Raises:
        LaunchRequestError: no server has this base URL.
        InactiveRegistrationError: it, or its registration, is off or not for launches.
    """
    server = _find_server(iss)
    if server is None:
        unknown = LaunchRequestError(
            "The iss of this launch is not the FHIR base URL of a registered server.",
            code="unknown_server",
        )
        refuse_launch(None, unknown, kind=Launch.Kind.EHR)
        raise unknown
    registration = ClientRegistration.objects.launchable().filter(server=server).first()
    if registration is None or not registration.ehr_scope:
        inactive = InactiveRegistrationError(
            f"The server {server.slug} has no active registration for EHR launches."
        )
        refuse_launch(_get_any(server), inactive, kind=Launch.Kind.EHR)
        raise inactive
    return registration


def refuse_ehr_request(iss: str, error: SMARTError) -> None:
    """Tell of an EHR launch that lacks a parameter; *iss* may be anything."""
    server = _find_server(iss)
    registration = _get_any(server) if server is not None else None
    refuse_launch(registration, error, kind=Launch.Kind.EHR)


def _find_server(iss: str) -> FHIRServer | None:
    # A port may have any number of zeros, a column has not.
    if len(iss) <= MAX_URL_LENGTH:
        with suppress(SMARTError):
            return FHIRServer.objects.with_base_url(iss).first()
    return None


def get_standalone_registration(slug: str) -> ClientRegistration:
    """
    The registration that a person starts by the server's *slug*.

    Raises:
        LaunchRequestError: no server has this slug.
        InactiveRegistrationError: it, or its registration, is off or not for this.
    """
    server = None
    # Anything else is no query: PostgreSQL takes no NUL.
    if slug_re.fullmatch(slug):
        registration = ClientRegistration.objects.find_standalone(slug)
        if registration is not None:
            return registration
        server = FHIRServer.objects.filter(slug=slug).first()
    if server is None or server.slug != slug:
        unknown = LaunchRequestError(
            "No server is registered under this name.", code="unknown_server"
        )
        refuse_launch(None, unknown, kind=Launch.Kind.STANDALONE)
        raise unknown
    inactive = InactiveRegistrationError(
        f"The server {server.slug} has no active registration for logging in."
    )
    refuse_launch(_get_any(server), inactive, kind=Launch.Kind.STANDALONE)
    raise inactive


def _get_any(server: FHIRServer) -> ClientRegistration | None:
    """A registration at *server*, switched off or not, to keep a refusal with."""
    return ClientRegistration.objects.filter(server=server).order_by("-pk").first()


def begin_ehr_launch(
    registration: ClientRegistration,
    *,
    iss: str,
    ehr_launch_id: str,
    browser_digest: str,
    user: AbstractBaseUser | None,
    is_framed: bool = False,
) -> LaunchStart:
    """
    Begin an EHR launch: scope ``launch`` and the EHR's own ``launch`` value.

    Args:
        iss: as received; the request's ``aud``, character for character (EHRL-05).
        user: who is signed in, or ``None``.
        is_framed: whether its pages are shown in a frame of the server's.

    Raises:
        TransportError, DiscoveryError: the server's configuration is not to be had.
        UnsupportedServerError: it lacks what this launch needs.
    """
    scope = registration.ehr_scope
    if "launch" not in scope.split():
        scope = f"launch {scope}"
    server = registration.server
    launch = Launch(
        kind=Launch.Kind.EHR,
        is_framed=is_framed,
        aud=iss if server.aud_rule == server.AudRule.AS_RECEIVED else server.base_url,
        scope_asked=scope,
    )
    return _begin(
        launch,
        registration=registration,
        browser_digest=browser_digest,
        user=user,
        ehr_launch_id=ehr_launch_id,
    )


def begin_standalone_launch(
    registration: ClientRegistration,
    *,
    browser_digest: str,
    user: AbstractBaseUser | None,
    next_url: str = "",
    is_framed: bool = False,
) -> LaunchStart:
    """
    Begin a standalone launch: to sign in, or to connect if *user* is signed in.

    Raises:
        TransportError, DiscoveryError: the server's configuration is not to be had.
        UnsupportedServerError: it lacks what this launch needs.
    """
    launch = Launch(
        kind=Launch.Kind.STANDALONE,
        intent=Launch.Intent.SIGN_IN if user is None else Launch.Intent.CONNECT,
        is_framed=is_framed,
        aud=registration.server.base_url,
        scope_asked=registration.standalone_scope,
        next_url=next_url,
    )
    return _begin(
        launch, registration=registration, browser_digest=browser_digest, user=user
    )


def _begin(
    launch: Launch,
    *,
    registration: ClientRegistration,
    browser_digest: str,
    user: AbstractBaseUser | None,
    ehr_launch_id: str | None = None,
) -> LaunchStart:
    state = _make_random()
    launch.registration = registration
    launch.user = user  # type: ignore[assignment]  # AUTH_USER_MODEL is any user class
    launch.state_digest = digest(state)
    launch.nonce = _make_random()
    launch.browser_digest = browser_digest
    launch.redirect_uri = registration.redirect_uri
    launch.callback_id = registration.callback_id
    launch.expires_at = timezone.now() + conf.SMART_AUTHORIZATION_LIFETIME
    try:
        configuration = get_configuration(registration.server)
        if "openid" in launch.scope_asked.split():
            check_dispute(registration.server)
        _check_support(launch, configuration)
        if _uses_pkce(registration, configuration):
            launch.code_verifier = _make_code_verifier()
        request = build_authorization_request(
            authorization_endpoint=configuration.authorization_endpoint or "",
            client_id=registration.client_id,
            redirect_uri=registration.redirect_uri,
            scope=launch.scope_asked,
            state=state,
            aud=launch.aud,
            code_challenge=(
                build_code_challenge(launch.code_verifier)
                if launch.code_verifier
                else None
            ),
            launch=ehr_launch_id,
            nonce=launch.nonce if "openid" in launch.scope_asked.split() else None,
        )
    except SMARTError as exc:
        fail_launch(launch, exc)
        raise
    launch.save()
    logger.info("Launch %s started at server %s", launch.pk, registration.server_id)
    return LaunchStart(
        launch=launch,
        request=request,
        uses_post=_uses_post(registration.server, configuration, request),
    )


def _check_support(launch: Launch, configuration: SMARTConfiguration) -> None:
    server = launch.registration.server
    try:
        check_launch(launch, configuration)
    except UnsupportedServerError as exc:
        # The page shows a code; what to do is for those who read the log.
        logger.error("Server %s cannot be used so: %s", server.pk, exc)  # noqa: TRY400
        # Not kept for a day: the server may have mended it by the next launch.
        server.configuration_fetched_at = None
        server.save(update_fields=["configuration_fetched_at"])
        raise


def _uses_pkce(
    registration: ClientRegistration, configuration: SMARTConfiguration
) -> bool:
    rule = registration.server.pkce
    if rule == FHIRServer.PKCE.IF_ADVERTISED:
        return configuration.supports_s256
    return rule == FHIRServer.PKCE.ALWAYS


def _uses_post(
    server: FHIRServer, configuration: SMARTConfiguration, request: AuthorizationRequest
) -> bool:
    if server.authorize_method == FHIRServer.AuthorizeMethod.AUTO:
        # A redirect shows nothing in between, so a form is for what it cannot carry.
        return len(request.url) > _LONGEST_URL and configuration.has(
            Capability.AUTHORIZE_POST
        )
    return server.authorize_method == FHIRServer.AuthorizeMethod.POST


def _make_random() -> str:
    # 256 bits where at least 122 are asked for (AUTH-06).
    return secrets.token_urlsafe(32)


def _make_code_verifier() -> str:
    # 86 unreserved characters; 43 to 128 are allowed (AUTH-04).
    return secrets.token_urlsafe(64)
