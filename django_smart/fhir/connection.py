"""Requests with the access token of one grant: where it goes, and how often."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Literal
from urllib.parse import urlsplit

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRRequestError,
    MalformedFHIRResponseError,
)
from django_smart.fhir.messages import (
    FHIRExchange,
    find_request_id,
    resolve_url,
)
from django_smart.protocol.messages import HiddenText, HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.urls import get_origin, is_same_origin, is_within_base
from django_smart.transport import ResponseStream
from django_smart.transport.connections import limit_call

__all__ = ["FHIRConnection"]

_ACCEPT = "application/fhir+json"
_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({429, 503})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_SAFE_INTERACTIONS = frozenset({"search"})  # by POST, too
# Seconds before the second try when a busy server names no time.
_DEFAULT_WAIT = 0.5
_METHOD = re.compile(r"[A-Z]{1,16}")
# Visible ASCII without "#" and the backslash.
_PATH = re.compile(r"[!\"$-\[\]-~]*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")


_OpenStream = Callable[[HTTPRequest], AbstractContextManager[ResponseStream]]


class FHIRConnection:
    """
    Sends requests to one server, with the token and to nobody else.

    Args:
        base_url: FHIR endpoint, as it is sent as ``aud``.
        get_access_token: returns the token to use now.
        renew_access_token: called with a token that met 401; returns the one to try
            instead, by a refresh or because another process has refreshed already.
        boundary: where the token may be sent: at or below the path of *base_url*, or
            anywhere at its ``"origin"``.
        send: does one HTTP exchange (``transport.send`` with its limits bound).
        get_scopes: returns the scopes that were granted, as they are now.
        on_missing_scope: told the scope that an interaction needs and that was not
            granted, before it is sent; may raise.
        patient_id: id of the patient in context, for the caller's convenience: the
            server decides what may be seen.
        on_request: told of each request that carried the token.
        max_retry_wait: seconds to wait at most before the second try of a request that
            changes nothing and met 429 or 503; a longer ``Retry-After`` is left to the
            caller.
        call_limit: seconds that the first try, the wait and the second one may take in
            all; where the wait leaves nothing, there is no second try.
        open_stream: as *send*, for answers that are read piece by piece
            (``transport.open_stream`` with its limits bound).

    May be used by several threads, apart from ``session``.

    Spec: SMART App Launch 2.2, "Access FHIR API" (FHIR-01 to FHIR-08).
    """

    def __init__(
        self,
        *,
        base_url: str,
        get_access_token: Callable[[], str],
        renew_access_token: Callable[[str], str],
        send: Callable[[HTTPRequest], HTTPResponse],
        boundary: Literal["base", "origin"] = "base",
        patient_id: str | None = None,
        get_scopes: Callable[[], ScopeSet] | None = None,
        on_missing_scope: Callable[[str], None] | None = None,
        on_request: Callable[[FHIRExchange], None] | None = None,
        max_retry_wait: float = 5.0,
        call_limit: float = 20.0,
        sleep: Callable[[float], None] = time.sleep,
        open_stream: _OpenStream | None = None,
    ) -> None:
        self.base_url = base_url.removesuffix("/")
        self.boundary = boundary
        self.patient_id = patient_id
        self._get_access_token = get_access_token
        self._renew_access_token = renew_access_token
        self._send = send
        self._get_scopes = get_scopes
        self._on_missing_scope = on_missing_scope
        self._on_request = on_request
        self._max_retry_wait = max_retry_wait
        self._call_limit = call_limit
        self._sleep = sleep
        self._open_stream = open_stream

    def __repr__(self) -> str:
        # The origin alone: some servers have a patient's id in the path of their base.
        return f"<{type(self).__name__}: {get_origin(self.base_url)}>"

    def request(
        self,
        method: str,
        path_or_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> HTTPResponse:
        """
        Send any request and return the answer as it is, whatever its status.

        GET and HEAD follow redirects within the boundary.  ``Authorization`` in
        *headers* is replaced, ``Accept`` has FHIR JSON as default.

        Raises:
            BearerBoundaryError: the URL or a redirect leads outside.
            FHIRRequestError: not a usable method, path or URL.
            TransportError: no usable answer.
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
            raise FHIRRequestError("A method has capital letters alone.")
        return HTTPRequest(
            method=method,
            url=self.build_url(path_or_url),
            headers=_merge({"Accept": _ACCEPT}, headers or {}),
            body=body,
        )

    def build_url(self, path_or_url: str) -> str:
        """
        Return the absolute URL of a path below the base; an absolute URL as it is.

        Raises:
            FHIRRequestError: another scheme than http(s); a path that begins with two
                slashes or has dot segments; white space, a backslash or a fragment.
        """
        if not _PATH.fullmatch(path_or_url) or path_or_url.startswith("//"):
            raise FHIRRequestError("The path or URL has characters it must not have.")
        if path_or_url.lower().startswith(("https://", "http://")):
            return path_or_url
        if _SCHEME.match(path_or_url):
            raise FHIRRequestError("The URL is neither https nor http.")
        path = path_or_url.removeprefix("/")
        slash = "" if path.startswith("?") or not path else "/"
        url = f"{self.base_url}{slash}{path}"
        if not is_within_base(url, self.base_url):
            raise FHIRRequestError("The path leads out of the FHIR base.")
        return url

    def is_within_boundary(self, url: str) -> bool:
        """Whether the access token may be sent to *url* (FHIR-02)."""
        if self.boundary == "origin":
            return is_same_origin(url, self.base_url)
        return is_within_base(url, self.base_url)

    def send_authorized(
        self,
        request: HTTPRequest,
        *,
        interaction: str = "",
        resource_type: str = "",
    ) -> HTTPResponse:
        """
        Send *request* with the token, once more after 401, 429 or 503.

        401 gets one renewal of the token; 429 and 503 one pause, for requests that
        change nothing.  Redirects are not followed.  Each request has an
        ``X-Request-Id``, by which the server's people find it in their log.

        Raises:
            BearerBoundaryError: the URL lies outside; nothing was sent.
            TransportError: no usable answer.

        Spec: FHIR-01, FHIR-02, FHIR-04; FHIR R4, "RESTful API", custom headers.
        """
        is_safe = request.method in _SAFE_METHODS or interaction in _SAFE_INTERACTIONS
        with self._told(request, interaction, resource_type) as told:
            response = self._send_with_retries(told.request, is_safe=is_safe)
            told.status_code = response.status_code
        return response

    @contextmanager
    def _told(
        self, request: HTTPRequest, interaction: str, resource_type: str
    ) -> Iterator[_Told]:
        """Refuse a URL outside, give the request an id, and tell of it at the end."""
        if not self.is_within_boundary(request.url):
            raise BearerBoundaryError(
                f"the access token for {get_origin(self.base_url)} may not be sent "
                f"outside of its {self.boundary}"
            )
        request_id = find_request_id(request.headers) or str(uuid.uuid4())
        headers = {"X-Request-Id": request_id} | {
            k: v for k, v in request.headers.items() if k.lower() != "x-request-id"
        }
        told = _Told(replace(request, headers=headers))
        started = time.monotonic()
        try:
            yield told
        finally:
            if self._on_request is not None:
                exchange = FHIRExchange(
                    interaction=interaction or request.method.lower(),
                    resource_type=resource_type or self._get_resource_type(request.url),
                    status_code=told.status_code,
                    duration=time.monotonic() - started,
                    request_id=request_id,
                )
                self._on_request(exchange)

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
        Send any request, and read the answer piece by piece inside the ``with`` block.

        As ``request``, but redirects are returned and not followed, and only 401 is
        tried once more.

        Raises:
            BearerBoundaryError: the URL lies outside; nothing was sent.
            FHIRRequestError: not a usable method, path or URL.
            TransportError: no usable answer, or none that ends.
        """
        if self._open_stream is None:
            raise TypeError("this client was made without open_stream")
        request = self._build_request(method, path_or_url, headers, body)
        with (
            self._told(request, interaction, resource_type) as told,
            ExitStack() as stack,
        ):
            token = HiddenText(self._get_access_token())
            request = told.request
            stream = stack.enter_context(self._open_stream(_authorize(request, token)))
            if stream.head.status_code == 401:
                renewed = HiddenText(self._renew_access_token(token))
                if renewed != token:
                    stack.close()
                    request = _authorize(request, renewed)
                    stream = stack.enter_context(self._open_stream(request))
            told.status_code = stream.head.status_code
            yield stream

    def stream_anonymous(
        self, url: str, *, headers: Mapping[str, str] | None = None
    ) -> AbstractContextManager[ResponseStream]:
        """Get *url* piece by piece without any ``Authorization``: a signed URL, say."""
        if self._open_stream is None:
            raise TypeError("this client was made without open_stream")
        return self._open_stream(self._build_request("GET", url, headers, None))

    def pause(self, seconds: float) -> None:
        """Wait, as the server has asked."""
        self._sleep(seconds)

    def send_anonymous(self, request: HTTPRequest) -> HTTPResponse:
        """Send *request* without any ``Authorization``, for URLs outside."""
        return self._send(replace(request, headers=_merge(request.headers, {})))

    def _send_with_retries(
        self, request: HTTPRequest, *, is_safe: bool
    ) -> HTTPResponse:
        access_token = HiddenText(self._get_access_token())
        started = time.monotonic()
        response = self._send(_authorize(request, access_token))
        if response.status_code == 401:
            used_token = access_token
            access_token = HiddenText(self._renew_access_token(used_token))
            if access_token != used_token:
                started = time.monotonic()
                response = self._send(_authorize(request, access_token))
        wait = self._get_wait(response) if is_safe else None
        if wait is None:
            return response
        left = self._call_limit - (time.monotonic() - started) - wait
        if left <= 0:
            return response
        self._sleep(wait)
        with limit_call(left):
            return self._send(_authorize(request, access_token))

    def _get_wait(self, response: HTTPResponse) -> float | None:
        """Seconds to wait before the second try, ``None`` for no second try."""
        if response.status_code not in _BUSY:
            return None
        if "retry-after" not in response.headers:
            return min(_DEFAULT_WAIT, self._max_retry_wait)
        wait = response.retry_after
        return wait if wait is not None and wait <= self._max_retry_wait else None

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


class _Told:
    """A request that is told of, and the status that it met."""

    def __init__(self, request: HTTPRequest) -> None:
        self.request = request
        self.status_code: int | None = None


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
