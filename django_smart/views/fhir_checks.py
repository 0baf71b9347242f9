"""What a script may ask for, and whose data it may see."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from django.core.exceptions import RequestDataTooBig, SuspiciousOperation
from django.http import HttpRequest, HttpResponse, RawPostDataException
from django.http.multipartparser import MultiPartParserError
from django.middleware.csrf import CsrfViewMiddleware

from ..conf import conf
from ..exceptions import MalformedFHIRResponseError, NoLaunchError, SMARTError
from ..launches.request_state import get_request_state
from ..protocol.json import parse_json_object
from ..protocol.scopes import ResourceScope
from .fhir_outcomes import FHIR_JSON, JSON_TYPES, RefusedError

__all__ = [
    "build_query",
    "check_csrf",
    "check_path",
    "check_patient",
    "get_body",
    "get_launch",
    "get_options",
]

_PATCH_TYPES = JSON_TYPES | {"application/json-patch+json"}
_FORM_TYPE = "application/x-www-form-urlencoded"
_TYPE = re.compile(r"[A-Z][A-Za-z]{0,63}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}", re.ASCII)
# Relative, absolute or with a version: Patient/<id>, https://…/Patient/<id>/_history/1.
_PATIENT_REFERENCE = re.compile(
    r"(?:^|/)Patient/([A-Za-z0-9\-.]{1,64})(?=[/?#]|$)", re.ASCII
)
# What names the patient, whatever the type.
_PATIENT_ELEMENTS = ("patient", "subject", "beneficiary", "individual", "for")
# What does so elsewhere: the search parameters of R4's patient compartment.
_PATIENT_ELEMENTS_OF: dict[str, tuple[str, ...]] = {
    "Appointment": ("participant.actor",),
    "AppointmentResponse": ("actor",),
    "AuditEvent": ("agent.who", "entity.what"),
    "EnrollmentRequest": ("candidate",),
    "Group": ("member.entity",),
    "Person": ("link.target",),
    "Provenance": ("target",),
    "Schedule": ("actor",),
    "SupplyRequest": ("deliverTo",),
}
# Values of _summary that leave out no such element, or every resource.
_WHOLE_SUMMARIES = {"count", "data", "false"}
_INCLUSIONS = {"_include", "_revinclude"}
_MAX_PARAMETERS = 100
# Nothing of the connection, no cookie and no credentials.
_REQUEST_HEADERS = ("If-Match", "If-None-Exist", "If-None-Match", "Prefer")


class _CSRFCheck(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def check_path(method: str, resource_type: str, rest: str | None) -> None:
    """
    Refuse what is not ``<Type>``, ``<Type>/<id>`` or ``<Type>/_search``.

    Args:
        rest: what follows the slash after the type; ``None`` without a slash.
    """
    if not _TYPE.fullmatch(resource_type):
        raise RefusedError(400, "invalid", "Not a FHIR resource type.")
    is_search = method == "POST" and rest == "_search"
    if rest is not None and not is_search and not _is_id(rest):
        raise RefusedError(400, "invalid", "Not a FHIR resource id.")
    if method in {"PUT", "PATCH", "DELETE"} and rest is None:
        raise RefusedError(400, "invalid", f"{method} needs a resource id.")
    if method == "POST" and rest is not None and not is_search:
        raise RefusedError(400, "invalid", "POST goes to a type or to _search.")


def get_launch(request: HttpRequest) -> Any:
    """``request.smart``, if the request came under its launch's prefix."""
    smart = request.smart  # type: ignore[attr-defined]  # the middleware's
    state = get_request_state(request)
    # What did not pass the middleware, as in a test, has had no prefix taken off.
    is_without = state.context is not None and state.prefix is None
    if not smart or (is_without and conf.SMART_LAUNCH_PREFIX):
        raise NoLaunchError("open a chart first; there is no launch for this request")
    return smart


def check_csrf(request: HttpRequest) -> None:
    check = _CSRFCheck(lambda request: HttpResponse())
    check.process_request(request)
    try:
        # The token may stand in a form, which is read for it.
        reason = check.process_view(request, lambda request: HttpResponse(), (), {})
    except RequestDataTooBig:
        raise _too_large() from None
    except (MultiPartParserError, SuspiciousOperation):
        raise RefusedError(400, "invalid", "The form cannot be read.") from None
    if reason is not None:
        raise RefusedError(
            403, "security", "The CSRF token is missing or wrong: load the page again."
        )


def get_options(request: HttpRequest) -> dict[str, Any]:
    headers = {
        name: value
        for name in _REQUEST_HEADERS
        if (value := request.headers.get(name)) is not None
    }
    return {"headers": headers} if headers else {}


