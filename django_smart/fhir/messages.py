"""
What FHIR's REST interface asks and answers: names, statuses and JSON.

Each ``process_…_response`` raises the subclass of ``FHIRStatusError`` for a status of
400 or more, and ``MalformedFHIRResponseError`` for another that is no success, or for
an answer that is not FHIR JSON or not what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRConflictError,
    FHIRForbiddenError,
    FHIRNotFoundError,
    FHIRPreconditionFailedError,
    FHIRRequestError,
    FHIRStatusError,
    FHIRUnauthorizedError,
    FHIRUnavailableError,
    MalformedFHIRResponseError,
    ReplacedPatientError,
    ResponseTooLargeError,
)
from django_smart.fhir.json import load_json
from django_smart.protocol.messages import HTTPResponse

if TYPE_CHECKING:
    from django_smart.fhir.interactions import Interaction
    from django_smart.transport import ResponseStream

__all__ = [
    "FHIRExchange",
    "ParsedResponse",
    "add_version",
    "build_malformed_error",
    "find_request_id",
    "get_issues",
    "is_id",
    "is_resource_type",
    "limit_chunks",
    "parse_etag",
    "parse_place",
    "parse_resource",
    "process_bundle_response",
    "process_change_response",
    "process_delete_response",
    "process_read_response",
    "process_resource_response",
    "process_write_response",
    "raise_for_status",
    "raise_unless_ok",
    "refuse_error",
    "reports_error",
    "resolve_link",
    "resolve_url",
    "validate_bundle",
    "validate_id",
    "validate_resource_type",
]

_RESOURCE_TYPE = re.compile(r"[A-Z][A-Za-z]{0,63}")
_REQUEST_ID = re.compile(r"[!-~]{1,200}")
_VISIBLE = "".join(map(chr, range(33, 127)))
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_PLACE = re.compile(
    r"(?:.*/)?([A-Z][A-Za-z]{0,63})/([A-Za-z0-9\-.]{1,64})"
    r"(?:/_history/([A-Za-z0-9\-.]{1,64}))?/?"
)
_VERSION = re.compile(r'(?:W/)?"([A-Za-z0-9\-.]{1,64})"')
# The second is that of DSTU2 servers (FHIR-08).
_MEDIA_TYPES = {"application/fhir+json", "application/json+fhir", "application/json"}

_STATUS_ERRORS: dict[int, type[FHIRStatusError]] = {
    401: FHIRUnauthorizedError,
    403: FHIRForbiddenError,
    404: FHIRNotFoundError,
    409: FHIRConflictError,
    410: FHIRNotFoundError,
    412: FHIRPreconditionFailedError,
    429: FHIRUnavailableError,
}

_OK = HTTPResponse(status_code=200)
# Bytes of an error response, as much as an OperationOutcome may have.
_MAX_REFUSAL = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class FHIRExchange:
    """
    One request that carried the access token, for audit and signals.

    Attributes:
        interaction: ``"read"``, ``"search"``, …; for requests by path or through
            ``session``, the method in lower case.
        resource_type: type such as ``"Observation"``; empty if the path has none.
        status_code: status of the response; ``None`` without a response.
        duration: seconds, including a refresh and a retry.
        request_id: value of ``X-Request-Id``.
        error_code: code of the error without a whole response; empty if there is one.
    """

    interaction: str
    resource_type: str
    status_code: int | None
    duration: float
    request_id: str = ""
    error_code: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedResponse(HTTPResponse):
    """A response whose resource was parsed already, and may be changed."""

    resource: dict[str, Any] = field(repr=False, compare=False)


def validate_resource_type(resource_type: object) -> str:
    """
    Return the name of a resource type, checked for its form alone (FHIR-08).

    Raises:
        FHIRRequestError: not letters that begin with a capital.
    """
    if not is_resource_type(resource_type):
        raise FHIRRequestError(
            "A resource type consists of letters and begins with a capital."
        )
    return resource_type


def is_resource_type(value: object) -> TypeGuard[str]:
    """Return whether *value* has the form of a resource type's name."""
    return isinstance(value, str) and bool(_RESOURCE_TYPE.fullmatch(value))


def validate_id(id: object) -> str:  # noqa: A002  # FHIR's own name
    """
    Return the id of a resource.

    Raises:
        FHIRRequestError: not 1 to 64 of ``A-Za-z0-9-.``, or a dot segment.

    Spec: FHIR R4, data type ``id``.
    """
    if not is_id(id):
        raise FHIRRequestError(
            'A resource id consists of 1 to 64 letters, digits, "-" and ".".'
        )
    return id


def find_request_id(headers: Mapping[str, str]) -> str:
    """``X-Request-Id`` among *headers*, empty if there is none that could be told."""
    for name, value in headers.items():
        if name.lower() == "x-request-id" and _REQUEST_ID.fullmatch(value):
            return value
    return ""


