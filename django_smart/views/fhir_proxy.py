"""The launch's FHIR server for scripts of this site's pages, without its token."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.decorators import login_not_required
from django.core.handlers.asgi import ASGIRequest
from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import View

from ..exceptions import ForeignPatientError, MalformedFHIRResponseError, SMARTError
from ..fhir.client import find_missing_scope
from ..fhir.compartment import PatientBoundary, get_compartment
from ..fhir.guard import Guard, parse_interaction
from ..fhir.interactions import Interaction
from ..fhir.json import dump_json
from ..fhir.messages import process_read_response
from ..protocol.json import parse_json_object
from ..protocol.messages import HTTPResponse
from ..protocol.scopes import ScopeSet
from .fhir_checks import check_csrf, get_launch, read_interaction
from .fhir_outcomes import (
    FHIR_JSON,
    JSON_TYPES,
    MAX_DEPTH,
    RefusedError,
    build_fhir_response,
    build_outcome,
    get_gateway_status,
    get_status,
)
from .fhir_rewriting import PAGE, PAGED_TYPES, Rewriter, get_objects

__all__ = ["FHIRProxyView"]

logger = logging.getLogger(__name__)

_READS = {"GET", "HEAD"}
_BUNDLES = {"batch", "transaction"}
# A script must not send the server many times as many requests.
_MAX_ENTRIES = 100
# What has to come back.
_BUNDLE_TYPES = {
    "batch": {"batch-response"},
    "get": PAGED_TYPES,
    "history-instance": {"history"},
    "history-type": {"history"},
    "search": {"searchset"},
    "transaction": {"transaction-response"},
}
# Allowed if all that they hold is.
_HOLDERS = {"Bundle", "OperationOutcome", "Parameters"}
# Parameter of a read of a Binary: the resource that refers to it.
_SOURCE = "_of"
# All that is passed on of an answer: nothing of the connection, no cookie and no
# challenge, which a browser would answer with a dialogue.
_RESPONSE_HEADERS = ("ETag", "Last-Modified")
_ADDRESS_HEADERS = ("Location", "Content-Location")
# What a browser asks for (Sec-Fetch-Dest) to read, show or store it; all else, such as
# "script", "style" and "serviceworker", would run it.
_PASSIVE_DESTINATIONS = frozenset(
    {"audio", "document", "empty", "frame", "iframe", "image", "video"}
)
# The types that a Binary keeps: none can hold a script.
_HARMLESS_TYPES = frozenset(
    {
        FHIR_JSON,
        "application/pdf",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "text/plain",
    }
)


# Exempt, because methods that are not allowed are refused first, with 405; what may
# change something is checked by the view itself.
@method_decorator(csrf_exempt, name="dispatch")
# Launches can be anonymous; scripts get status 403, not a redirect to sign in.
@method_decorator(login_not_required, name="dispatch")
# A refresh must not be rolled back.
@method_decorator(transaction.non_atomic_requests, name="dispatch")
class FHIRProxyView(View):
    """
    Forwards FHIR requests of a page's script to the launch's FHIR server.

    The access token is not sent to the browser.  Under ``patient/`` scopes, requests
    and responses that are not known to belong to that patient are refused, whatever the
    server allows.  The server's refusals (4xx) are passed on; its faults become 502,
    503 or 504.  Every response is FHIR JSON that must not be stored.

    Attributes:
        methods: allowed methods; ``"POST"``, ``"PUT"``, ``"PATCH"`` and ``"DELETE"``
            require the site's CSRF token.
        resource_types: allowed types; ``None`` for every type in the launch's scopes.
            ``"Binary"``, if listed, is sent as a download.
        operations: allowed operations, without ``$``.
        other_patients: elements that may name other patients, such as
            ``"Coverage.subscriber"`` for a child whose parent is insured.
    """

    methods: Collection[str] = ("GET", "HEAD")
    resource_types: Collection[str] | None = None
    operations: Collection[str] = frozenset(
        {
            *("docref", "everything", "expand", "lastn", "lookup", "populate"),
            *("translate", "validate", "validate-code", "versions"),
        }
    )
    other_patients: Collection[str] = ()

    # Not meant to be overridden

    def dispatch(
        self, request: HttpRequest, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        """Answer with FHIR JSON, whatever happens."""
        path = kwargs["path"] if "path" in kwargs else args[0]
        try:
            response = self._answer(request, path)
        except RefusedError as refused:
            response = build_outcome(refused.status, refused.issue, refused.diagnostics)
        except SMARTError as error:
            logger.info("the FHIR proxy responded with %s", error.code)
            response = build_outcome(
                get_status(error), "exception", f"{error.code}: {error}"
            )
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(self.methods)
        response.headers["Cache-Control"] = "private, no-store"
        # If a user opens it directly, it is neither executed nor framed.
        response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _answer(self, request: HttpRequest, path: str) -> HttpResponseBase:
        method = request.method or ""
        self._check_method(method)
        # Content of the EHR must not run as a script of this site.
        destination = request.headers.get("Sec-Fetch-Dest", "empty")
        if destination not in _PASSIVE_DESTINATIONS:
            raise RefusedError(
                403,
                "security",
                "Use fetch(): no script or style sheet loads from here.",
            )
        smart = get_launch(request)
        if method not in _READS:
            check_csrf(request)
        proxy_url = request.build_absolute_uri(request.path.removesuffix(path))
        key = smart.launch.key if getattr(smart, "launch", None) else ""
        rewriter = Rewriter(smart.fhir, proxy_url=proxy_url, key=key)
        guard = self._build_guard(smart)
        if path == PAGE:
            url = rewriter.read_page_url(request)
            asked = Interaction(name="get", method="GET", path=url)
            return self._pass_on(request, guard.fetch(asked), asked, guard, rewriter)
        query, source = _take_source(request)
        asked = read_interaction(request, path, query)
        prepared = guard.prepare(asked)
        if asked.resource_type == "Binary" and asked.name == "read":
            guard = _check_binary(guard, asked, source)
            if "Binary" in (self.resource_types or ()):
                return _stream_binary(request, smart, asked.path)
        elif source:
            raise RefusedError(400, "invalid", f"{_SOURCE} is only valid for a Binary.")
        body = prepared.body
        if body is not None and not isinstance(body, bytes):
            # Unchanged, unless something had to be added.
            body = request.body if body is asked.body else dump_json(body)
        answer = guard.fetch(replace(prepared, body=body))
        return self._pass_on(request, answer, asked, guard, rewriter)

    def _build_guard(self, smart: Any) -> Guard:
        boundary = PatientBoundary(
            patient_id=smart.patient_id,
            base_url=smart.fhir.base_url,
            scopes=smart.scopes,
            other_patients=self.other_patients,
        )

        def allow(asked: Interaction) -> None:
            self._allow(asked, smart.scopes)

        def fetch(asked: Interaction) -> HTTPResponse:
            options: dict[str, Any] = {}
            headers = dict(asked.headers)
            if asked.body is not None:
                headers["Content-Type"] = asked.media_type
                options["body"] = asked.body
            if headers:
                options["headers"] = headers
            answer: HTTPResponse = smart.fhir.request(
                asked.method, asked.path, **options
            )
            return answer

        return Guard(
            boundary=boundary, fetch=fetch, allow=allow, max_entries=_MAX_ENTRIES
        )

    def _check_method(self, method: str) -> None:
        if method not in self.methods:
            raise RefusedError(405, "not-supported", f"{method} is not allowed.")

    def _check_type(self, resource_type: str) -> None:
        if self.resource_types is not None and resource_type not in self.resource_types:
            raise RefusedError(403, "forbidden", "This resource type is not allowed.")

    def _allow(self, asked: Interaction, scopes: ScopeSet) -> None:
        self._check_method(asked.method)
        if asked.name == "operation":
            operation = asked.path.partition("?")[0].rpartition("$")[2]
            if operation not in self.operations:
                raise RefusedError(403, "forbidden", "This operation is not allowed.")
        if asked.resource_type:
            self._check_type(asked.resource_type)
        missing = find_missing_scope(scopes, asked.name, asked.resource_type)
        if missing and scopes.resource_scopes:
            raise RefusedError(403, "forbidden", f"This requires the scope {missing}.")

    def _pass_on(
        self,
        request: HttpRequest,
        answer: HTTPResponse,
        asked: Interaction,
        guard: Guard,
        rewriter: Rewriter,
    ) -> HttpResponse:
        """Check what came, and answer with it."""
        is_read = asked.method == "GET" or asked.name in {"search", *_BUNDLES}
        if asked.name == "delete" and answer.status_code in {200, 202, 204}:
            # What a server says about a deletion may be no FHIR.
            answer = replace(answer, body=b"")
        elif answer.status_code not in ({200} if is_read else {200, 201, 204}):
            return _pass_on_failure(answer, guard)
        resource = self._check_body(answer, asked, guard)
        is_created = answer.status_code == 201
        is_known = is_created or not guard.hides_match(asked, resource)
        etag = answer.headers.get("etag", "")
        wanted = request.headers.get("If-None-Match", "")
        if etag and asked.name in {"read", "vread"} and _has_etag(wanted, etag):
            response = build_fhir_response(304, b"")
        else:
            body = rewriter.rewrite(answer, asked, guard)
            response = build_fhir_response(answer.status_code, body)
        for name in _RESPONSE_HEADERS if is_known else ():
            if value := answer.headers.get(name.lower()):
                response.headers[name] = value
        for name in _ADDRESS_HEADERS if is_known else ():
            if value := answer.headers.get(name.lower()):
                response.headers[name] = rewriter.rewrite_url(value)
        return response

    def _check_body(
        self, answer: HTTPResponse, asked: Interaction, guard: Guard
    ) -> dict[str, Any] | None:
        """Return the resource that came, if any, and check every resource in it."""
        is_write = asked.name in {"create", "update", "patch", "delete"}
        if is_write and not answer.body:
            return None
        resource = _json_object(answer)
        found = resource.get("resourceType"), resource.get("id")
        wanted = _BUNDLE_TYPES.get(asked.name)
        is_wanted = found[0] == "Bundle" and str(resource.get("type")) in (wanted or ())
        if wanted is not None and not is_wanted:
            raise _bad_answer("The server returned an unexpected type of response.")
        if asked.name in {"read", "vread"} and found != (asked.resource_type, asked.id):
            raise _bad_answer("The server returned a different resource.")
        for one in _get_resources(resource) if asked.name != "capabilities" else ():
            if (kind := str(one.get("resourceType"))) not in _HOLDERS:
                self._check_type(kind)
        guard.check_answer(asked, resource)
        return resource


def _take_source(request: HttpRequest) -> tuple[str, str]:
    """The query without, and the value of, the name of what refers to a Binary."""
    query = request.META.get("QUERY_STRING", "")
    kept = [part for part in query.split("&") if not part.startswith(f"{_SOURCE}=")]
    return "&".join(kept), request.GET.get(_SOURCE, "")


def _check_binary(guard: Guard, asked: Interaction, source: str) -> Guard:
    """
    Refuse a Binary that is not the patient's; return what checks the Binary itself.

    It says whose it is by its ``securityContext``, or *source* does: a resource of the
    patient's that refers to it.  What is streamed shows no ``securityContext``; then
    *source* alone decides.
    """
    boundary = guard.boundary
    if boundary.is_open("read", "Binary"):
        return guard
    read = parse_interaction("GET", source or f"Binary/{asked.id}")
    if read.name != "read":
        raise RefusedError(
            400, "invalid", f"{_SOURCE} must be a resource's type and id."
        )
    answer = guard.fetch(guard.prepare(read))
    try:
        resource = process_read_response(
            answer, resource_type=read.resource_type, id=read.id
        )
        boundary.check(resource)
    except (ForeignPatientError, MalformedFHIRResponseError) as error:
        if source:
            raise
        raise ForeignPatientError(
            "A Binary does not name its patient: name the resource that "
            f"refers to it, as in Binary/1?{_SOURCE}=DocumentReference/2."
        ) from error
    reference = f"Binary/{asked.id}"
    references = {reference, f"{boundary.base_url}/{reference}"}
    if source and get_compartment(read.resource_type).is_shared:
        raise ForeignPatientError(
            f"A {read.resource_type} does not belong to a patient."
        )
    if source and not _refers(resource, references):
        raise ForeignPatientError(f"{source} does not refer to this Binary.")
    return replace(guard, boundary=replace(boundary, trusts_binaries=bool(source)))


def _refers(value: Any, references: set[str]) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(_refers(item, references) for item in value)
    return isinstance(value, str) and value in references


def _has_etag(wanted: str, etag: str) -> bool:
    known = {one.strip().removeprefix("W/") for one in wanted.split(",")}
    return etag.removeprefix("W/") in known


def _stream_binary(
    request: HttpRequest, smart: Any, path: str
) -> StreamingHttpResponse | HttpResponse:
    """The bytes of a Binary: a download, never a page or a script of this site."""
    with ExitStack() as stack:
        stream = stack.enter_context(
            smart.fhir.stream(
                "GET",
                path,
                headers={"Accept": "*/*"},
                interaction="read",
                resource_type="Binary",
            )
        )
        head = stream.head
        if head.status_code != 200:
            return _pass_on_failure(head)
        closing = stack.pop_all()

    def read() -> Iterator[bytes]:
        with closing:
            yield from stream.chunks

    chunks: Any = read()
    if isinstance(request, ASGIRequest):
        chunks = _read_async(chunks)
    is_harmless = head.media_type in _HARMLESS_TYPES
    response = StreamingHttpResponse(
        chunks,
        content_type=head.media_type if is_harmless else "application/octet-stream",
    )
    response._resource_closers.append(closing.close)  # type: ignore[attr-defined]
    response.headers["Content-Disposition"] = "attachment"
    return response


async def _read_async(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    read_one = sync_to_async(lambda: next(chunks, None))
    while (chunk := await read_one()) is not None:
        yield chunk


def _pass_on_failure(answer: HTTPResponse, guard: Guard | None = None) -> HttpResponse:
    """Pass on a refusal of the server, and report its fault as what it is here."""
    status = answer.status_code
    if not 400 <= status < 500:
        gateway_status = get_gateway_status(status)
        raise RefusedError(
            gateway_status,
            "exception" if gateway_status == 502 else "transient",
            f"The server returned status {status}.",
        )
    try:
        outcome = _json_object(answer)
        if outcome.get("resourceType") != "OperationOutcome":
            raise _bad_answer("The server refused with an unexpected type of response.")
        if guard is not None:
            guard.boundary.check(outcome)
    except (SMARTError, RefusedError):
        response = build_outcome(
            status, "processing", f"The server returned status {status}."
        )
    else:
        response = build_fhir_response(status, answer.body)
    if answer.retry_after is not None:
        response.headers["Retry-After"] = str(int(answer.retry_after))
    return response


def _json_object(answer: HTTPResponse) -> dict[str, Any]:
    """Return the body of *answer*, which has to be a JSON object."""
    if answer.media_type not in JSON_TYPES:
        raise _bad_answer("The server returned an unexpected content type.")
    return parse_json_object(
        answer.body,
        error=MalformedFHIRResponseError,
        what="server response",
        max_depth=MAX_DEPTH,
    )


def _bad_answer(diagnostics: str) -> RefusedError:
    return RefusedError(502, "exception", diagnostics)


def _get_resources(value: object) -> Iterator[Mapping[str, Any]]:
    """*value*, and the resources that a Bundle or Parameters holds, at any depth."""
    if not isinstance(value, Mapping):
        return
    yield value
    if value.get("resourceType") == "Bundle":
        for entry in get_objects(value.get("entry")):
            yield from _get_resources(entry.get("resource"))
            for response in get_objects([entry.get("response")]):
                yield from _get_resources(response.get("outcome"))
    elif value.get("resourceType") == "Parameters":
        yield from _get_held(value.get("parameter"))


def _get_held(parameters: object) -> Iterator[Mapping[str, Any]]:
    for parameter in get_objects(parameters):
        yield from _get_resources(parameter.get("resource"))
        yield from _get_held(parameter.get("part"))
