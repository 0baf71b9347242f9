"""A ``requests.Session`` for libraries that bring their own idea of FHIR."""

from __future__ import annotations

import io
from collections.abc import Iterable
from http.client import responses
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from django_smart.exceptions import (
    BearerBoundaryError,
    InsecureURLError,
    ServerTimeoutError,
    TransportError,
)
from django_smart.fhir.messages import resolve_url
from django_smart.protocol.messages import HTTPRequest, HTTPResponse

if TYPE_CHECKING:
    from django_smart.fhir.connection import FHIRConnection

__all__ = ["FHIRSession"]

# Of the connection, not of the message that is passed on.
_OWN_HEADERS = {"authorization", "content-length", "transfer-encoding"}
_UNPACKED_HEADERS = {"content-encoding", "content-length", "transfer-encoding"}


class FHIRSession(requests.Session):
    """
    Sends the access token to its server and to nobody else (FHIR-01, FHIR-02).

    A request within the boundary gets the token, one refresh on 401 and the rules of
    ``FHIRClient``; any other request goes without ``Authorization``, whatever was set.
    A redirect out of the boundary raises ``BearerBoundaryError``.  Time limits, body
    size and certificates are those of the package: ``timeout=`` and ``verify=`` change
    nothing, and the body is read before it is handed over.

    The token is added below the session: no hook and no ``response.request`` has it.
    """

    def __init__(self, client: FHIRConnection) -> None:
        super().__init__()
        # No .netrc; proxies and certificates are the transport's business.
        self.trust_env = False
        self._client = client
        self.headers["Accept"] = "application/fhir+json"
        del self.headers["User-Agent"]
        adapter = _BearerAdapter(client)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def __repr__(self) -> str:
        return f"<FHIRSession of {self._client!r}>"

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Replace upstream's: a redirect must not lead out of the boundary."""
        target = super().get_redirect_target(resp)
        is_inside = self._client.is_within_boundary
        if (
            target
            and is_inside(resp.url)
            and not is_inside(resolve_url(resp.url, target))
        ):
            raise BearerBoundaryError(
                "a redirect leads out of the access token's boundary"
            )
        return target


class _BearerAdapter(BaseAdapter):
    """Passes a request of the session on to the client's own way out."""

    def __init__(self, client: FHIRConnection) -> None:
        super().__init__()
        self._client = client

    def close(self) -> None:
        """Nothing is held here; the connections are shared."""

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        message = HTTPRequest(
            method=request.method or "GET",
            url=request.url or "",
            headers={
                name: _to_text(value)
                for name, value in request.headers.items()
                if name.lower() not in _OWN_HEADERS
            },
            body=_read_body(request.body),
        )
        try:
            if self._client.is_within_boundary(message.url):
                answer = self._client.send_authorized(message)
            else:
                answer = self._client.send_anonymous(message)
        except TransportError as exc:
            # What libraries written for requests expect.
            raise _translate(exc)(str(exc), request=request) from exc
        return _build_response(answer, request, self)


def _to_text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _read_body(body: Any) -> bytes | None:
    """Read whatever requests takes as a body; it may have to be sent a second time."""
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    if hasattr(body, "read"):
        return _read_body(body.read())
    if isinstance(body, Iterable):
        return b"".join(_read_body(item) or b"" for item in body)
    raise TypeError(f"cannot send a body of type {type(body).__name__}")


def _translate(error: TransportError) -> type[requests.RequestException]:
    if isinstance(error, InsecureURLError):
        return requests.exceptions.InvalidURL
    if isinstance(error, ServerTimeoutError):
        return requests.exceptions.Timeout
    return requests.exceptions.ConnectionError


def _build_response(
    answer: HTTPResponse, request: requests.PreparedRequest, adapter: BaseAdapter
) -> requests.Response:
    response = requests.Response()
    response.status_code = answer.status_code
    response.reason = responses.get(answer.status_code, "")
    response.headers = CaseInsensitiveDict(
        (name, value)
        for name, value in answer.headers.items()
        if name not in _UNPACKED_HEADERS
    )
    response.encoding = get_encoding_from_headers(response.headers)
    response.raw = io.BytesIO(answer.body)
    response.url = answer.url or request.url or ""
    response.request = request
    response.connection = adapter  # type: ignore[assignment]  # any adapter will do
    return response
