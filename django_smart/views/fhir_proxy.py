"""The launch's FHIR server for scripts of this site's pages, without its token."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core import signing
from django.core.exceptions import (
    BadRequest,
    DisallowedHost,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import HttpRequest, HttpResponse, RawPostDataException
from django.http.multipartparser import MultiPartParserError
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import View

from ..conf import conf
from ..exceptions import (
    CredentialsError,
    FHIRRequestError,
    FHIRStatusError,
    ForeignPatientError,
    MalformedFHIRResponseError,
    NoLaunchError,
    ServerTimeoutError,
    SMARTError,
    TokenError,
    TokenServerError,
)
from ..fhir import FHIRClient
from ..fhir.allow_list import OPERATIONS, AllowList
from ..fhir.compartment import Record, build_unlisted_error
from ..fhir.guard import RecordGuard, RecordRules
from ..fhir.interactions import (
    BUNDLES,
    CONDITIONS,
    FHIR_JSON,
    JSON_PATCH,
    WRITES,
    Interaction,
    parse_body,
    parse_interaction,
)
from ..fhir.json import dump_json
from ..fhir.messages import (
    process_change_response,
    process_delete_response,
    process_read_response,
    process_resource_response,
    resolve_link,
)
from ..fhir.record_check import (
    ABOUT_OTHERS,
    is_of_patient,
    iter_links,
    iter_values,
)
from ..launches.request_state import get_request_state
from ..protocol.messages import HTTPResponse
from .base import outside_transactions

__all__ = ["FHIRProxyView"]

logger = logging.getLogger(__name__)

_JSON_TYPES = frozenset({FHIR_JSON, "application/json"})
_SALT = "django_smart.fhir_proxy"
_PAGE = "_page"
# Types of Bundles that a server makes, page by page, for those who ask.
_PAGED_TYPES = frozenset({"history", "searchset"})
_READS = {"GET", "HEAD"}
_WITH_BODY = {"PATCH", "POST", "PUT"}
# What has to come back.
_BUNDLE_TYPES = {
    "batch": {"batch-response"},
    "get": _PAGED_TYPES,
    "history-instance": {"history"},
    "history-system": {"history"},
    "history-type": {"history"},
    "search": {"searchset"},
    "transaction": {"transaction-response"},
}
# What may come in pages.
_PAGED = {*_BUNDLE_TYPES, "operation"}
# Parameter of a read of a Binary: the resource that refers to it.
_SOURCE = "_of"
# All that is passed on of an answer: nothing of the connection, no cookie and no
# challenge, which a browser would answer with a dialogue.
_RESPONSE_HEADERS = ("ETag", "Last-Modified", "Location", "Content-Location")
_FORM_TYPE = "application/x-www-form-urlencoded"
_PREFERENCES = re.compile(r"\s*(?:return|handling)=[A-Za-z]+\s*")
# 5xx statuses that mean what they say here too; any other fault is a bad gateway.
_UNAVAILABLE = {503, 504}
_ISSUES = {400: "invalid", 403: "forbidden", 503: "transient", 504: "transient"}


class _RefusedError(Exception):
    """The request is not passed on."""

    def __init__(self, status: int, issue: str, diagnostics: str) -> None:
        super().__init__(diagnostics)
        self.status = status
        self.issue = issue
        self.diagnostics = diagnostics


# Exempt, because methods that are not allowed are refused first, with 405; what may
# change something is checked by the view itself.
@method_decorator(csrf_exempt, name="dispatch")
# Launches can be anonymous; scripts get status 403, not a redirect to sign in.
@method_decorator(login_not_required, name="dispatch")
# A refresh must not be rolled back.
@method_decorator(outside_transactions, name="dispatch")
class FHIRProxyView(View):
    """
    Forwards FHIR requests of a page's script to the launch's FHIR server.

    The access token is not sent to the browser.  Under ``patient/`` scopes, only the
    requests of a list are sent, and only what is known to belong to that patient is
    returned, whatever the server allows.  The server's refusals (4xx) are passed on;
    its faults become 502, 503 or 504.  Every response is FHIR JSON that must not be
    stored.  Only a request for a host that is not in ``ALLOWED_HOSTS`` is left to
    Django, which rejects it.

    Attributes:
        methods: allowed methods; ``"POST"``, ``"PUT"``, ``"PATCH"`` and ``"DELETE"``
            require the site's CSRF token.
        batch: whether batches and transactions are allowed, with ``"POST"``.
        resource_types: allowed types; ``None`` for every type of R4 in the launch's
            scopes.  A type that belongs to no patient can only be changed if it is
            listed.
        operations: allowed operations, without ``$``.
        parameters: search parameters that are allowed as well, with their type, such as
            ``"Observation.encounter"``.
    """

    methods: Collection[str] = ("GET", "HEAD")
    batch: bool = False
    resource_types: Collection[str] | None = None
    operations: Collection[str] = OPERATIONS
    parameters: Collection[str] = ()

    # Not meant to be overridden

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Answer with FHIR JSON, unless Django has to reject the host."""
        path = kwargs["path"] if "path" in kwargs else args[0]
        try:
            response = self._answer(request, path)
        except _RefusedError as refused:
            response = _build_outcome(
                refused.status, refused.issue, refused.diagnostics
            )
        except RequestDataTooBig:
            response = _build_outcome(413, "too-long", "The request is too large.")
        except DisallowedHost:
            raise  # to Django, which also logs it for the site's security
        except (
            BadRequest,
            MultiPartParserError,
            RawPostDataException,
            SuspiciousOperation,
        ):
            text = "The body of the request cannot be read."
            response = _build_outcome(400, "invalid", text)
        except CredentialsError as error:
            # The message names files and variables of this site.
            logger.warning("the FHIR proxy responded with %s: %s", error.code, error)
            text = f"{error.code}: This site's credentials for the EHR are unusable."
            response = _build_outcome(error.http_status, "exception", text)
        except SMARTError as error:
            logger.info("the FHIR proxy responded with %s", error.code)
            response = _build_refusal(error)
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(self.methods)
        response.headers["Cache-Control"] = "private, no-store"
        # If a user opens it directly, it is neither executed nor framed.
        response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    def _answer(self, request: HttpRequest, path: str) -> HttpResponse:
        method = request.method or ""
        if method not in self.methods:
            text = str(build_unlisted_error("methods", method))
            raise _RefusedError(405, "not-supported", text)
        smart = _get_launch(request)
        if method not in _READS:
            _check_csrf(request)
        proxy_url = request.build_absolute_uri(request.path.removesuffix(path))
        rewriter = _Rewriter(smart.fhir, proxy_url=proxy_url, key=smart.launch.key)
        rules, guard = self._build_rules(smart)
        if path == _PAGE:
            url = rewriter.read_page_url(request)
            asked = Interaction(name="get", method="GET", path=url)
            return _pass_on(guard.fetch(asked), asked, guard, rewriter)
        query = request.META.get("QUERY_STRING", "")
        body, media_type = _read_value(request, path)
        asked = parse_interaction(
            method,
            f"{path}?{query}" if query else path,
            headers=_get_headers(request),
            body=body,
            media_type=media_type,
        )
        is_binary = (asked.resource_type, asked.name) == ("Binary", "read")
        source = ""
        if is_binary:
            pairs = dict(asked.pairs)
            source = pairs.pop(_SOURCE, "")
            asked = asked.with_pairs([*pairs.items()])
        rules.check(asked)
        prepared = guard.prepare(asked)
        if source and not guard.record.is_open("read", "Binary"):
            guard = _check_source(guard, asked, rules, source)
        answer = guard.fetch(prepared)
        try:
            return _pass_on(answer, asked, guard, rewriter)
        except ForeignPatientError as error:
            if not is_binary or source:
                raise
            raise ForeignPatientError(
                "A Binary does not name its patient: name the resource that "
                f"refers to it, as in Binary/1?{_SOURCE}=DocumentReference/2."
            ) from error

    def _build_rules(self, smart: Any) -> tuple[AllowList, RecordGuard]:
        record = Record(
            patient_id=smart.patient_id,
            base_url=smart.fhir.base_url,
            scopes=smart.scopes,
            is_for_script=True,
            types=self.resource_types,
        )
        rules = AllowList(
            record=record,
            methods=self.methods,
            batch=BUNDLES if self.batch else (),
            resource_types=self.resource_types,
            operations=self.operations,
            parameters=self.parameters,
        )
        fetch = smart.fhir.send_unchecked
        return rules, RecordGuard(record=record, fetch=fetch, rules=RecordRules())


