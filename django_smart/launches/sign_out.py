"""
Sign-out: what it ends here, and whether it ends the EHR's session as well.

A change of user without a sign-out ends what the other user had open, too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import urljoin

from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.http import HttpRequest
from django.utils import timezone

from ..grants.ending import end_browser, end_launches, enqueue_revocations
from ..models import Launch
from ..protocol.logout import build_end_session_url
from ..protocol.urls import get_origin
from .browser import get_browser
from .request_state import get_request_state

__all__ = ["connect_receivers", "find_end_session_url"]


def find_end_session_url(
    browser_digests: Collection[str], *, user_id: Any, return_to: str
) -> str | None:
    """
    The URL at which the EHR ends the session of whoever signed in with it here.

    Call it before the launches of the browser are ended.  Nothing is fetched.

    Args:
        user_id: who is signed in; launches of other users do not count.
        return_to: path of this site, or URL, that the EHR sends the browser to.

    Returns:
        ``None`` unless the latest sign-in in this browser was at a server with
        ``rp_initiated_logout`` that is known to have an ``end_session_endpoint``.

    Spec: OpenID Connect RP-Initiated Logout 1.0.
    """
    launch = (
        Launch.objects.with_related()
        .of_browser(browser_digests)
        .live(timezone.now())
        .filter(
            user_id=user_id,
            identity__isnull=False,
            intent=Launch.Intent.SIGN_IN,
        )
        .order_by("-completed_at", "-pk")
        .first()
    )
    if launch is None:
        return None
    registration = launch.registration
    if not registration.server.rp_initiated_logout:
        return None
    configuration = registration.server.read_configuration()
    if configuration is None or configuration.end_session_endpoint is None:
        return None
    # This site's origin as the EHR knows it.
    origin = get_origin(registration.redirect_uri)
    return build_end_session_url(
        configuration.end_session_endpoint,
        client_id=registration.client_id,
        post_logout_redirect_uri=urljoin(origin, return_to),
    )


def connect_receivers() -> None:
    """Listen to Django's signals; called once, when the app is ready."""
    user_logged_out.connect(
        _end_launches_of_browser, dispatch_uid="django_smart.user_logged_out"
    )
    user_logged_in.connect(
        _end_launches_of_others, dispatch_uid="django_smart.user_logged_in"
    )


def _end_launches_of_browser(request: HttpRequest | None, **_kwargs: Any) -> None:
    if request is None:
        return
    browser = get_browser(request)
    if browser.digests:
        enqueue_revocations(end_browser(browser.digests, reason="signed_out"))
        browser.rotate()
        _leave_prefix(request)


def _end_launches_of_others(
    request: HttpRequest | None, user: Any, **_kwargs: Any
) -> None:
    # Django lets one user's login replace another's session without a sign-out.
    if request is None or get_request_state(request).taken_over_by == user.pk:
        return
    browser = get_browser(request)
    if not browser.digests:
        return
    others = (
        Launch.objects.of_browser(browser.digests)
        .filter(user__isnull=False)
        .exclude(user=user)
    )
    if others.open().exists():
        enqueue_revocations(
            end_launches(others, reason="user_changed", now=timezone.now())
        )
        browser.rotate()
        _leave_prefix(request)


def _leave_prefix(request: HttpRequest) -> None:
    """Let the view redirect to a page of the site: those of the launch are closed."""
    prefix = get_request_state(request).prefix
    if prefix is not None:
        prefix.leave()
