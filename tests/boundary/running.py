"""Sends a case to a simulated hospital, by a script or by a view's own code."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import requests
from django.test import RequestFactory

from django_smart.exceptions import SMARTError
from django_smart.fhir import FHIRClient
from django_smart.fhir.guard import RecordRules
from django_smart.fhir.interactions import parse_interaction
from django_smart.launches.request_state import get_request_state
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from django_smart.testing import EHRSimulator
from django_smart.views import FHIRProxyView
from tests.boundary.cases import (
    BASE,
    SECRET,
    Case,
    build_data,
    build_odd,
)
from tests.fhir.servers import Carrier, Tokens
from tests.testing.app import App

WAYS = ("strict", "lenient")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a request."""

    status: str
    is_refused: bool
    is_leaked: bool
    written: int
    total: int | None
    text: str

    def is_harmless(self, case: Case) -> bool:
        """Whether an attack failed, however; whether a use succeeded."""
        if case.is_attack:
            return not (self.is_leaked or self.written)
        return self.is_refused is (case.expected == "refused")

    def fits(self, case: Case) -> bool:
        """Whether this is what was expected."""
        if case.is_attack and (self.is_leaked or self.written):
            return False
        if case.expected == "nothing":
            return True
        if self.is_refused is not (case.expected == "refused"):
            return False
        return case.total is None or case.total == self.total


class Hospital:
    """A server with the resources of the cases."""

    def __init__(self, *, is_lenient: bool) -> None:
        self.ehr = EHRSimulator(BASE, lenient=is_lenient)
        self.session = requests.Session()
        self.session.mount("https://", self.ehr.adapter())
        self._reset(())
        self.app = App(self.ehr, self.session)
        self._tokens: dict[str, str] = {}

    def run(
        self, case: Case, *, by_client: bool = False, is_opened: bool = True
    ) -> Result:
        """
        Send *case* to the server as it was at first.

        Args:
            is_opened: whether the view has the attributes of *case*.
        """
        asked = f"{case.path} {case.body}"
        self._reset(build_odd() if any(name in asked for name in _ODD) else ())
        client = self.build_client(case.scope)
        self.ehr.clear_requests()
        if by_client:
            status, body = _call(client, case)
        else:
            response = ask_proxy(client, case, is_opened=is_opened)
            status, body = str(response.status_code), bytes(response.content)
        is_refused = not status.startswith(("2", "3"))
        return Result(
            status=status,
            is_refused=is_refused,
            is_leaked=SECRET.encode() in body,
            text=body.decode("utf-8", "replace"),
            written=len(self.ehr.written),
            total=_find_total(body),
        )

    def build_client(self, scope: str) -> FHIRClient:
        """As a view has it whose launch is about the patient ``mine``."""
        return FHIRClient(
            base_url=BASE,
            tokens=Tokens(
                get=lambda: self._get_token(scope),
                get_scopes=lambda: ScopeSet.parse(scope),
            ),
            transport=Carrier(self._send),
            patient_id="mine",
            record_rules=RecordRules(),
        )

    def _reset(self, more: Iterable[dict[str, Any]]) -> None:
        data: Any = defaultdict(dict)
        meta = {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00Z"}
        for resource in (*_read_data(), *more):
            stored = {**resource, "meta": meta}
            data[stored["resourceType"]][stored["id"]] = stored
        self.ehr.versions.restore((data, {}, 0))

    def _get_token(self, scope: str) -> str:
        if scope not in self._tokens:
            tokens = self.app.launch(f"launch/patient {scope}", patient="mine")
            self._tokens[scope] = tokens["access_token"]
        return self._tokens[scope]

    def _send(self, request: HTTPRequest) -> HTTPResponse:
        response = self.session.request(
            request.method,
            request.url,
            data=request.body,
            headers=dict(request.headers),
            allow_redirects=False,
        )
        return HTTPResponse(
            status_code=response.status_code,
            headers={name.lower(): one for name, one in response.headers.items()},
            body=response.content,
            url=request.url,
        )


_ODD = ("odd-", "naming-", "Binary/", "Bundle/", "Parameters/")


@cache
def _read_data() -> tuple[dict[str, Any], ...]:
    return tuple(build_data())


def _encode(body: Any) -> bytes:
    if body is None:
        return b""
    return (body if isinstance(body, str) else json.dumps(body)).encode()


def ask_proxy(client: FHIRClient, case: Case, *, is_opened: bool = True) -> Any:
    """The answer of the proxy, which allows every method."""
    smart = SimpleNamespace(
        fhir=client,
        patient_id="mine",
        scopes=ScopeSet.parse(case.scope),
        launch=SimpleNamespace(key="launch-1"),
    )
    request: Any = RequestFactory().generic(
        case.method,
        f"/~launch-1/fhir/{case.path}",
        _encode(case.body),
        case.media_type,
        secure=True,
        headers={"Host": "testserver", **case.headers},
    )
    request._dont_enforce_csrf_checks = True
    request.smart = smart
    state: Any = get_request_state(request)
    state.context = smart
    state.prefix = SimpleNamespace(key="launch-1")
    attributes = case.attributes if is_opened else {}
    view = FHIRProxyView.as_view(**{"methods": METHODS, **attributes})
    # Decoded, as Django finds it.
    return view(request, path=unquote(case.path.partition("?")[0]))


def _call(client: FHIRClient, case: Case) -> tuple[str, bytes]:
    body = _encode(case.body) if isinstance(case.body, str) else case.body
    try:
        asked = parse_interaction(
            case.method,
            case.path,
            headers=case.headers,
            body=body,
            media_type=case.media_type,
        )
        response = client.perform(asked)
    except SMARTError as error:
        return error.code, b""
    return str(response.status_code), response.body


def _find_total(body: bytes) -> int | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value.get("total") if isinstance(value, dict) else None


_hospitals: dict[bool, Hospital] = {}


def get_hospital(way: str) -> Hospital:
    """The same server for all cases."""
    is_lenient = way == "lenient"
    if is_lenient not in _hospitals:
        _hospitals[is_lenient] = Hospital(is_lenient=is_lenient)
    return _hospitals[is_lenient]


__all__ = ["METHODS", "WAYS", "Hospital", "Result", "ask_proxy", "get_hospital"]
