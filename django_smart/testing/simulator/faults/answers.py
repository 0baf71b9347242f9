"""Responses that no EHR should send."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import rsa
from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange

__all__ = [
    "away",
    "bomb",
    "busy",
    "deeply_nested",
    "endless",
    "html",
    "invalid_json",
    "json_text",
    "late",
    "oauth_error",
    "pause",
    "stranger",
    "too_large",
    "with_duplicate",
    "with_member",
]

LATE = 30
"""Seconds, more than any app should wait."""
PAUSE = 3
"""Seconds that a slow server may take."""
FOR_EVER = "9" * 400
"""A ``Retry-After`` that is infinite as a number, and past every date."""

_PAGE = "<!doctype html><html><head><title>{0}</title></head><body>{0}</body></html>"
_SIZE = 20 * 1024 * 1024
_CHUNK = 64 * 1024


def html(title: str, status: int) -> Response:
    """A page instead of JSON, as proxies and login walls send it."""
    return Response(_PAGE.format(title), status=status, content_type="text/html")


def json_text(text: str | bytes, status: int = 200) -> Response:
    """Return a response with the media type JSON."""
    return Response(text, status=status, content_type="application/json")


def invalid_json() -> Response:
    """Return a truncated JSON response."""
    return json_text('{"resourceType": "Pat')


def oauth_error(error: str, status: int) -> Response:
    """Return an error of the token endpoint."""
    return json_text(f'{{"error": "{error}"}}', status)


def busy(status: int, retry_after: int | str | None = None) -> Response:
    """Return the response of a busy server."""
    response = html("Busy", status)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def away(exchange: Exchange, status: int) -> Response:
    """A redirect to the same path at another host."""
    location = exchange.ehr.foreign_origin + exchange.request.path
    return Response(status=status, headers={"Location": location})


def with_duplicate(answer: dict[str, Any], member: str, value: str) -> Response:
    """*answer* with *member* named a second time."""
    text = json.dumps(answer).removesuffix("}")
    return json_text(f"{text}, {json.dumps(member)}: {json.dumps(value)}}}")


def with_member(answer: dict[str, Any], member: str, text: str) -> Response:
    """*answer* with *member* set to the JSON *text*, as nothing here would write it."""
    others = {name: value for name, value in answer.items() if name != member}
    return json_text(f"{json.dumps(others)[:-1]}, {json.dumps(member)}: {text}}}")


def deeply_nested(answer: dict[str, Any], depth: int = 100_000) -> Response:
    """*answer* with a member of lists within lists."""
    text = json.dumps(answer).removesuffix("}")
    return json_text(f'{text}, "x": {"[" * depth}{"]" * depth}}}')


def too_large() -> Response:
    """Return 20 MB of whitespace in JSON, with ``Content-Length``."""

    def chunks() -> Iterator[bytes]:
        yield b"{".ljust(_CHUNK)
        for _ in range(_SIZE // _CHUNK - 2):
            yield b" " * _CHUNK
        yield b"}".rjust(_CHUNK)

    headers = {"Content-Length": str(_SIZE)}
    return Response(chunks(), content_type="application/json", headers=headers)


def bomb() -> Response:
    """20 MB that are 20 kB on the wire."""
    headers = {"Content-Encoding": "gzip"}
    return Response(_packed(), content_type="application/json", headers=headers)


@cache
def _packed() -> bytes:
    return gzip.compress(b"{" + b" " * _SIZE + b"}")


def endless(ehr: EHRSimulator) -> Response:
    """Return an endless body that is sent byte by byte, five per second."""

    def drip() -> Iterator[bytes]:
        yield b"{"
        while ehr.wait(0.2):
            yield b" "

    return Response(drip(), content_type="application/json")


def pause(exchange: Exchange) -> None:
    """Wait as long as a slow server may take; then let it respond."""
    exchange.ehr.wait(PAUSE)


def late(exchange: Exchange) -> Response:
    """Respond when nobody waits any longer."""
    exchange.ehr.wait(LATE)
    return html("Too late", 504)


@cache
def stranger() -> rsa.RSAPrivateKey:
    """A key that is not the EHR's."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
