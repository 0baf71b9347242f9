"""
Sign-out: what ends on this site, and whether the EHR's session ends as well.

A change of user without a sign-out ends what the other user had open, too, and the
deletion of a user everything of that user.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import urlencode, urljoin

from django.http import HttpRequest
from django.utils import timezone

from ..grants.ending import end_launches
from ..models import Launch, TokenGrant
from ..protocol.urls import get_origin
from .browser import forget_ended, get_browser
from .held import end_at_any_stage, end_held_launches
from .messages import forget_messages
from .request_state import get_request_state

__all__ = [
    "end_grants_of_deleted",
    "end_launches_of_browser",
    "end_launches_of_others",
    "find_end_session_url",
]


def find_end_session_url(
    browser_digests: Collection[str], *, user_id: Any, return_to: str
) -> str | None:
    """
    Return the URL that ends the user's session at the EHR they signed in with.

    Call it before the browser's launches are ended. Sends no request.

    Args:
        user_id: who is signed in; launches of other users do not count.
        return_to: path of this site, or URL, that the EHR sends the browser to.

    Returns:
        ``None`` unless the latest sign-in in this browser was through a server with
        ``rp_initiated_logout`` and a known ``end_session_endpoint``.

    Spec: OpenID Connect RP-Initiated Logout 1.0 section 2, without ``id_token_hint``,
    since ID tokens are not stored: the server may ask the user to confirm.
    """
    launch = (
        Launch.objects.with_related()
        .of_browser(browser_digests)
        # Ended ones, too: that leaves the EHR's session open.
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
    if not registration.server.quirks.rp_initiated_logout:
        return None
    configuration = registration.server.read_configuration()
    if configuration is None or configuration.end_session_endpoint is None:
        return None
    endpoint = configuration.end_session_endpoint
    # This site's origin, as registered at the EHR.
    origin = get_origin(registration.redirect_uri)
    query = urlencode(
        {
            "client_id": registration.client_id,
            "post_logout_redirect_uri": urljoin(origin, return_to),
        }
    )
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"


def end_launches_of_browser(request: HttpRequest | None, **_kwargs: Any) -> None:
    """End what is open in this browser: its user has signed out."""
    if request is None:
        return
    browser = get_browser(request)
    if browser.digests:
        launches = Launch.objects.known_to(browser.digests)
        end_at_any_stage(launches, reason="signed_out")
        browser.keep(())
        browser.start_over()
        forget_messages(request)
        _leave_prefix(request)


def end_launches_of_others(
    request: HttpRequest | None, user: Any, **_kwargs: Any
) -> None:
    """End what other users have open in this browser: *user* has signed in."""
    # Django lets one user's login replace another's session without a sign-out.
    if request is None or not get_browser(request).digests:
        return
    browser = get_browser(request)
    # What is under way goes on: it may be waiting for this sign-in.
    others = Launch.objects.of_browser(browser.digests).open().exclude(user=user)
    others = others.filter(user__isnull=False)
    if others.exists():
        end_launches(others, reason="user_changed", now=timezone.now())
        forget_ended(browser)
        browser.start_over()
        _leave_prefix(request)


def end_grants_of_deleted(instance: Any, **_kwargs: Any) -> None:
    """Keep of a user who is being deleted only tokens that are still to be revoked."""
    launches = Launch.objects.filter(user=instance.pk)
    end_held_launches(launches, reason="user_deleted")
    grants = TokenGrant.objects.filter(user=instance.pk)
    grants.end_pending_revocation(now=timezone.now())
    grants.filter(is_revocation_pending=False).delete()
    grants.update(patient_id="", encounter_id="")


def _leave_prefix(request: HttpRequest) -> None:
    """Make the view redirect to a page outside the launch, whose pages are closed."""
    prefix = get_request_state(request).prefix
    if prefix is not None:
        prefix.leave()
