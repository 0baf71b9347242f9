"""The launch's FHIR server for scripts of this site's pages, without its token."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import ExitStack
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

from ..exceptions import MalformedFHIRResponseError, SMARTError
from ..protocol.json import parse_json_object
from ..protocol.messages import HTTPResponse
from .fhir_checks import (
    build_query,
    check_csrf,
    check_path,
    check_patient,
    get_body,
    get_launch,
    get_options,
)
from .fhir_outcomes import (
    FHIR_JSON,
    JSON_TYPES,
    RefusedError,
    build_fhir_response,
    build_outcome,
    get_gateway_status,
    get_status,
)
from .fhir_rewriting import PAGE, Rewriter

__all__ = ["FHIRProxyView"]

logger = logging.getLogger(__name__)

_READS = {"GET", "HEAD"}
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
# A launch may be anybody's; a script is told with 403, not with a form to sign in.
@method_decorator(login_not_required, name="dispatch")
# A refresh must not be rolled back.
@method_decorator(transaction.non_atomic_requests, name="dispatch")
class FHIRProxyView(View):
    """
    Passes requests of a page's script on to the launch's FHIR server.

    ``<Type>/<id>``, ``<Type>?…`` and further pages of a search, under the launch's
    prefix.  The access token stays on this side.  The server's refusals (4xx) are
    passed on; its faults are answered with 502, 503 or 504.  Every answer is FHIR JSON
    and is stored nowhere.

    Attributes:
        methods: what is allowed; ``"POST"``, ``"PUT"``, ``"PATCH"`` and ``"DELETE"``
            need the site's CSRF token as any form does.
        resource_types: what is allowed; ``None`` for every type that the launch's
            scopes open.  ``"Binary"``, if it is named, comes as a download.
    """

    methods: Collection[str] = ("GET", "HEAD")
    resource_types: Collection[str] | None = None

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
            logger.info("the FHIR proxy answered with %s", error.code)
            response = build_outcome(
                get_status(error), "exception", f"{error.code}: {error}"
            )
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(self.methods)
        response.headers["Cache-Control"] = "no-store"
        # What somebody opens by its address is neither run nor framed.
        response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _answer(self, request: HttpRequest, path: str) -> HttpResponseBase:
        method = request.method or ""
        if method not in self.methods:
            raise RefusedError(405, "not-supported", f"{method} is not allowed.")
        # Content of the EHR must not run as a script of this site.
        destination = request.headers.get("Sec-Fetch-Dest", "empty")
        if destination not in _PASSIVE_DESTINATIONS:
            raise RefusedError(403, "security", "The answer is only for reading.")
        resource_type, slash, rest = path.partition("/")
        if path != PAGE:
            check_path(method, resource_type, rest if slash else None)
            self._check_type(resource_type)
        smart = get_launch(request)
        if method not in _READS:
            check_csrf(request)
        proxy_url = request.build_absolute_uri(request.path.removesuffix(path))
        key = smart.launch.key if getattr(smart, "launch", None) else ""
        rewriter = Rewriter(smart.fhir, proxy_url=proxy_url, key=key)
        if path == PAGE:
            answer = smart.fhir.request("GET", rewriter.read_page_url(request))
        elif slash and method in _READS:
            if resource_type == "Binary" and "Binary" in (self.resource_types or ()):
                return _stream_binary(request, smart, path)
            # A query has no meaning for a read, apart from leaving out elements that
            # the check of the answer needs.
            answer = smart.fhir.request("GET", path, **get_options(request))
        else:
            searched = resource_type if method in _READS else "*"
            query = request.META.get("QUERY_STRING", "")
            target = path + build_query(query, smart, searched)
            options = get_options(request)
            if method not in _READS:
                options |= get_body(request, smart, resource_type, rest)
            sent_method = method if method != "HEAD" else "GET"
            answer = smart.fhir.request(sent_method, target, **options)
        is_read = bool(slash) and method in _READS
        expected = (resource_type, rest) if is_read else None
        is_search = path == PAGE or (method in _READS and not slash)
        return self._pass_on(
            answer,
            smart,
            rewriter,
            expected=expected,
            is_search=is_search or rest == "_search",
        )

    def _check_type(self, resource_type: object) -> None:
        if self.resource_types is not None and resource_type not in self.resource_types:
            raise RefusedError(403, "forbidden", "This resource type is not allowed.")

    def _pass_on(
        self,
        answer: HTTPResponse,
        smart: Any,
        rewriter: Rewriter,
        *,
        expected: tuple[str, str] | None,
        is_search: bool,
    ) -> HttpResponse:
        """Check what came, and answer with it."""
        if answer.status_code == 304 and expected:
            response = build_fhir_response(304, b"")
        elif answer.status_code in _get_successes(expected, is_search=is_search):
            response = build_fhir_response(
                answer.status_code,
                self._check_body(
                    answer, smart, rewriter, expected=expected, is_search=is_search
                ),
            )
        else:
            response = _pass_on_failure(answer)
        for name in _RESPONSE_HEADERS:
            if value := answer.headers.get(name.lower()):
                response.headers[name] = value
        for name in _ADDRESS_HEADERS:
            if value := answer.headers.get(name.lower()):
                response.headers[name] = rewriter.rewrite_url(value)
        return response

    def _check_body(
        self,
        answer: HTTPResponse,
        smart: Any,
        rewriter: Rewriter,
        *,
        expected: tuple[str, str] | None,
        is_search: bool,
    ) -> bytes:
        """Return the body to pass on: a read's byte for byte."""
        if not (answer.body or expected or is_search):
            return b""
        resource = _json_object(answer)
        found = resource.get("resourceType"), resource.get("id")
        if is_search:
            if found[0] != "Bundle":
                raise _bad_answer("The server answered a search with another resource.")
            for entry in _get_resources(resource):
                if entry.get("resourceType") != "OperationOutcome":
                    self._check_type(entry.get("resourceType"))
                check_patient(entry, smart)
            return rewriter.rewrite_bundle(answer.body)
        if expected is not None and found != expected:
            raise _bad_answer("The server answered with another resource.")
        check_patient(resource, smart)
        return answer.body


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


