"""Brand bundles as files: fetched to disk, read entry by entry."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, cast
from urllib.parse import urljoin

from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from ... import transport
from ...conf import conf
from ...exceptions import BrandStatusError, MalformedBrandError
from ...protocol.messages import HTTPRequest, HTTPResponse

__all__ = ["BundleReader", "Fetched", "fetch_bundle"]

# A national bundle has hundreds of megabytes.
_MAX_DOWNLOAD = 4 * 1024**3
_DOWNLOAD_SECONDS = 3600.0
_MAX_REDIRECTS = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_ETAG = 500
# Of one organisation with thousands of places, and of its text.
_MAX_EVENTS = 500_000
_MAX_CHARACTERS = 16 * 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """
    The answer to a request for a bundle.

    Attributes:
        is_new: false if the server said that nothing changed.
        etag: to send the next time, empty if there is none.
    """

    is_new: bool
    etag: str


def fetch_bundle(url: str, *, etag: str, file: BinaryIO) -> Fetched:
    """
    Fetch a bundle into *file*, unless it is still the one that *etag* names.

    No credentials are sent; redirects to other https URLs are followed.

    Raises:
        BrandStatusError: another answer than 200 or 304.
        TransportError: no usable answer.

    Spec: SMART App Launch 2.2, "User-access Brands and Endpoints", Caching (BRAND-01).
    """
    headers = {"Accept": "application/fhir+json, application/json"}
    if etag:
        headers["If-None-Match"] = etag
    for _ in range(_MAX_REDIRECTS + 1):
        response = _send(HTTPRequest(method="GET", url=url, headers=headers), file)
        location = response.headers.get("location", "")
        if response.status_code not in _REDIRECTS or not location:
            break
        url = urljoin(url, location)
    if response.status_code == 304 and etag:
        return Fetched(is_new=False, etag=etag)
    if response.status_code != 200:
        raise BrandStatusError(
            f"The brand bundle was answered with {response.status_code}.",
            status_code=response.status_code,
        )
    new_etag = response.headers.get("etag", "")
    return Fetched(is_new=True, etag=new_etag if len(new_etag) <= _MAX_ETAG else "")


def _send(request: HTTPRequest, file: BinaryIO) -> HTTPResponse:
    file.seek(0)
    file.truncate()
    connect, read, _ = conf.SMART_HTTP_TIMEOUT
    return transport.send(
        request,
        timeouts=transport.Timeouts(
            connect=connect, read=read, total=max(_DOWNLOAD_SECONDS, connect, read)
        ),
        max_body=_MAX_DOWNLOAD,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        sink=file,
    )


class BundleReader:
    """
    Iterates over the entries of a bundle, holding one at a time.

    Attributes:
        timestamp: of the last change; known when the end is reached, else ``None``.

    Raises (while it is iterated):
        MalformedBrandError: not JSON, or not a ``Bundle`` of type ``collection``.
        ImproperlyConfigured: the extra ``brands`` is not installed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.timestamp: datetime | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ijson = _import_ijson()
        self._file.seek(0)
        if self._file.read(3) != codecs.BOM_UTF8:
            self._file.seek(0)
        found: dict[str, object] = {}
        try:
            yield from self._read(ijson, found)
        except (ijson.JSONError, UnicodeDecodeError) as exc:
            raise MalformedBrandError("The brand bundle is not complete JSON.") from exc
        if found.get("resourceType") != "Bundle" or found.get("type") != "collection":
            raise MalformedBrandError(
                "The brand bundle is not a Bundle of type collection."
            )
        self.timestamp = _read_timestamp(found.get("timestamp"))

    def _read(self, ijson: Any, found: dict[str, object]) -> Iterator[dict[str, Any]]:
        """Yield entries; what else is needed, wherever it stands, goes to *found*."""
        builder: Any = None
        events = characters = 0
        for prefix, event, value in ijson.parse(self._file, use_float=True):
            if prefix == "entry.item" and event in {"start_map", "end_map"}:
                if event == "start_map":
                    builder, events, characters = ijson.ObjectBuilder(), 0, 0
                builder.event(event, value)
                if event == "end_map":
                    yield cast("dict[str, Any]", builder.value)
                    builder = None
            elif builder is not None:
                events += 1
                characters += len(value) if isinstance(value, str) else 0
                if events > _MAX_EVENTS or characters > _MAX_CHARACTERS:
                    raise MalformedBrandError("The brand bundle has a giant entry.")
                builder.event(event, value)
            elif prefix in {"resourceType", "type", "timestamp"}:
                found[prefix] = value


def _import_ijson() -> Any:
    try:
        import ijson
    except ImportError as exc:
        raise ImproperlyConfigured(
            "Reading brand bundles takes ijson, which is not installed: "
            'pip install "django-smart[brands]"'
        ) from exc
    return ijson


def _read_timestamp(value: object) -> datetime | None:
    try:
        moment = parse_datetime(value) if isinstance(value, str) else None
    except ValueError:
        return None
    if moment is not None and timezone.is_naive(moment):
        return None
    return moment
