"""Binary content: attachments, and the responses that contain it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

from django_smart.exceptions import FHIRRequestError, ResponseTooLargeError
from django_smart.fhir.messages import build_malformed_error, raise_for_status
from django_smart.transport import ResponseStream

__all__ = ["raise_unless_ok", "read_attachment", "write_stream"]

_MAX_REFUSAL = 1024 * 1024


def read_attachment(
    source: str | Mapping[str, Any], accept: str = ""
) -> tuple[bytes | str, str]:
    """
    Read an ``Attachment``, or the URL of content.

    Returns:
        The content, or its URL; and its media type, empty if unknown.

    Raises:
        FHIRRequestError: it has no valid data and no URL.

    Spec: FHIR R4, data type Attachment; "RESTful API", Binary.
    """
    if isinstance(source, str):
        return source, accept
    media_type = accept or str(source.get("contentType") or "")
    data, url = source.get("data"), source.get("url")
    if isinstance(data, str) and (data or not url):
        try:
            content = base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise FHIRRequestError(
                "The attachment's data is not valid base64."
            ) from None
        return content, media_type
    if not isinstance(url, str) or not url:
        raise FHIRRequestError("The attachment has neither data nor a URL.")
    return url, media_type


def write_stream(stream: ResponseStream, file: BinaryIO, *, max_size: int) -> str:
    """Write the content to *file*, as ``FHIRClient.download`` says; return its type."""
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
