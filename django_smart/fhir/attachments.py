"""Files, downloaded in chunks."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO

from django_smart.exceptions import FHIRRequestError, ResponseTooLargeError
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import FHIR_JSON, Interaction
from django_smart.fhir.messages import (
    build_malformed_error,
    limit_chunks,
    parse_place,
    parse_resource,
    raise_unless_ok,
    refuse_error,
)

__all__ = ["download"]


def download(
    client: FHIRConnection,
    source: str | Mapping[str, Any],
    file: BinaryIO,
    *,
    accept: str = "",
    max_size: int = 1024**3,
) -> str:
    """
    Write a ``Binary`` or an attachment to *file*, in chunks.

    Under ``patient/`` scopes, it is not checked whose content it is: pass only URLs
    from a resource that you have read.

    Args:
        source: an ``Attachment`` of a resource, or a path or URL such as
            ``Binary/123``.
        accept: requested media type; by default, the attachment's, or any.
        max_size: maximum number of bytes to write.

    Returns:
        The media type of the content.

    Raises:
        BearerBoundaryError: the content is at another server; nothing was sent.
        FHIRRequestError: the attachment has no data and no valid URL.
        FHIRStatusError: the server refused; nothing was written.
        MalformedFHIRResponseError: the server sent a resource instead of the content;
            nothing was written.  A ``Binary`` with the content is unwrapped.
        ResponseTooLargeError: the content is larger than *max_size*.
        TransportError: the response is incomplete; *file* contains a part of it.
    """
    content, media_type = _read_attachment(source, accept)
    if isinstance(content, bytes):
        _write(content, file, max_size)
        return media_type
    place = parse_place(content)
    interaction = Interaction(
        name="read",
        method="GET",
        path=client.build_url(content),
        resource_type=place[0] if place else "",
    )
    client.check_scope(interaction)
    with client.stream(
        "GET",
        interaction.path,
        # The content itself, not a resource that wraps it.
        headers={"Accept": media_type or "*/*"},
        interaction=interaction.name,
        resource_type=interaction.resource_type,
    ) as stream:
        raise_unless_ok(stream, what="download")
        head = stream.head
        if head.media_type != FHIR_JSON or media_type == FHIR_JSON:
            for chunk in limit_chunks(stream.chunks, max_size):
                file.write(chunk)
            return head.media_type
        # Some servers send a resource with the content, whatever the client accepts;
        # base64 is a third longer.
        body = b"".join(limit_chunks(stream.chunks, 2 * max_size))
    response = replace(head, body=body)
    resource = parse_resource(body) or {}
    refuse_error(response, resource, what="download")
    if resource.get("resourceType") == "Binary":
        body = _decode(resource.get("data", ""))
        media_type = str(resource.get("contentType") or "")
    elif media_type:
        raise build_malformed_error(response, "the download returned another resource")
    else:
        media_type = head.media_type
    _write(body, file, max_size)
    return media_type


def _write(content: bytes, file: BinaryIO, max_size: int) -> None:
    if len(content) > max_size:
        raise ResponseTooLargeError("the attachment is larger than the limit")
    file.write(content)


def _read_attachment(
    source: str | Mapping[str, Any], accept: str = ""
) -> tuple[bytes | str, str]:
    """Return the content of an ``Attachment`` or its URL, and its media type."""
    if isinstance(source, str):
        return source, accept
    media_type = accept or str(source.get("contentType") or "")
    data, url = source.get("data"), source.get("url")
    if isinstance(data, str) and (data or not url):
        return _decode(data), media_type
    if not isinstance(url, str) or not url:
        raise FHIRRequestError("The attachment has neither data nor a URL.")
    return url, media_type


def _decode(data: object) -> bytes:
    try:
        return base64.b64decode("".join(str(data).split()), validate=True)
    except (binascii.Error, ValueError):
        raise FHIRRequestError("The attachment's data is not valid base64.") from None
