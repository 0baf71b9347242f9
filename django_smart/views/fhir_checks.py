"""What a script of this site may send on, before anybody asks whose data it is."""

from __future__ import annotations

import re
from typing import Any

from django.core.exceptions import BadRequest, RequestDataTooBig, SuspiciousOperation
from django.http import HttpRequest, HttpResponse, RawPostDataException
from django.http.multipartparser import MultiPartParserError
from django.middleware.csrf import CsrfViewMiddleware

from ..conf import conf
from ..exceptions import FHIRRequestError, MalformedFHIRResponseError, NoLaunchError
from ..fhir.guard import check_resource_type, parse_interaction
from ..fhir.interactions import Interaction
from ..fhir.json import load_json
from ..launches.request_state import get_request_state
from ..protocol.json import parse_json
from .fhir_outcomes import FHIR_JSON, JSON_TYPES, MAX_DEPTH, RefusedError

__all__ = ["check_csrf", "get_launch", "read_interaction"]

_JSON_PATCH = "application/json-patch+json"
_FORM_TYPE = "application/x-www-form-urlencoded"
# Nothing of the connection, no cookie and no credentials.  If-None-Match is answered
# here, and reads have no other condition: which version another patient's resource has
# is also news.
_REQUEST_HEADERS = {
    "DELETE": "If-Match",
    "PATCH": "If-Match",
    "POST": "If-None-Exist",
    "PUT": "If-Match",
}
_PREFERENCES = re.compile(r"\s*(?:return|handling)=[A-Za-z]+\s*")


class _CSRFCheck(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def get_launch(request: HttpRequest) -> Any:
    """``request.smart``, if the request came under its launch's prefix."""
    smart = request.smart  # type: ignore[attr-defined]  # the middleware's
    state = get_request_state(request)
    # What did not pass the middleware, as in a test, has had no prefix taken off.
    is_without = state.context is not None and state.prefix is None
    if not smart or (is_without and conf.SMART_LAUNCH_PREFIX):
        raise NoLaunchError("there is no launch for this request; open a chart first")
    return smart


def check_csrf(request: HttpRequest) -> None:
    check = _CSRFCheck(lambda request: HttpResponse())
    check.process_request(request)
    try:
        # The token may be in a form, which is parsed for it.
        reason = check.process_view(request, lambda request: HttpResponse(), (), {})
    except RequestDataTooBig:
        raise _too_large() from None
    except (BadRequest, MultiPartParserError, SuspiciousOperation):
        raise RefusedError(400, "invalid", "The form cannot be read.") from None
    if reason is not None:
        raise RefusedError(
            403, "security", "The CSRF token is missing or wrong; reload the page."
        )


def read_interaction(request: HttpRequest, path: str, query: str) -> Interaction:
    """
    The interaction that a request is, its body as Python has it.

    Raises:
        RefusedError: it is none of FHIR's.
    """
    method = request.method or ""
    body = media_type = None
    if method in {"POST", "PUT", "PATCH"}:
        body, media_type = _read_value(request, path)
    try:
        asked = parse_interaction(
            method,
            f"{path}?{query}" if query else path,
            headers=_get_headers(request),
            body=body,
            media_type=media_type or "",
        )
        if asked.name in {"create", "update"}:
            check_resource_type(body, asked.resource_type)
    except FHIRRequestError as error:
        raise RefusedError(400, "invalid", str(error)) from None
    return asked


def _get_headers(request: HttpRequest) -> dict[str, str]:
    headers = {}
    name = _REQUEST_HEADERS.get(request.method or "", "")
    if (value := request.headers.get(name)) is not None:
        headers[name] = value
    # An answer that comes later would pass no check.
    prefer = request.headers.get("Prefer", "")
    if kept := list(filter(_PREFERENCES.fullmatch, re.split("[;,]", prefer))):
        headers["Prefer"] = "; ".join(part.strip() for part in kept)
    return headers


def _read_value(request: HttpRequest, path: str) -> tuple[Any, str]:
    """The body, parsed unless it is a form, and the media type to send it with."""
    media_type = request.content_type or ""
    if path.rstrip("/").endswith("_search"):
        if media_type != _FORM_TYPE:
            raise RefusedError(415, "not-supported", "A search must be sent as a form.")
        return _read_body(request), _FORM_TYPE
    is_patch = request.method == "PATCH"
    # The check of the CSRF token has used up what is of many parts.
    if media_type not in JSON_TYPES and not (is_patch and media_type == _JSON_PATCH):
        raise RefusedError(
            415, "not-supported", "A resource must be sent as FHIR JSON."
        )
    try:
        value = parse_json(
            _read_body(request),
            error=MalformedFHIRResponseError,
            what="request",
            max_depth=MAX_DEPTH,
        )
    except MalformedFHIRResponseError as error:
        raise RefusedError(400, "invalid", str(error)) from None
    if not isinstance(value, list if media_type == _JSON_PATCH else dict):
        raise RefusedError(
            400, "invalid", "The request body does not match its content type."
        )
    if isinstance(value, dict):
        value = load_json(request.body)
    return value, media_type if is_patch else FHIR_JSON


def _read_body(request: HttpRequest) -> bytes:
    try:
        return request.body
    except RequestDataTooBig:
        raise _too_large() from None
    except RawPostDataException:
        # By a middleware of the site.
        raise RefusedError(
            500, "exception", "The request body was already read."
        ) from None


def _too_large() -> RefusedError:
    return RefusedError(413, "too-long", "The request is too large.")
