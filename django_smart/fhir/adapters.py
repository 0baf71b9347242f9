"""Other libraries with this grant: ``requests``, ``fhirpy`` and ``fhirclient``."""

from __future__ import annotations

import io
import json
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
from django_smart.fhir.interactions import FHIR_JSON, refuse_part
from django_smart.fhir.json import EXACT, dump_json
from django_smart.fhir.messages import resolve_url
from django_smart.protocol.messages import HTTPRequest, HTTPResponse

if TYPE_CHECKING:
    from fhirclient.client import FHIRClient as SMARTClient
    from fhirpy import SyncFHIRClient

    from django_smart.fhir.connection import FHIRConnection

__all__ = ["FHIRSession", "build_fhirclient", "build_fhirpy"]

# Headers of the connection, not of the message that is passed on.
_OWN_HEADERS = {"authorization", "content-length", "transfer-encoding"}
_UNPACKED_HEADERS = {"content-encoding", "content-length", "transfer-encoding"}


class FHIRSession(requests.Session):
    """
    Sends the access token only to its server (FHIR-01, FHIR-02).

    A request within the boundary gets the token, one refresh on status 401 and the
    rules of ``FHIRClient``; any other request is sent without ``Authorization``, even
    if you set it.  A redirect outside the boundary raises ``BearerBoundaryError``.  The
    package controls timeouts, body size and certificates: ``timeout=`` and ``verify=``
    have no effect, and the body is read before it is returned.

    The token is added below the session: no hook and no ``response.request`` sees it.
    """

    def __init__(self, client: FHIRConnection) -> None:
        super().__init__()
        # No .netrc; the transport handles proxies and certificates.
        self.trust_env = False
        self._client = client
        self.headers["Accept"] = FHIR_JSON
        del self.headers["User-Agent"]
        adapter = _BearerAdapter(client)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def __repr__(self) -> str:
        return f"<FHIRSession of {self._client!r}>"

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Replace upstream's: a redirect must stay within the boundary."""
        target = super().get_redirect_target(resp)
        is_inside = self._client.is_within_boundary
        if (
            target
            and is_inside(resp.url)
            and not is_inside(resolve_url(resp.url, target))
        ):
            raise BearerBoundaryError(
                "a redirect leads outside the access token's boundary"
            )
        return target


class _BearerAdapter(BaseAdapter):
    """Passes a request of the session to the client's own connection."""

    def __init__(self, client: FHIRConnection) -> None:
        super().__init__()
        self._client = client

    def close(self) -> None:
        """Close nothing; the connections are shared."""

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
            # Libraries written for requests expect this.
            raise _translate(exc)(str(exc), request=request) from exc
        return _build_response(answer, request, self)


class _Response(requests.Response):
    def json(self, **kwargs: Any) -> Any:
        """Replace upstream's, which would shorten 7.10 to 7.1."""
        return super().json(**{**EXACT, **kwargs})


def _to_text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _read_body(body: Any) -> bytes | None:
    """Read any body that requests accepts; it may have to be sent twice."""
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
    response = _Response()
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


def build_fhirpy(client: FHIRConnection) -> SyncFHIRClient:
    """
    Return a ``fhirpy.SyncFHIRClient`` that uses this grant.

    Raises:
        ImportError: ``fhirpy`` is not installed.
    """
    from fhirpy import SyncFHIRClient
    from fhirpy.base.exceptions import (
        AuthorizationError,
        ForbiddenError,
        MultipleResourcesFound,
        OperationOutcome,
        ResourceNotFound,
    )
    from fhirpy.base.utils import AttrDict

    errors = {
        401: AuthorizationError,
        403: ForbiddenError,
        404: ResourceNotFound,
        410: ResourceNotFound,
        412: MultipleResourcesFound,
    }

    class Client(SyncFHIRClient):
        # Replaces upstream's, which sends by connections of its own.
        def _do_request(
            self,
            method: str,
            path: str,
            data: Any = None,
            params: Any = None,
            extra_headers: Any = None,
            *,
            returning_status: bool = False,
        ) -> Any:
            headers = {**self._build_request_headers(), **(extra_headers or {})}
            url = self._build_request_url(path, params)
            if method.lower() == "put":
                refuse_part(data)
            if data is not None:
                headers = {"Content-Type": FHIR_JSON, **headers}
                data = dump_json(data)
            answer = client.session.request(method, url, data=data, headers=headers)
            status = answer.status_code
            if status == 304:
                value = None
            elif 200 <= status < 300:
                text = answer.content.decode()
                value = (
                    json.loads(text, object_hook=AttrDict, **EXACT) if text else None
                )
            elif status in errors:
                raise errors[status](answer.content.decode())
            else:
                outcome: Any = OperationOutcome  # untyped
                raise outcome(**_read_outcome(answer.content.decode()))
            return (value, status) if returning_status else value

        # Replaces upstream's, which knows nothing of pages beside the base.
        def _build_request_url(self, path: str, params: Any) -> str:
            if "://" in path and client.is_within_boundary(path):
                return path
            return str(super()._build_request_url(path, params))

    return Client(client.base_url)


def _read_outcome(text: str) -> dict[str, Any]:
    """What fhirpy's ``OperationOutcome`` is made of: a resource, or any text."""
    try:
        resource = json.loads(text)
    except ValueError:
        return {"reason": text}
    is_outcome = (
        isinstance(resource, dict)
        and resource.get("resourceType") == "OperationOutcome"
    )
    return {"resource": resource} if is_outcome else {"reason": text}


def build_fhirclient(client: FHIRConnection) -> SMARTClient:
    """
    Return a ``fhirclient.client.FHIRClient`` that uses this grant.

    Raises:
        ImportError: ``fhirclient`` is not installed.
    """
    from fhirclient.auth import FHIRAuth
    from fhirclient.client import FHIRClient as SMARTClient

    smart = SMARTClient(
        settings={
            "app_id": "django_smart",
            "api_base": client.base_url,
            "patient_id": client.patient_id,
        }
    )
    smart.server.session = client.session
    # It has no authorization of its own: it is ready and asks no one.
    smart.server.auth = FHIRAuth()
    return smart
