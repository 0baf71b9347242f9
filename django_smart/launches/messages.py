"""Messages of one launch, kept separate from those of other launches."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib.messages import get_messages
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.messages.storage.session import SessionStorage
from django.db import router
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

from ..conf import conf
from ..fields import digest
from ..models import Launch
from .prefix import KEY
from .request_state import get_request_state

__all__ = ["delete_cookies", "forget_messages", "keep_messages_apart"]


def keep_messages_apart(request: HttpRequest, *, key: str) -> None:
    """
    Store and find the request's messages under names that are unique to one launch.

    A browser has one session for all its charts, and a message queued in one chart
    would be shown by the next page of any: "Saved" under another patient's name. This
    covers the storages of ``django.contrib.messages`` and their subclasses; any other
    storage must use ``request.smart`` itself.
    """
    if not conf.SMART_LAUNCH_PREFIX:
        return
    for each in _get_storages(request):
        if isinstance(each, CookieStorage):
            each.cookie_name = f"{each.cookie_name}_{key}"
        elif isinstance(each, SessionStorage):
            each.session_key = f"{each.session_key}_{key}"


def forget_messages(request: HttpRequest) -> None:
    """
    Let the response delete cookies with messages of launches that are not open.

    A site whose pages show no messages would otherwise fill the browser with them,
    until the request headers are too long for the web server.
    """
    names: dict[str, str] = {}
    for each in _get_storages(request):
        if isinstance(each, CookieStorage):
            pattern = re.compile(f"{re.escape(type(each).cookie_name)}_({KEY})")
            found = filter(None, map(pattern.fullmatch, request.COOKIES))
            names.update((match[1], match[0]) for match in found)
    if names:
        now = timezone.now()
        # Not from a replica; those of another site on this host are left.
        launches = Launch.objects.using(router.db_for_write(Launch)).filter(
            key_digest__in=map(digest, names)
        )
        get_request_state(request).unneeded_cookies = [
            names[each.key] for each in launches if not each.is_live(now)
        ]


def delete_cookies(response: HttpResponseBase, names: Iterable[str]) -> None:
    """Delete cookies with messages as Django does."""
    for name in names:
        response.delete_cookie(
            name,
            domain=settings.SESSION_COOKIE_DOMAIN,
            samesite=settings.SESSION_COOKIE_SAMESITE,
        )


def _get_storages(request: HttpRequest) -> tuple[Any, ...]:
    storage = get_messages(request)
    return storage, *getattr(storage, "storages", ())
