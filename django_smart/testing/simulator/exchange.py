"""One request on its way through the simulated EHR, and as it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from requests.structures import CaseInsensitiveDict
from werkzeug.wrappers import Request, Response

from django_smart.testing.simulator.digits import dump, load

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = [
    "Exchange",
    "RecordedRequest",
    "Routes",
    "browser_request",
    "fhir_response",
    "json_response",
]

FORM_TYPE = "application/x-www-form-urlencoded"

Routes = Iterator[tuple[str, str, Callable[..., Response]]]
"""Path, method and handler of what a module answers."""

_DOCUMENTS = {
    "smart-configuration": "discovery",
    "openid-configuration": "openid",
}
# What a fault of the token endpoint is aimed at depends on the grant.
_TOKEN_EXCHANGES = {
    "refresh_token": "refresh",
    "client_credentials": "client_credentials",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """
    One request, and the status of its response.

    ``query`` and ``form`` keep order and repetitions. ``status`` is 0 for a request to
    another origin, which the in-process adapter refused.
    """

    exchange: str
    """Which endpoint: ``token``, ``authorize``, ``fhir``, ``elsewhere``, …"""
    method: str
    url: str
    path: str
    query: list[tuple[str, str]]
    headers: CaseInsensitiveDict[str]
    body: bytes
    form: list[tuple[str, str]]
    status: int
    patient: str | None
    """The patient of the bearer token, if one was accepted."""
    client_id: str | None
    at: float
    """Seconds since the epoch, by the simulator's clock."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """A request, what is learned about it while it is handled, and its EHR."""

    ehr: EHRSimulator
    request: Request
    name: str
    """The endpoint, as ``EHRSimulator.requests_to`` names it."""
    client_id: str | None = None
    patient: str | None = None

    @property
    def body(self) -> bytes:
        return self.request.get_data(cache=True)

    @property
    def json(self) -> Any:
        """The body, or ``None`` if it is no JSON."""
        try:
            return load(self.body)
        except ValueError:
            return None

    @property
    def query(self) -> list[tuple[str, str]]:
        raw = self.request.query_string.decode("latin-1")
        return parse_qsl(raw, keep_blank_values=True)

    @property
    def form(self) -> list[tuple[str, str]]:
        if self.request.mimetype != FORM_TYPE:
            return []
        text = self.body.decode("utf-8", "replace")
        return parse_qsl(text, keep_blank_values=True)

    @property
    def is_framed(self) -> bool:
        """True if the browser shows the response in a frame."""
        return self.request.headers.get("Sec-Fetch-Dest") == "iframe"

    @property
    def fault_exchange(self) -> str:
        """The name under which faults are registered for this request."""
        if self.name == "token":
            return _TOKEN_EXCHANGES.get(dict(self.form).get("grant_type", ""), "token")
        return _DOCUMENTS.get(self.name, self.name)

    def record(self, status: int) -> RecordedRequest:
        """Return the request as recorded in ``EHRSimulator.requests``."""
        # Werkzeug's own ``url`` decodes what came percent-encoded.
        query = self.request.query_string.decode("latin-1")
        return RecordedRequest(
            exchange=self.name,
            method=self.request.method,
            url=self.request.base_url + (f"?{query}" if query else ""),
            path=self.request.path,
            query=self.query,
            headers=CaseInsensitiveDict(self.request.headers.items()),
            body=self.body,
            form=self.form,
            status=status,
            patient=self.patient,
            client_id=self.client_id,
            at=self.ehr.clock(),
        )


def json_response(
    value: Any,
    *,
    status: int = 200,
    content_type: str = "application/json",
    headers: dict[str, str] | None = None,
) -> Response:
    """An answer whose body is *value* as JSON."""
    return Response(
        dump(value, ensure_ascii=False, indent=1),
        status=status,
        content_type=content_type,
        headers=headers,
    )


fhir_response = partial(
    json_response, content_type="application/fhir+json; charset=utf-8"
)
"""An answer whose body is a resource."""


def browser_request(url: str, form: Iterable[tuple[str, str]] | None = None) -> Request:
    """A browser's GET of *url*, or its POST of *form* there."""
    parts = urlsplit(url)
    return Request.from_values(
        base_url=f"{parts.scheme}://{parts.netloc}",
        path=parts.path,
        query_string=parts.query,
        method="GET" if form is None else "POST",
        data=None if form is None else urlencode(list(form)).encode(),
        content_type=None if form is None else FORM_TYPE,
    )
