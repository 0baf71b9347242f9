"""The launch prefix: ``/~<key>/`` before every path of a launched page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from django.conf import settings
from django.http import FileResponse, HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url
from django.urls import (
    ResolverMatch,
    get_script_prefix,
    is_valid_path,
    reverse,
    set_script_prefix,
)
from django.utils.translation import get_language, get_language_from_path, override

from ..conf import conf
from ..models import Launch

__all__ = [
    "KEY",
    "LaunchPrefix",
    "build_launch_path",
    "build_launch_url",
    "find_route",
    "get_protocol_url",
    "leave_launch",
    "script_prefix",
    "split_launch_key",
]

#: Pattern of a launch's public key.
KEY = r"[A-Za-z0-9_-]{22,64}"


class LaunchPrefix:
    """
    The prefix of one request: removed from the path, and set as the script prefix.
    """

    @classmethod
    def find(cls, request: HttpRequest) -> LaunchPrefix | None:
        """
        Return the prefix of *request*; ``None`` without one, as for most requests.
        """
        key, path_info = split_launch_key(request.path_info)
        return None if key is None else cls(request, key, path_info)

    def __init__(self, request: HttpRequest, key: str, path_info: str) -> None:
        self.outer = get_script_prefix()
        self.key = key
        self._inner = f"{self.outer}{conf.SMART_LAUNCH_PREFIX}{self.key}/"
        self._request = request
        self._path_info = path_info

    def enter(self) -> None:
        """Make ``reverse()`` and every view see the site as mounted here."""
        # Django adds the script prefix to these when they are first read, and caches
        # the result: read them before the launch prefix is set.
        _ = settings.STATIC_URL, settings.MEDIA_URL
        request = self._request
        request.path_info = request.META["PATH_INFO"] = self._path_info
        request.META["SCRIPT_NAME"] = self._inner.removesuffix("/")
        set_script_prefix(self._inner)

    def leave(self) -> None:
        """Restore the script prefix."""
        set_script_prefix(self.outer)

    def keep_for(self, response: HttpResponseBase) -> None:
        """
        Apply it to the parts of a streaming response, which are made after ``leave``.
        """
        if (
            not isinstance(response, StreamingHttpResponse)
            # A file has no links, and servers have faster ways to send it.
            or isinstance(response, FileResponse)
        ):
            return
        parts = response.streaming_content
        response.streaming_content = (
            self._stream(parts) if isinstance(parts, Iterable) else self._astream(parts)
        )

    def _stream(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        iterator = iter(parts)
        while True:
            with script_prefix(self._inner):
                try:
                    part = next(iterator)
                except StopIteration:
                    return
            yield part

    async def _astream(self, parts: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        iterator = aiter(parts)
        while True:
            with script_prefix(self._inner):
                try:
                    part = await anext(iterator)
                except StopAsyncIteration:
                    return
            yield part


@contextmanager
def script_prefix(prefix: str) -> Iterator[None]:
    """Build URLs with *prefix* inside the block."""
    before = get_script_prefix()
    set_script_prefix(prefix)
    try:
        yield
    finally:
        set_script_prefix(before)


def split_launch_key(path_info: str) -> tuple[str | None, str]:
    """
    Split *path_info* into the launch key and the remaining path.

    Returns:
        ``(None, path_info)`` if there is no launch prefix, or prefixes are turned off.
    """
    mark = conf.SMART_LAUNCH_PREFIX
    if not mark or not path_info.startswith(f"/{mark}"):
        return None, path_info
    match = re.fullmatch(rf"/{re.escape(mark)}({KEY})(/.*)?", path_info, re.DOTALL)
    if match is None:
        return None, path_info
    return match[1], match[2] or "/"


def build_launch_path(key: str, path: str) -> str:
    """
    Return *path* of this site, with or without a launch prefix, under *key*'s prefix.

    Query and fragment are kept. Call it outside any launch prefix.
    """
    mark = conf.SMART_LAUNCH_PREFIX
    return _build_path(path, f"{mark}{key}" if mark else "")


def build_launch_url(launch: Launch, path: str) -> str:
    """Return *path*, or the landing page if it is empty, under *launch*'s prefix."""
    # Input from outside is a path, and never the name of a URL.
    landing = launch.registration.landing_page or conf.SMART_LAUNCH_REDIRECT_URL
    return build_launch_path(launch.key, path or resolve_url(landing))


def leave_launch(path: str) -> str:
    """Return *path* of this site without a launch prefix, as above."""
    return _build_path(path, "")


def _build_path(path: str, prefix: str) -> str:
    outer = get_script_prefix()
    parts = urlsplit(path)
    inner = "/" + parts.path.removeprefix(outer).lstrip("/")
    _, inner = split_launch_key(inner)
    # Two slashes would begin the name of another host.
    inner = "/" + inner.lstrip("/")
    path = f"{outer}{prefix}{inner}" if prefix else outer.rstrip("/") + inner
    return parts._replace(scheme="", netloc="", path=path).geturl()


def get_protocol_url(name: str, **kwargs: str) -> str:
    """
    Return the path of one of the package's URLs, never under a launch prefix.

    Args:
        name: without the namespace, such as ``login``.
        kwargs: what the path contains.
    """
    inner = get_script_prefix()
    path = reverse(f"django_smart:{name}", kwargs=kwargs)
    mark = conf.SMART_LAUNCH_PREFIX
    match = mark and re.fullmatch(rf"(.*/){re.escape(mark)}{KEY}/", inner)
    if not match:
        return path
    return match[1] + path.removeprefix(inner)


def find_route(path: str, *, follow: bool = False) -> ResolverMatch | None:
    """
    Return the view that the site has at *path*, or ``None``.

    Args:
        follow: also look where ``LocaleMiddleware`` and ``APPEND_SLASH`` redirect to.
    """
    path = "/" + path.removeprefix(get_script_prefix()).lstrip("/")
    paths = [path]
    if follow:
        paths.append(f"/{settings.LANGUAGE_CODE}{path}")
        if settings.APPEND_SLASH:
            paths += [f"{each}/" for each in paths]
    for each in paths:
        # With i18n_patterns(), LocaleMiddleware routes a path in its own language.
        own = get_language_from_path(each) or settings.LANGUAGE_CODE
        for language in (get_language() or own, own):
            with override(language):
                if match := is_valid_path(each):
                    return match
    return None