def get_body(
    request: HttpRequest, smart: Any, resource_type: str, rest: str
) -> dict[str, Any]:
    """Body and headers of a write, checked as far as that can be done here."""
    method = request.method
    media_type = request.content_type or ""
    headers = get_options(request).get("headers", {})
    if method == "DELETE":
        return {"headers": headers}
    if rest == "_search":
        if media_type != _FORM_TYPE:
            raise RefusedError(415, "not-supported", "A search is sent as a form.")
        text = _read_body(request).decode("utf-8", "replace")
        body = build_query(text, smart).removeprefix("?").encode()
        return {"headers": {**headers, "Content-Type": _FORM_TYPE}, "body": body}
    # The check of the CSRF token has used up what is of many parts.
    if media_type not in (_PATCH_TYPES if method == "PATCH" else JSON_TYPES):
        raise RefusedError(415, "not-supported", "A resource is sent as FHIR JSON.")
    body = _read_body(request)
    if method != "PATCH":
        _check_written(body, smart, resource_type, rest)
        media_type = FHIR_JSON
    return {"headers": {**headers, "Content-Type": media_type}, "body": body}


def _read_body(request: HttpRequest) -> bytes:
    try:
        return request.body
    except RequestDataTooBig:
        raise _too_large() from None
    except RawPostDataException:
        # By a middleware of the site.
        raise RefusedError(500, "exception", "The request was read before.") from None


def _too_large() -> RefusedError:
    return RefusedError(413, "too-long", "The request is too large.")


def _check_written(body: bytes, smart: Any, resource_type: str, rest: str) -> None:
    try:
        resource = parse_json_object(
            body, error=MalformedFHIRResponseError, what="request"
        )
    except SMARTError as error:
        raise RefusedError(400, "invalid", str(error)) from None
    if resource.get("resourceType") != resource_type:
        raise RefusedError(400, "invalid", "The resource is of another type.")
    if rest and resource.get("id") != rest:
        raise RefusedError(400, "invalid", "The resource has another id.")
    check_patient(resource, smart)


def _is_id(value: str) -> bool:
    """Whether *value* is a FHIR id, and no step up or aside in the path."""
    return bool(_ID.fullmatch(value)) and value not in {".", ".."}


def build_query(text: str, smart: Any, resource_type: str = "*") -> str:
    """
    Take the query apart and write it again, so that nothing odd gets through.

    Where the patients of what comes have to be looked at, parameters are left out that
    could leave out who they are.

    Args:
        resource_type: searched for; ``"*"`` if others may come.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise RefusedError(400, "too-costly", "Too many parameters.") from None
    if any(name.partition(":")[0].lower() in _INCLUSIONS for name, _ in pairs):
        resource_type = "*"
    if not _is_left_to_server(resource_type, smart):
        pairs = [pair for pair in pairs if not _is_partial(*pair)]
    return f"?{urlencode(pairs, quote_via=quote)}" if pairs else ""


def _is_partial(name: str, value: str) -> bool:
    """Whether a parameter makes the server leave out elements that name a patient."""
    # FHIR tells capitals apart here; not every server does.
    bare = name.partition(":")[0].lower()
    return bare == "_elements" or (bare == "_summary" and value not in _WHOLE_SUMMARIES)


def check_patient(resource: Mapping[str, Any], smart: Any) -> None:
    """
    Refuse a resource of another patient than the launch's.

    Scopes at ``patient/`` level are about that patient alone; a server that lets others
    through is not followed.  With ``user/`` scopes for the type, the server decides.
    """
    if _is_left_to_server(str(resource.get("resourceType")), smart):
        return
    patients = set(_patients(resource))
    if patients and smart.patient_id not in patients:
        raise RefusedError(403, "forbidden", "The resource belongs to another patient.")


def _is_left_to_server(resource_type: str, smart: Any) -> bool:
    return smart.patient_id is None or any(
        isinstance(scope, ResourceScope)
        and scope.level != "patient"
        and scope.type.lower() in {"*", resource_type.lower()}
        and "r" in scope.letters
        for scope in smart.scopes
    )


def _patients(resource: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ids of the patients a resource says it is about."""
    resource_type = str(resource.get("resourceType"))
    if resource_type == "Patient":
        # One that is still to be created has no id, and is another patient.
        yield str(resource.get("id"))
        return
    for path in (*_PATIENT_ELEMENTS, *_PATIENT_ELEMENTS_OF.get(resource_type, ())):
        for reference in _references(resource, path):
            match = _PATIENT_REFERENCE.search(reference)
            if match:
                yield match.group(1)


def _references(value: Mapping[str, Any], path: str) -> Iterator[str]:
    """Yield the references at *path*, whose steps may be lists."""
    name, _, rest = path.partition(".")
    found = value.get(name)
    for item in found if isinstance(found, list) else [found]:
        if not isinstance(item, Mapping):
            continue
        if rest:
            yield from _references(item, rest)
        elif isinstance(text := item.get("reference"), str):
            yield text
