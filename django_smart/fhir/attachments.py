"""Binary content: attachments, and the responses that contain it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from django_smart.exceptions import FHIRRequestError, ResponseTooLargeError
from django_smart.fhir.answers import parse_place
from django_smart.fhir.interactions import Interaction
from django_smart.fhir.messages import build_malformed_error, raise_for_status
from django_smart.transport import ResponseStream

__all__ = ["Attachment", "read_attachment", "write_stream"]

_MAX_REFUSAL = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """
    Content, or its location.

    Attributes:
        url: as in the resource; empty with *data*.
        data: the content itself.
        media_type: of the content; empty if unknown.
    """

    url: str = field(default="", repr=False)
    data: bytes | None = field(default=None, repr=False)
    media_type: str = field(default="", repr=False)

    def build_interaction(self) -> Interaction:
        """Request the content itself, not a resource that wraps it."""
        place = parse_place(self.url)
        return Interaction(
            name="read",
            method="GET",
            path=self.url,
            resource_type=place[0] if place else "",
            headers={"Accept": self.media_type or "*/*"},
        )


def read_attachment(source: str | Mapping[str, Any], accept: str = "") -> Attachment:
    """
    Read an ``Attachment``, or the URL of content.

    Raises:
        FHIRRequestError: it has no valid data and no URL.

    Spec: FHIR R4, data type Attachment; "RESTful API", Binary.
    """
    if isinstance(source, str):
        return Attachment(url=source, media_type=accept)
    media_type = accept or str(source.get("contentType") or "")
    data, url = source.get("data"), source.get("url")
    if isinstance(data, str) and (data or not url):
        try:
            content = base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise FHIRRequestError(
                "The attachment's data is not valid base64."
            ) from None
        return Attachment(data=content, media_type=media_type)
    if not isinstance(url, str) or not url:
        raise FHIRRequestError("The attachment has neither data nor a URL.")
    return Attachment(url=url, media_type=media_type)


def write_stream(stream: ResponseStream, file: BinaryIO, *, max_size: int) -> str:
    """
    Write the content to *file*; return its media type.

    Raises:
        FHIRStatusError: the subclass for the status; nothing was written.
        MalformedFHIRResponseError: a status below 400 without content.
        ResponseTooLargeError: more than *max_size* bytes.
        TransportError: the response is incomplete.
    """
    raise_unless_ok(stream, what="download")
    for chunk in _limit(stream.chunks, max_size):
        file.write(chunk)
    return stream.head.media_type


def raise_unless_ok(stream: ResponseStream, *, what: str) -> None:
    """
    Raise unless the response has content.

    Raises:
        FHIRStatusError: the subclass for the status, with the server's issues.
        MalformedFHIRResponseError: a status below 400 without content.
    """
    head = stream.head
    if head.status_code >= 400:
        # As much of an error response as an OperationOutcome may have.
        body = b"".join(_limit(stream.chunks, _MAX_REFUSAL))
        raise_for_status(replace(head, body=body), what)
    if head.status_code != 200:
        raise build_malformed_error(
            head, f"the {what} returned status {head.status_code}"
        )


def _limit(chunks: Iterable[bytes], max_size: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_size:
            raise ResponseTooLargeError(f"the download is larger than {max_size} bytes")
        yield chunk