def resolve_url(base: str, reference: str) -> str:
    """
    Absolute URL of *reference*, without fragment; empty if it cannot be read.

    Spaces and letters beyond ASCII, which some servers leave in links, are encoded.
    """
    try:
        return quote(urldefrag(urljoin(base, reference)).url, safe=_VISIBLE)
    except ValueError:
        return ""


def resolve_link(base: str, reference: str) -> str:
    """
    :func:`resolve_url` of a Bundle's link.

    A server behind a proxy that terminates TLS may write http instead of https.
    """
    url = resolve_url(base, reference)
    host = f"://{urlsplit(base).netloc}/".lower()
    is_same_host = url[4 : 4 + len(host)].lower() == host
    if is_same_host and base.startswith("https:") and url.startswith("http:"):
        return f"https{url.removeprefix('http')}"
    return url


def process_read_response(
    response: HTTPResponse, interaction: Interaction
) -> dict[str, Any]:
    """Turn the answer to a read or vread into the resource, with its version."""
    resource_type = interaction.resource_type
    what = f"{interaction.name} of {resource_type}"
    resource = process_resource_response(response, what=what)
    is_type = resource["resourceType"] == resource_type
    if not is_type or resource.get("id") != interaction.id:
        is_patient = is_type and resource_type == "Patient"
        raise build_malformed_error(
            response,
            f"the {what} returned a different resource",
            error=ReplacedPatientError
            if is_patient and is_id(resource.get("id"))
            else MalformedFHIRResponseError,
        )
    add_version(resource, response)
    place, meta = parse_place(interaction.path), resource.get("meta")
    version_id = place[2] if place else ""
    found_id = meta.get("versionId") if isinstance(meta, dict) else None
    if version_id and found_id not in {None, version_id}:
        raise build_malformed_error(
            response, f"the {what} returned a different version"
        )
    return resource


def process_bundle_response(
    response: HTTPResponse,
    *,
    type: str,  # noqa: A002  # FHIR's own name
    what: str,
) -> dict[str, Any]:
    """Turn an answer into a Bundle of *type* whose ``entry`` and ``link`` are lists."""
    bundle = process_resource_response(response, what=what)
    return validate_bundle(bundle, type=type, what=what, response=response)


def validate_bundle(
    bundle: dict[str, Any],
    *,
    type: str,  # noqa: A002
    what: str,
    response: HTTPResponse = _OK,
) -> dict[str, Any]:
    """:func:`process_bundle_response` of what came in *response*."""
    if bundle["resourceType"] != "Bundle" or bundle.get("type") != type:
        raise build_malformed_error(
            response, f"the {what} returned no Bundle of type {type}"
        )
    for name in ("entry", "link"):
        items = bundle.get(name)
        if items is None:
            # Absent when empty; null is what some servers write.
            bundle[name] = items = []
        if not isinstance(items, list) or not all(
            isinstance(item, dict) for item in items
        ):
            raise build_malformed_error(
                response, f'"{name}" in the {what} is not a list of objects'
            )
    return bundle


def process_resource_response(response: HTTPResponse, *, what: str) -> dict[str, Any]:
    """Turn an answer with status 200 or 201 into the resource in its body."""
    if response.status_code >= 400:
        raise_for_status(response, what)
    if response.status_code not in {200, 201}:
        raise build_malformed_error(
            response, f"the {what} returned status {response.status_code}"
        )
    if response.media_type not in _MEDIA_TYPES:
        raise build_malformed_error(response, f"the {what} did not return JSON")
    if isinstance(response, ParsedResponse):
        return response.resource
    resource = parse_resource(response.body)
    if resource is None:
        raise build_malformed_error(response, f"the {what} returned no FHIR resource")
    return resource


def process_change_response(
    response: HTTPResponse, *, what: str
) -> dict[str, Any] | None:
    """Turn the answer to a change or an operation into the resource in it, if any."""
    if response.status_code == 204 or (
        response.status_code in {200, 201} and not response.body
    ):
        return None
    return process_resource_response(response, what=what)


def process_write_response(
    response: HTTPResponse,
    interaction: Interaction,
    *,
    is_within_boundary: Callable[[str], bool],
    may_be_silent: bool = False,
) -> dict[str, Any]:
    """
    Turn the answer to a create, update or patch into the resource as it is now.

    Args:
        may_be_silent: return nothing if nothing says which resource was stored.

    Returns:
        What the server sent.  If it sent no resource, as after ``prefer="minimal"``,
        its ``resourceType``, ``id`` and, if told, ``meta.versionId``.

    Raises:
        MalformedFHIRResponseError: also an error; or nothing says which resource was
            stored.
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
    if answer is None and may_be_silent:
        return {}
    if answer is None:
        raise build_malformed_error(
            response, f"the {what} does not say which resource it stored"
        )
    if (
        answer["resourceType"] != interaction.resource_type
        or not is_id(answer.get("id"))
        or interaction.id not in {"", answer["id"]}
    ):
        raise build_malformed_error(
            response, f"the {what} returned a different resource"
        )
    return add_version(answer, response)


def process_delete_response(response: HTTPResponse, *, what: str) -> None:
    """Make sure that a deletion succeeded, whatever was sent along to say so."""
    if response.status_code >= 400:
        raise_for_status(response, what)
    if response.status_code not in {200, 202, 204}:
        raise build_malformed_error(
            response, f"the {what} returned status {response.status_code}"
        )
    refuse_error(response, parse_resource(response.body), what=what)


def refuse_error(response: HTTPResponse, outcome: object, *, what: str) -> None:
    """Refuse an *outcome* with an error, which by FHIR's definition is a failure."""
    if reports_error(outcome):
        raise build_malformed_error(
            response, f"the {what} reported an error with status {response.status_code}"
        )


