"""Messages of one launch, kept apart from those of every other."""

from __future__ import annotations

from django.contrib.messages import get_messages
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.messages.storage.session import SessionStorage
from django.http import HttpRequest

__all__ = ["keep_messages_apart"]


def keep_messages_apart(request: HttpRequest, *, key: str) -> None:
    """
    Store and find the request's messages under names that only one launch has.

    A browser has one session for all its charts, and what is queued in one would be
    shown by whichever page comes next: "Saved" under another patient's name.  It is so
    with the storages of ``django.contrib.messages`` and their subclasses; a storage of
    another kind has to look at ``request.smart`` itself.
    """
    storage = get_messages(request)
    for each in (storage, *getattr(storage, "storages", ())):
        if isinstance(each, CookieStorage):
            each.cookie_name = f"{each.cookie_name}_{key}"
        elif isinstance(each, SessionStorage):
            each.session_key = f"{each.session_key}_{key}"
