"""Requests with the token of one grant: where it goes, how often, and for what."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRRequestError,
    ForeignPatientError,
    InsecureURLError,
    MalformedFHIRResponseError,
    SMARTError,
)
from django_smart.fhir.adapters import FHIRSession
from django_smart.fhir.compartment import Record, find_missing_scope, is_shared
from django_smart.fhir.guard import RecordGuard, RecordRules
from django_smart.fhir.interactions import FHIR_JSON, Interaction
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import (
    FHIRExchange,
    find_request_id,
    process_read_response,
    resolve_url,
)
from django_smart.protocol.messages import HiddenText, HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.urls import get_origin, is_same_origin, is_within_base
from django_smart.transport import ResponseStream, is_in_event_loop
from django_smart.transport.connections import limit_call

__all__ = [
    "FHIRConnection",
    "Observer",
    "TokenSource",
    "Transport",
    "refuse_in_event_loop",
]

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_SAFE_INTERACTIONS = frozenset({"search"})  # by POST, too
_METHOD = re.compile(r"[A-Z]{1,16}")
# Visible ASCII without "#" and the backslash.
_PATH = re.compile(r"[!\"$-\[\]-~]*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")


class TokenSource(Protocol):
    """The access token of one grant."""

    @property
    def scopes(self) -> ScopeSet | None:
        """What was granted, as it is now; ``None`` if that is not known."""

    def get(self) -> str:
        """Return the token to use now."""

    def renew(self, used: str) -> str:
        """
        Return the token to try after *used*, which met 401.

        By a refresh, or because another process has refreshed already.
        """


class Transport(Protocol):
    """One HTTP exchange, within limits of time and size."""

    @property
    def call_limit(self) -> float:
        """Seconds that the first try, the wait and the second one may take in all."""

    def send(self, request: HTTPRequest) -> HTTPResponse:
        """As :func:`django_smart.transport.send`."""

    def open_stream(
        self, request: HTTPRequest
    ) -> AbstractContextManager[ResponseStream]:
        """As :func:`django_smart.transport.open_stream`."""


class Observer(Protocol):
    """Whoever follows what a client does."""

    def on_missing_scope(self, scope: str) -> None:
        """Take note of a scope that is needed and was not granted; may raise."""

    def on_request(self, exchange: FHIRExchange) -> None:
        """Take note of a request that carried the token."""


class FHIRConnection:
    """
    Sends requests with the token to one server, and nowhere else.

    FHIR's interactions are sent if the scopes and the patient's record allow them.

    Args:
        base_url: FHIR endpoint, as sent in ``aud``.
        tokens: source of the access token.
        transport: sends the requests.
        observer: notified of each request, and of missing scopes before a request.
        boundary: where the token may be sent: ``"base"`` for *base_url* and below, or
            ``"origin"`` for its whole origin.
        patient_id: id of the patient in context.
        record_rules: rules that limit requests under ``patient/`` scopes to that
            patient's record; ``None`` relies on the server.

    Threads may share it, except for ``session``.

    Spec: SMART App Launch 2.2, "Access FHIR API" (FHIR-01 to FHIR-08).
    """

    def __init__(
        self,
        *,
        base_url: str,
        tokens: TokenSource,
        transport: Transport,
        observer: Observer | None = None,
        boundary: Literal["base", "origin"] = "base",
        patient_id: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        record_rules: RecordRules | None = None,
    ) -> None:
        self.base_url = base_url.removesuffix("/")
        self.boundary = boundary
        self.patient_id = patient_id
        self._tokens = tokens
        self._transport = transport
        self._observer = observer
        self.sleep = sleep
        # A token that met 401 after a refresh: another one would not help, either.
        self._refused = HiddenText("")
        self._record_rules = record_rules

    def __repr__(self) -> str:
        # The origin alone: some servers have a patient's id in the path of their base.
        return f"<{type(self).__name__}: {get_origin(self.base_url)}>"

    @cached_property
    def session(self) -> FHIRSession:
        """``requests.Session`` that any library can use with this grant."""
        return FHIRSession(self)

    def request(
        self,
        method: str,
        path_or_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> HTTPResponse:
        """
        Send any request and return the response, whatever its status.

        Only the ``X-Request-Id`` that was sent is added, if the server returned none.

        GET and HEAD follow redirects within the boundary.  ``Authorization`` in
        *headers* is replaced; the default of ``Accept`` is FHIR JSON.

        Raises:
            BearerBoundaryError: the URL or a redirect leads outside the boundary.
            FHIRRequestError: the method, path or URL is invalid.
            TransportError: there is no usable response.
        """
        return self._follow(self._build_request(method, path_or_url, headers, body))

    def _build_request(
        self,
        method: str,
        path_or_url: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
    ) -> HTTPRequest:
        if not _METHOD.fullmatch(method):
            raise FHIRRequestError("An HTTP method consists of capital letters.")
        return HTTPRequest(
            method=method,
            url=self.build_url(path_or_url),
            headers=_merge({"Accept": FHIR_JSON}, headers or {}),
            body=body,
        )

    def build_url(self, path_or_url: str) -> str:
        """
        Return the absolute URL of a path below the base URL.

        An absolute URL is returned unchanged.

        Raises:
            FHIRRequestError: the scheme is not http or https; the path begins with two
                slashes or has dot segments; or there is whitespace, a backslash or a
                fragment.
        """
        if not _PATH.fullmatch(path_or_url) or path_or_url.startswith("//"):
            raise FHIRRequestError("The path or URL contains invalid characters.")
        if path_or_url.lower().startswith(("https://", "http://")):
            return path_or_url
        if _SCHEME.match(path_or_url):
            raise FHIRRequestError("The URL is not https or http.")
        path = path_or_url.removeprefix("/")
        slash = "" if path.startswith("?") or not path else "/"
        url = f"{self.base_url}{slash}{path}"
        if not is_within_base(url, self.base_url):
            raise FHIRRequestError("The path leads outside the FHIR base.")
        return url

    def is_within_boundary(self, url: str) -> bool:
        """Return whether the access token may be sent to *url* (FHIR-02)."""
        if self.boundary == "origin":
            return is_same_origin(url, self.base_url)
        return is_within_base(url, self.base_url)

    def perform(
        self,
        interaction: Interaction,
        *,
        url: str | None = None,
    ) -> HTTPResponse:
        """
        Send *interaction*, or get its continuation at *url*, if the scopes allow it.

        Raises:
            ForeignPatientError: the scopes are for one patient, and the request may go
                beyond that patient's record.
        """
        # Before reading the scopes, which may require a query.
        refuse_in_event_loop()
        self.check_scope(interaction)
        guard = self._build_guard()
        if guard is None:
            return self.send_unchecked(interaction, url=url)
        own_url = self.build_url(interaction.path)
        target = own_url if url is None else url
        is_page = url is not None and interaction.name not in {"read", "vread"}
        # The host may be in capitals, and there may be a slash at the end.
        is_own = target == own_url or (not is_page and is_within_base(target, own_url))
        if is_own and is_within_base(own_url, self.base_url):
            interaction, url = guard.prepare(interaction), None
        elif (
            not is_page
            and self.is_within_boundary(target)
            and not is_shared(interaction.resource_type)
            and not guard.record.is_open(interaction.name, interaction.resource_type)
        ):
            raise ForeignPatientError(
                "The same id at another base URL may be another patient's."
            )
        response = self.send_unchecked(interaction, url=url)
        return guard.check(interaction, response)

    def perform_read(
        self, interaction: Interaction, *, url: str | None = None
    ) -> dict[str, Any]:
        """Return the resource that *interaction* reads, at its own address or *url*."""
        return process_read_response(self.perform(interaction, url=url), interaction)

    def check_scope(self, interaction: Interaction) -> None:
        """
        Check that the granted scopes allow *interaction*.

        Raises:
            InsufficientScopeError: they do not, and ``SMART_SCOPE_CHECK`` is
                ``"raise"``.
        """
        scopes = self._tokens.scopes
        if scopes is None or self._observer is None:
            return
        missing = find_missing_scope(
            scopes, interaction.name, interaction.resource_type
        )
        if missing:
            self._observer.on_missing_scope(missing)

    def send_authorized(
        self,
        request: HTTPRequest,
        *,
        interaction: str = "",
        resource_type: str = "",
    ) -> HTTPResponse:
        """
        Send *request* with the token; retry once after 401, 429 or 503.

        After 401, the token is refreshed first; after 429 and 503, only requests that
        change nothing are sent again, after a pause.  Redirects are not followed.  Each
        request has an ``X-Request-Id``, which identifies it in the server's log.

        Raises:
            BearerBoundaryError: the URL is outside the boundary; nothing was sent.
            TransportError: there is no usable response.

        Spec: FHIR-01, FHIR-02, FHIR-04; FHIR R4, "RESTful API", custom headers.
        """
        is_safe = request.method in _SAFE_METHODS or interaction in _SAFE_INTERACTIONS
        with self._told(request, interaction, resource_type) as told:
            response = self._send_with_retries(told, is_safe=is_safe)
            told.status_code = response.status_code
        if find_request_id(response.headers):
            return response
        # For error messages; the server's own id is preferred.
        headers = {**response.headers, "x-request-id": told.request_id}
        return replace(response, headers=headers)

    @contextmanager
    def _told(
        self, request: HTTPRequest, interaction: str, resource_type: str
    ) -> Iterator[_Told]:
        """Refuse a URL outside the boundary, set a request id, and log the request."""
        refuse_in_event_loop()
        if not self.is_within_boundary(request.url):
            raise BearerBoundaryError(
                f"the access token for {get_origin(self.base_url)} may not be sent to "
                f"{_name_origin(request.url)}, outside its {self.boundary} "
                "(bearer_boundary of the server)"
            )
        request_id = find_request_id(request.headers) or str(uuid.uuid4())
        headers = {"X-Request-Id": request_id} | {
            k: v for k, v in request.headers.items() if k.lower() != "x-request-id"
        }
        told = _Told(replace(request, headers=headers), request_id)
        started = time.monotonic()
        try:
            yield told
        except SMARTError as exc:
            told.error_code = exc.code
            raise
        finally:
            if self._observer is not None:
                exchange = FHIRExchange(
                    interaction=interaction or request.method.lower(),
                    resource_type=resource_type or self._get_resource_type(request.url),
                    status_code=told.status_code,
                    duration=time.monotonic() - started,
                    request_id=request_id,
                    error_code=told.error_code,
                )
                self._observer.on_request(exchange)

    @contextmanager
    def stream(
        self,
        method: str,
        path_or_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        interaction: str = "",
        resource_type: str = "",
    ) -> Iterator[ResponseStream]:
        """
        Send any request, and read the response in chunks inside the ``with`` block.

        Like ``request``, but redirects are returned instead of followed, and only 401
        is retried.

        Raises:
            BearerBoundaryError: the URL is outside the boundary; nothing was sent.
            FHIRRequestError: the method, path or URL is invalid.
            TransportError: there is no usable response, or it does not end.
        """
        request = self._build_request(method, path_or_url, headers, body)
        with (
            self._told(request, interaction, resource_type) as told,
            ExitStack() as stack,
        ):
            streams: list[ResponseStream] = []

            def open_stream(request: HTTPRequest) -> HTTPResponse:
                stack.close()
                opened = self._transport.open_stream(request)
                streams.append(stack.enter_context(opened))
                return streams[-1].head

            self._exchange(told, open_stream)
            yield streams[-1]

    def stream_anonymous(
        self, url: str, *, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[ResponseStream]:
        """Get *url*, such as a signed URL, in chunks and without ``Authorization``."""
        refuse_in_event_loop()
        return self._transport.open_stream(
            self._build_request("GET", url, headers, None)
        )

    def send_anonymous(self, request: HTTPRequest) -> HTTPResponse:
        """Send *request* without ``Authorization``, for URLs outside the boundary."""
        refuse_in_event_loop()
        return self._transport.send(
            replace(request, headers=_merge(request.headers, {}))
        )

    def _build_guard(self) -> RecordGuard | None:
        """Return what keeps to the record, if scopes are for one patient."""
        scopes, rules = self._tokens.scopes or ScopeSet(), self._record_rules
        if rules is None or not (rules.always or scopes.are_for_patient):
            return None
        record = Record(
            patient_id=self.patient_id, base_url=self.base_url, scopes=scopes
        )
        return RecordGuard(record=record, fetch=self.send_unchecked, rules=rules)

    def send_unchecked(
        self, interaction: Interaction, *, url: str | None = None
    ) -> HTTPResponse:
        """Send *interaction*, or get its continuation at *url*, whatever it is."""
        headers = {"Accept": FHIR_JSON, **interaction.headers}
        body = interaction.body
        if body is not None:
            headers["Content-Type"] = interaction.media_type
            body = body if isinstance(body, bytes) else dump_json(body)
        request = HTTPRequest(
            method=interaction.method,
            url=self.build_url(interaction.path) if url is None else url,
            headers=headers,
            body=body,
        )
        return self._follow(
            request,
            interaction=interaction.name,
            resource_type=interaction.resource_type,
        )

    def _exchange(
        self, told: _Told, send: Callable[[HTTPRequest], HTTPResponse]
    ) -> tuple[HTTPRequest, HTTPResponse]:
        """Send with the token, and after 401 with another one; return both ends."""
        token = HiddenText(self._tokens.get())
        request = _authorize(told.request, token)
        response = send(request)
        told.status_code = response.status_code
        if response.status_code == 401 and token != self._refused:
            renewed = HiddenText(self._tokens.renew(token))
            if renewed != token:
                request = _authorize(told.request, renewed)
                response = send(request)
                told.status_code = response.status_code
            if response.status_code == 401:
                self._refused = renewed
        return request, response

    def _send_with_retries(self, told: _Told, *, is_safe: bool) -> HTTPResponse:
        started = time.monotonic()
        request, response = self._exchange(told, self._transport.send)
        wait = response.retry_wait if is_safe else None
        if wait is None:
            return response
        left = self._transport.call_limit - (time.monotonic() - started) - wait
        if left <= 0:
            return response
        self.sleep(wait)
        with limit_call(left):
            return self._transport.send(request)

    def _follow(
        self,
        request: HTTPRequest,
        *,
        interaction: str = "",
        resource_type: str = "",
    ) -> HTTPResponse:
        """Send, and follow redirects of safe requests; each hop is checked again."""
        for _ in range(_MAX_REDIRECTS + 1):
            response = self.send_authorized(
                request,
                interaction=interaction,
                resource_type=resource_type,
            )
            location = response.headers.get("location")
            if (
                response.status_code not in _REDIRECTS
                or not location
                or request.method not in _SAFE_METHODS
            ):
                return response
            request = replace(request, url=resolve_url(request.url, location))
        raise MalformedFHIRResponseError(
            f"the server redirected more than {_MAX_REDIRECTS} times",
            status_code=response.status_code,
        )

    def _get_resource_type(self, url: str) -> str:
        """Resource type in the path below the base, empty if there is none."""
        base = urlsplit(self.base_url).path
        path = urlsplit(url).path
        name = path.removeprefix(f"{base}/").partition("/")[0]
        is_below = path.startswith(f"{base}/")
        return name if is_below and name.isalpha() and name[:1].isupper() else ""


def _name_origin(url: str) -> str:
    try:
        return get_origin(url)
    except InsecureURLError:
        return "an invalid URL"


def refuse_in_event_loop() -> None:
    """
    Refuse to send from a thread whose event loop would wait for the answer.

    As Django's models do, and with their way out: ``DJANGO_ALLOW_ASYNC_UNSAFE``.

    Raises:
        FHIRRequestError: an event loop runs in this thread; nothing was sent.
    """
    if is_in_event_loop() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise FHIRRequestError(
            "This call would block the event loop, so nothing was sent. In "
            "async code, await the same method of request.smart.afhir or of "
            "build_async_client(client).",
            code="fhir_sync_in_async",
        )


class _Told:
    """A reported request, with its status or error."""

    def __init__(self, request: HTTPRequest, request_id: str) -> None:
        self.request = request
        self.request_id = request_id
        self.status_code: int | None = None
        self.error_code = ""


def _authorize(request: HTTPRequest, access_token: HiddenText) -> HTTPRequest:
    headers = _merge(request.headers, {})
    headers["Authorization"] = HiddenText(f"Bearer {access_token}")
    return replace(request, headers=headers)


def _merge(defaults: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, str]:
    """Headers over defaults by name in any case, never with an ``Authorization``."""
    names = {name.lower() for name in headers}
    merged = {k: v for k, v in defaults.items() if k.lower() not in names}
    merged.update(headers)
    return {k: v for k, v in merged.items() if k.lower() != "authorization"}