def parse_resource(body: bytes) -> dict[str, Any] | None:
    """
    Read a resource, or return ``None`` if *body* is none.

    Without the limits of the protocol's messages: FHIR nests deeper, and a search may
    bring megabytes.
    """
    try:
        value = load_json(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name = value.get("resourceType")
    return value if isinstance(name, str) and name else None


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
    if match is None or not is_id(match[2]):
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


def is_id(value: object) -> TypeGuard[str]:
    """Return whether *value* has the form of a resource's id."""
    # "." and ".." are ids by the letter, and another path to every server.
    is_text = isinstance(value, str) and value not in {".", ".."}
    return is_text and bool(_ID.fullmatch(str(value)))


def raise_for_status(response: HTTPResponse, what: str) -> NoReturn:
    """Raise what a status of 400 or more means, with the server's issues."""
    status = response.status_code
    error = _STATUS_ERRORS.get(
        status, FHIRUnavailableError if status >= 500 else FHIRStatusError
    )
    issues = get_issues(parse_resource(response.body))
    said = _describe_issues(issues)
    raise error(
        f"the {what} returned status {status}" + (f" ({said})" if said else ""),
        status_code=status,
        issues=issues,
        media_type=response.media_type,
        retry_after=response.retry_after,
        request_id=find_request_id(response.headers),
    )


def raise_unless_ok(stream: ResponseStream, *, what: str) -> None:
    """
    Raise unless the response has content.

    Raises:
        FHIRStatusError: the subclass for the status, with the server's issues.
        MalformedFHIRResponseError: a status below 400 without content.
    """
    head = stream.head
    if head.status_code >= 400:
        body = b"".join(limit_chunks(stream.chunks, _MAX_REFUSAL))
        raise_for_status(replace(head, body=body), what)
    if head.status_code != 200:
        raise build_malformed_error(
            head, f"the {what} returned status {head.status_code}"
        )


def limit_chunks(chunks: Iterable[bytes], max_size: int) -> Iterator[bytes]:
    """Yield *chunks*; raise ``ResponseTooLargeError`` beyond *max_size* bytes."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_size:
            raise ResponseTooLargeError(f"the download is larger than {max_size} bytes")
        yield chunk


def reports_error(outcome: object, *, codes: Collection[str] = ()) -> bool:
    """
    Return whether *outcome* is an ``OperationOutcome`` with an error.

    Args:
        codes: issue types that are errors unless they are mere information.
    """
    return any(
        issue.get("severity") in ("error", "fatal")
        or (issue.get("code") in codes and issue.get("severity") != "information")
        for issue in get_issues(outcome)
    )


def get_issues(outcome: object) -> list[dict[str, object]]:
    """``issue`` of an ``OperationOutcome``, if it is one (FHIR-07)."""
    if not isinstance(outcome, dict):
        return []
    if outcome.get("resourceType") != "OperationOutcome":
        return []
    issues = outcome.get("issue")
    if not isinstance(issues, list):
        return []
    return [issue for issue in issues if isinstance(issue, dict)]


def build_malformed_error(
    response: HTTPResponse,
    message: str,
    *,
    error: type[MalformedFHIRResponseError] = MalformedFHIRResponseError,
) -> MalformedFHIRResponseError:
    """Make the error for a *response* that is not what was requested."""
    issues = get_issues(parse_resource(response.body))
    said = _describe_issues(issues)
    return error(
        f"{message} ({said})" if said else message,
        status_code=response.status_code,
        issues=issues,
        media_type=response.media_type,
    )


_MAX_ISSUES = 3
_ISSUE_TYPE = re.compile("[a-z]+(?:-[a-z]+)?")
# FHIRPath: names of elements, and nothing that is compared with them.
_ELEMENT = re.compile(r"[A-Z][A-Za-z]{1,40}(\.[A-Za-z]{1,40}(\[(\d{1,4}|x)\])?){1,12}")


def _describe_issues(issues: list[dict[str, object]]) -> str:
    """The codes and places of issues; their texts may name a person."""
    described = []
    for issue in issues[:_MAX_ISSUES]:
        code, places = issue.get("code"), issue.get("expression")
        if isinstance(code, str) and _ISSUE_TYPE.fullmatch(code):
            texts = map(str, places if isinstance(places, list) else ())
            place = next(filter(_ELEMENT.fullmatch, texts), "")
            described.append(f"{code} at {place}" if place else code)
    return "; ".join(described)
