"""Messages of one launch, kept separate from those of other launches."""

from __future__ import annotations

from django.contrib.messages import get_messages
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.messages.storage.session import SessionStorage
from django.http import HttpRequest

from ..conf import conf

__all__ = ["keep_messages_apart"]


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
    storage = get_messages(request)
    for each in (storage, *getattr(storage, "storages", ())):
        if isinstance(each, CookieStorage):
            each.cookie_name = f"{each.cookie_name}_{key}"
        elif isinstance(each, SessionStorage):
            each.session_key = f"{each.session_key}_{key}"
