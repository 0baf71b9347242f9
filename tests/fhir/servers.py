"""A FHIR server made of a few answers, and a client for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from django_smart.exceptions import ServerUnreachableError
from django_smart.fhir import FHIRClient, FHIRExchange
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet
from django_smart.transport import ResponseStream

__all__ = [
    "BASE",
    "FHIR_JSON",
    "TOKEN",
    "Carrier",
    "Grant",
    "Server",
    "Tokens",
    "Watcher",
    "bundle",
    "respond",
]

BASE = "https://ehr.example.org/v/r4/sim/blob/fhir"
TOKEN = "token-1"
FHIR_JSON = "application/fhir+json"


def respond(
    value: Any = None, status: int = 200, *, media_type: str = FHIR_JSON, **headers: str
) -> HTTPResponse:
    """Build an answer: JSON of *value*, or *value* itself if it is bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return HTTPResponse(
        status_code=status,
        headers={"content-type": f"{media_type}; charset=utf-8", **names},
        body=body,
    )


def bundle(
    *resources: dict[str, Any], next_url: str | None = None, **members: Any
) -> dict[str, Any]:
    """Build a searchset."""
    return {
        "resourceType": "Bundle",
        "type": "searchset",
        "link": [{"relation": "self", "url": BASE}]
        + ([{"relation": "next", "url": next_url}] if next_url else []),
        "entry": [{"resource": resource} for resource in resources],
        **members,
    }


class Server:
    """Answers by URL, one answer after the other; the last one again and again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[HTTPResponse]] = {}
        self.requests: list[HTTPRequest] = []
        self.request_ids: list[str] = []

    def on(self, path_or_url: str, *answers: HTTPResponse) -> None:
        url = path_or_url if "://" in path_or_url else f"{BASE}/{path_or_url}"
        self.answers[url] = list(answers)

    def __call__(self, request: HTTPRequest) -> HTTPResponse:
        headers = dict(request.headers)
        self.request_ids.append(headers.pop("X-Request-Id", ""))
        # Its value is another one each time, so it is apart from the others.
        self.requests.append(replace(request, headers=headers))
        answers = self.answers.get(request.url)
        if answers is None:
            raise ServerUnreachableError("nothing is there")
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return replace(answer, url=request.url)

    @contextmanager
    def open_stream(self, request: HTTPRequest) -> Iterator[ResponseStream]:
        answer = self(request)
        # In pieces, as they come over a network.
        pieces = [answer.body[at : at + 3] for at in range(0, len(answer.body), 3)]
        yield ResponseStream(head=replace(answer, body=b""), chunks=iter(pieces))

    @property
    def urls(self) -> list[str]:
        return [request.url for request in self.requests]

    @property
    def bearers(self) -> list[str | None]:
        return [request.headers.get("Authorization") for request in self.requests]


class Tokens:
    """A ``TokenSource`` made of functions; by default a token that stays good."""

    def __init__(
        self,
        get: Callable[[], str] = lambda: TOKEN,
        renew: Callable[[str], str] = lambda token: token,
        get_scopes: Callable[[], ScopeSet | None] = lambda: None,
    ) -> None:
        self.get = get
        self.renew = renew
        self._get_scopes = get_scopes

    @property
    def scopes(self) -> ScopeSet | None:
        return self._get_scopes()


def refuse_stream(request: HTTPRequest) -> NoReturn:
    raise AssertionError("nothing should be streamed")


@dataclass
class Carrier:
    """A ``Transport`` made of functions."""

    send: Callable[[HTTPRequest], HTTPResponse]
    open_stream: Callable[[HTTPRequest], AbstractContextManager[ResponseStream]] = (
        refuse_stream
    )
    call_limit: float = 20.0


@dataclass
class Watcher:
    """An ``Observer`` made of functions."""

    on_request: Callable[[FHIRExchange], None] = lambda exchange: None
    on_missing_scope: Callable[[str], None] = lambda scope: None


class Grant:
    """A server, a token for it, and the client that uses both."""

    def __init__(self, **options: Any) -> None:
        self.server = Server()
        self.token = TOKEN
        self.renewed_with: list[str] = []
        self.exchanges: list[FHIRExchange] = []
        self.pauses: list[float] = []
        take = options.pop
        on_request = take("on_request", self.exchanges.append)
        on_missing_scope = take("on_missing_scope", lambda scope: None)
        self.client = FHIRClient(
            tokens=Tokens(
                take("get_access_token", lambda: self.token),
                take("renew_access_token", self.renew),
                take("get_scopes", lambda: None),
            ),
            transport=Carrier(
                take("send", self.server),
                take("open_stream", self.server.open_stream),
                take("call_limit", 20.0),
            ),
            observer=on_request and Watcher(on_request, on_missing_scope),
            **{"base_url": BASE, "sleep": self.pauses.append, **options},
        )

    def renew(self, token: str) -> str:
        self.renewed_with.append(token)
        self.token = "token-2"
        return self.token