# Requests: checks that do not depend on the patient


class _CSRFCheck(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason


def _get_launch(request: HttpRequest) -> Any:
    """``request.smart``, if the request came under its launch's prefix."""
    smart = request.smart  # type: ignore[attr-defined]  # the middleware's
    is_without = get_request_state(request).prefix is None
    if not smart or (is_without and conf.SMART_LAUNCH_PREFIX):
        raise NoLaunchError("there is no launch for this request; open a chart first")
    return smart


def _check_csrf(request: HttpRequest) -> None:
    check = _CSRFCheck(lambda request: HttpResponse())
    check.process_request(request)
    # The token may be in a form, which is parsed for it.
    reason = check.process_view(request, lambda request: HttpResponse(), (), {})
    if reason is not None:
        raise _RefusedError(
            403, "security", "The CSRF token is missing or wrong; reload the page."
        )


def _get_headers(request: HttpRequest) -> dict[str, str]:
    """The conditions and preferences: no cookie, no credentials, no other header."""
    names = CONDITIONS.get(request.method or "", ())
    headers = {name: request.headers[name] for name in names if name in request.headers}
    # An answer that comes later would pass no check.
    prefer = request.headers.get("Prefer", "")
    if kept := list(filter(_PREFERENCES.fullmatch, re.split("[;,]", prefer))):
        headers["Prefer"] = "; ".join(part.strip() for part in kept)
    return headers


def _read_value(request: HttpRequest, path: str) -> tuple[Any, str]:
    """The body, parsed unless it is a form, and the media type to send it with."""
    media_type = request.content_type or ""
    if request.method not in _WITH_BODY:
        return None, ""
    if path.rstrip("/").endswith("_search"):
        if media_type != _FORM_TYPE:
            raise _RefusedError(
                415, "not-supported", "A search must be sent as a form."
            )
        return request.body, _FORM_TYPE
    is_patch = request.method == "PATCH"
    # The check of the CSRF token has used up what is of many parts.
    if media_type not in _JSON_TYPES and not (is_patch and media_type == JSON_PATCH):
        raise _RefusedError(
            415, "not-supported", "A resource must be sent as FHIR JSON."
        )
    value = parse_body(request.body, what="request")
    if not isinstance(value, list if media_type == JSON_PATCH else dict):
        raise FHIRRequestError("The request body does not match its content type.")
    return value, media_type if is_patch else FHIR_JSON


def _check_source(
    guard: RecordGuard, asked: Interaction, rules: AllowList, source: str
) -> RecordGuard:
    """
    Refuse a Binary, unless *source* is a resource of the patient that refers to it.

    The guard that is returned checks a Binary that need not say whose it is.
    """
    read = parse_interaction("GET", source)
    if read.name != "read":
        raise FHIRRequestError(f"{_SOURCE} must be a resource's type and id.")
    rules.check(read)
    answer = guard.fetch(guard.prepare(read))
    resource = process_read_response(answer, read)
    # What the patient did is on record with what others own.
    held = [one for one in iter_values(resource) if isinstance(one, Mapping)]
    tells_of_others = any(str(one.get("resourceType")) in ABOUT_OTHERS for one in held)
    if tells_of_others or not is_of_patient(resource, guard.record):
        raise ForeignPatientError(f"{source} does not say whose the Binary is.")
    reference = f"Binary/{asked.id}"
    references = {reference, f"{guard.record.base_url}/{reference}"}
    # Other texts are no links, because a patient may have written them.
    if references.isdisjoint(iter_links(resource, "reference", "url")):
        raise ForeignPatientError(f"{source} does not refer to this Binary.")
    return replace(guard, record=replace(guard.record, is_for_script=False))


# Responses


def _pass_on(
    answer: HTTPResponse,
    asked: Interaction,
    guard: RecordGuard,
    rewriter: _Rewriter,
) -> HttpResponse:
    """Check what came, and answer with it."""
    body = b""
    if asked.name == "delete":
        # What a server says about a deletion may be no FHIR.
        process_delete_response(answer, what="request")
    elif resource := _read_answer(guard.check(asked, answer), asked):
        rewriter.rewrite(resource, answer.url, asked)
        # Not its own bytes, in which a browser could read something else.
        body = dump_json(resource)
    response = _build_fhir_response(answer.status_code, body)
    for name in _RESPONSE_HEADERS:
        if value := answer.headers.get(name.lower()):
            # What is no address of the server stays as it is.
            response.headers[name] = rewriter.rewrite_url(value)
    return response


def _read_answer(answer: HTTPResponse, asked: Interaction) -> dict[str, Any] | None:
    """Return the resource, which is a Bundle where one was asked for."""
    if asked.name in WRITES:
        return process_change_response(answer, what="request")
    resource = process_resource_response(answer, what="request")
    wanted = _BUNDLE_TYPES.get(asked.name)
    type_ = str(resource.get("type")) if resource["resourceType"] == "Bundle" else ""
    if wanted is not None and type_ not in wanted:
        raise MalformedFHIRResponseError("the response is not what was asked for")
    return resource


# Addresses of the FHIR server, replaced by addresses of this site


class _Rewriter:
    """
    Puts the proxy's address into answers, and reads it from requests.

    Args:
        proxy_url: absolute URL before ``Patient/1``.
        key: of the launch: an address of one launch is of no use to another.
    """

    def __init__(self, client: FHIRClient, *, proxy_url: str, key: str) -> None:
        self._client = client
        self._base = f"{client.base_url}/"
        self._proxy_url = proxy_url
        self._salt = f"{_SALT}.{key}"

    def rewrite_url(self, url: str) -> str:
        """*url* below the FHIR base, below the proxy; any other as it is."""
        is_below = url.startswith(self._base)
        return self._proxy_url + url.removeprefix(self._base) if is_below else url

    def rewrite(self, resource: dict[str, Any], url: str, asked: Interaction) -> None:
        """
        Replace the addresses in the *resource* that came from *url*.

        In Bundles: ``fullUrl``, ``location`` and links; only those that the server made
        to answer *asked* lead to further pages.  In resources: references to
        the server become relative, which are right at the proxy, and at the server if
        the resource is sent back.
        """
        self._sign(resource, url, asked)
        for value in iter_values(resource):
            if isinstance(value, dict):
                if value.get("resourceType") == "Bundle":
                    self._rewrite_bundle(value, url)
                _replace(value, "reference", self._as_relative)
                if "contentType" in value:  # of an attachment
                    _replace(value, "url", self._as_relative)

    def _rewrite_bundle(self, bundle: dict[str, Any], url: str) -> None:
        for link in _get_objects(bundle.get("link")):
            _replace(link, "url", lambda it: self.rewrite_url(resolve_link(url, it)))
        for entry in _get_objects(bundle.get("entry")):
            _replace(entry, "fullUrl", self.rewrite_url)
            for response in _get_objects([entry.get("response")]):
                _replace(response, "location", self.rewrite_url)

    def _as_relative(self, url: str) -> str:
        return url.removeprefix(self._base)

    def read_page_url(self, request: HttpRequest) -> str:
        """Read the URL of a further page that this launch's proxy has given out."""
        try:
            url = signing.loads(request.GET.get("url", ""), salt=self._salt)
        except signing.BadSignature:
            raise _RefusedError(
                404, "not-found", "This page link is no longer valid; search again."
            ) from None
        return str(url)

    def _sign(self, value: dict[str, Any], url: str, asked: Interaction) -> None:
        """Sign the links of a Bundle that the server made to answer *asked*."""
        is_made = value["resourceType"] == "Bundle" and asked.name in _PAGED
        if not is_made or str(value.get("type")) not in _PAGED_TYPES:
            return
        # A server may keep its pages anywhere; what it named is signed, so that a
        # script cannot name another place itself, nor in a Bundle that it stored.
        for link in _get_objects(value.get("link")):
            target = link.get("url")
            if link.get("relation") == "self" or not isinstance(target, str):
                continue
            target = resolve_link(url, target)
            if self._client.is_within_boundary(target):
                signed = signing.dumps(target, salt=self._salt, compress=True)
                link["url"] = f"{self._proxy_url}{_PAGE}?url={signed}"


def _get_objects(items: object) -> list[dict[str, Any]]:
    """The objects of a list, or of what should have been one."""
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict)]


