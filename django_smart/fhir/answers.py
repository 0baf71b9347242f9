"""Responses of a server to a change."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from django_smart.exceptions import BearerBoundaryError, FHIRRequestError
from django_smart.fhir.interactions import Interaction
from django_smart.fhir.messages import (
    build_malformed_error,
    process_change_response,
    refuse_error,
    resolve_url,
    validate_id,
)
from django_smart.protocol.messages import HTTPResponse

__all__ = ["add_version", "parse_etag", "parse_place", "process_write_response"]

_PLACE = re.compile(
    r"(?:.*/)?([A-Z][A-Za-z]{0,63})/([A-Za-z0-9\-.]{1,64})"
    r"(?:/_history/([A-Za-z0-9\-.]{1,64}))?/?"
)
_VERSION = re.compile(r'(?:W/)?"([A-Za-z0-9\-.]{1,64})"')


def process_write_response(
    response: HTTPResponse,
    interaction: Interaction,
    *,
    is_within_boundary: Callable[[str], bool],
) -> dict[str, Any]:
    """
    Turn the answer to a create, update or patch into the resource as it is now.

    Returns:
        What the server sent.  If it sent no resource, as after ``prefer="minimal"``,
        its ``resourceType``, ``id`` and, if told, ``meta.versionId``.

    Raises:
        FHIRStatusError: its subclass for the status.
        MalformedFHIRResponseError: an error; another resource, or none, and nothing
            says which one was stored.
        BearerBoundaryError: only a ``Location`` says what was made, and it leads out.
    """
    what = f"{interaction.name} of {interaction.resource_type}"
    answer = process_change_response(response, what=what)
    if response.status_code != 201:  # which says that it was stored
        refuse_error(response, answer, what=what)
    if answer is not None and answer["resourceType"] == "OperationOutcome":
        if interaction.headers.get("Prefer") == "return=OperationOutcome":
            return answer
        answer = None
    if answer is None:
        answer = _read_place(response, interaction, is_within_boundary)
    if answer is None:
        raise build_malformed_error(
            response, f"the {what} does not say which resource it stored"
        )
    if (
        answer["resourceType"] != interaction.resource_type
        or not _is_id(answer.get("id"))
        or interaction.id not in {"", answer["id"]}
    ):
        raise build_malformed_error(
            response, f"the {what} returned a different resource"
        )
    return add_version(answer, response)


def add_version(resource: dict[str, Any], response: HTTPResponse) -> dict[str, Any]:
    """Put the version that the ``ETag`` names where the resource itself has none."""
    version_id = parse_etag(response.headers.get("etag"))
    meta = resource.get("meta", {})
    if version_id and isinstance(meta, dict) and "versionId" not in meta:
        resource["meta"] = {**meta, "versionId": version_id}
    return resource


def parse_etag(etag: object) -> str:
    """Version that an ETag names; empty if it is none of FHIR's."""
    match = _VERSION.fullmatch(etag) if isinstance(etag, str) else None
    return match[1] if match else ""


def parse_place(url: str) -> tuple[str, str, str] | None:
    """Resource type, id and version (or empty) at the end of *url*."""
    match = _PLACE.fullmatch(url.partition("?")[0])
    if match is None or not _is_id(match[2]):
        return None
    return match[1], match[2], match[3] or ""


def _read_place(
    response: HTTPResponse,
    interaction: Interaction,
    is_within_boundary: Callable[[str], bool],
) -> dict[str, Any] | None:
    """Build what is known of a resource from its ``Location``, or the request's URL."""
    location, url = response.headers.get("location", ""), response.url
    if location:
        url = resolve_url(url or location, location)
        if not is_within_boundary(url):
            raise BearerBoundaryError(
                f"the response to the {interaction.name} of "
                f"{interaction.resource_type} names a location outside the server"
            )
    place = parse_place(url)
    # "FHIR/Patient" is no place, but a base URL and a type.
    if place is None or not (location or place[0] == interaction.resource_type):
        return None
    resource: dict[str, Any] = {"resourceType": place[0], "id": place[1]}
    if place[2]:
        resource["meta"] = {"versionId": place[2]}
    return resource


def _is_id(value: object) -> bool:
    try:
        return bool(validate_id(value))
    except FHIRRequestError:
        return False