def _get_successes(expected: tuple[str, str] | None, *, is_search: bool) -> set[int]:
    return {200} if expected or is_search else {200, 201, 204}


def _pass_on_failure(answer: HTTPResponse) -> HttpResponse:
    """Pass on a refusal of the server, and report its fault as what it is here."""
    status = answer.status_code
    if not 400 <= status < 500:
        gateway_status = get_gateway_status(status)
        raise RefusedError(
            gateway_status,
            "exception" if gateway_status == 502 else "transient",
            f"The server answered with status {status}.",
        )
    try:
        _json_object(answer)
    except (SMARTError, RefusedError):
        response = build_outcome(
            status, "processing", f"The server answered with status {status}."
        )
    else:
        response = build_fhir_response(status, answer.body)
    if answer.retry_after is not None:
        response.headers["Retry-After"] = str(int(answer.retry_after))
    return response


def _json_object(answer: HTTPResponse) -> dict[str, Any]:
    """Return the body of *answer*, which has to be a JSON object."""
    if answer.media_type not in JSON_TYPES:
        raise _bad_answer("The server did not answer with FHIR JSON.")
    return parse_json_object(
        answer.body, error=MalformedFHIRResponseError, what="answer of the server"
    )


def _bad_answer(diagnostics: str) -> RefusedError:
    return RefusedError(502, "exception", diagnostics)


def _get_resources(bundle: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    entries = bundle.get("entry")
    for entry in entries if isinstance(entries, list) else []:
        resource = entry.get("resource") if isinstance(entry, dict) else None
        if isinstance(resource, dict):
            yield resource