def _replace(item: dict[str, Any], name: str, rewrite: Any) -> None:
    if isinstance(item.get(name), str):
        item[name] = rewrite(item[name])


# Refusals: an OperationOutcome and a status


def _get_status(error: SMARTError) -> int:
    """Return the HTTP status that tells a script what went wrong."""
    match error:
        case FHIRStatusError(status_code=status):
            return status if status < 500 or status in _UNAVAILABLE else 502
        case ServerTimeoutError():
            return 504
        case TokenServerError():
            return 503
        case TokenError():  # of a refresh: not the caller's fault
            return 502
        case _:
            return error.http_status


def _build_refusal(error: SMARTError) -> HttpResponse:
    """Pass on a refusal of the server (4xx), and report a fault as what it is here."""
    status = _get_status(error)
    issue = _ISSUES.get(status, "exception")
    response = _build_outcome(status, issue, f"{error.code}: {error}")
    if isinstance(error, FHIRStatusError):
        if error.issues and status < 500:
            outcome = {"resourceType": "OperationOutcome", "issue": error.issues}
            response = _build_fhir_response(status, dump_json(outcome))
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(int(error.retry_after))
    return response


def _build_outcome(status: int, issue: str, diagnostics: str) -> HttpResponse:
    """An ``OperationOutcome`` with one issue."""
    issues = [{"severity": "error", "code": issue, "diagnostics": diagnostics}]
    outcome = {"resourceType": "OperationOutcome", "issue": issues}
    return _build_fhir_response(status, dump_json(outcome))


def _build_fhir_response(status: int, body: bytes) -> HttpResponse:
    """FHIR JSON for scripts; what a person opens of it does nothing."""
    response = HttpResponse(body, status=status, content_type=FHIR_JSON)
    if not body:
        del response.headers["Content-Type"]
    return response
