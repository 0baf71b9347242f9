"""Receivers of Django's own signals: sign-out and change of user, by any view."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.http import HttpRequest
from django.utils import timezone

from .browser import get_browser
from .grants.ending import end_browser, end_launches, enqueue_revocations
from .models import Launch
from .prefix import LaunchPrefix

__all__ = ["connect"]


def connect() -> None:
    """Called once, when the app is ready."""
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
    if request is None or getattr(request, "smart_taken_over_by", None) == user.pk:
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
    """Let the view go on to a page of the site: those of the launch are closed."""
    prefix: LaunchPrefix | None = getattr(request, "smart_prefix", None)
    if prefix is not None:
        prefix.leave()
