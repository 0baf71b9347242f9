"""
Faults that are the same, or only another status, at several exchanges.

A function for each exchange would say the same six times over, so these are registered
from tables; the names begin with the exchange, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    edits,
    edits_json,
    replaces,
    send,
)

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []

_Answer = Callable[["Exchange"], "Response"]

# Exchange, and the faults that lead an app there, if it does not go there anyway.
_EXCHANGES: dict[str, tuple[str, ...]] = {
    "discovery": (),
    "openid": ("discovery_missing_jwks_uri",),
    "jwks": (),
    "token": (),
    "refresh": (),
    "client_credentials": (),
    "introspect": (),
    "revoke": (),
    "fhir": (),
}
_FAULTS: dict[str, tuple[str, _Answer]] = {
    "not_json": ("truncated JSON", lambda _: answers.invalid_json()),
    "not_utf8": (
        "JSON in an encoding other than UTF-8",
        lambda _: answers.json_text('{"a": "\xe9"}'.encode("latin-1")),
    ),
    "empty": ("status 200 without a body", lambda _: answers.json_text("")),
    "html_200": (
        "a web page with status 200",
        lambda _: answers.html("Please sign in", 200),
    ),
    "404": (
        "a web page with status 404",
        lambda _: answers.html("Not found", 404),
    ),
    "500": (
        "a web page with status 500",
        lambda _: answers.html("Server error", 500),
    ),
    "redirect_302": ("302 to another host", lambda one: answers.away(one, 302)),
    "redirect_307": ("307 to another host", lambda one: answers.away(one, 307)),
    "too_large": ("a body of 20 MB", lambda _: answers.too_large()),
    "bomb": ("20 MB, packed into 20 kB", lambda _: answers.bomb()),
    "endless": (
        "a body that never ends, byte by byte",
        lambda one: answers.endless(one.ehr),
    ),
    "late": (f"a response after {answers.LATE} s", answers.late),
}
# Exchange, what follows it in the name, status, Retry-After, and in words.
_BUSY: list[tuple[str, str, int, int | str | None, str]] = [
    ("token", "429", 429, 1, "429: a code must not be sent again"),
    ("token", "503", 503, None, "503: a code must not be sent again"),
    ("refresh", "429", 429, 120, "429, Retry-After 120 s: not final"),
    ("refresh", "429_for_ever", 429, answers.FOR_EVER, "429, Retry-After too large"),
    ("refresh", "503", 503, None, "503 every time: not final"),
    ("client_credentials", "429", 429, 120, "429, Retry-After 120 s"),
    ("client_credentials", "503", 503, None, "always 503"),
    ("introspect", "429", 429, 120, "429, Retry-After 120 s"),
    ("introspect", "503", 503, 1, "503, Retry-After 1 s"),
    ("revoke", "429", 429, 120, "429, Retry-After 120 s"),
    ("revoke", "503", 503, 1, "503, Retry-After 1 s: tried again later"),
    ("fhir", "429", 429, 120, "429, Retry-After 120 s"),
    ("fhir", "429_for_ever", 429, answers.FOR_EVER, "429, Retry-After too large"),
    ("fhir", "503", 503, None, "always 503, without Retry-After"),
]
# What the first request after the fault was activated gets, where an app tries again.
_BUSY_ONCE = [(503, 1, "Retry-After 1 s"), (429, None, "no Retry-After")]


# Of a success, the body of a revocation has no meaning, and these have the status 200.
_MEANINGLESS = {
    ("revoke", what) for what in ("not_json", "not_utf8", "empty", "html_200")
}


def _send_once(name: str, answer: _Answer, exchange: Exchange) -> Response | None:
    return answer(exchange) if exchange.ehr.faults.strikes(name) == 1 else None


for _exchange, _companions in _EXCHANGES.items():
    for _what, (_description, _answer) in _FAULTS.items():
        if (_exchange, _what) in _MEANINGLESS:
            continue
        replaces(f"{_exchange}_{_what}", "refuse", _description, *_companions)(_answer)
    replaces(
        f"{_exchange}_after_3_s",
        "tolerate",
        f"the response takes {answers.PAUSE} s",
        *_companions,
    )(answers.pause)
for _exchange, _what, _status, _retry_after, _description in _BUSY:
    replaces(f"{_exchange}_{_what}", "refuse", _description)(
        send(answers.busy, _status, _retry_after)
    )
for _exchange in ("refresh", "client_credentials", "fhir"):
    for _status, _seconds, _words in _BUSY_ONCE:
        _name = f"{_exchange}_{_status}_once"
        replaces(_name, "tolerate", f"{_status}, {_words}, the first time")(
            partial(_send_once, _name, send(answers.busy, _status, _seconds))
        )
for _exchange in ("discovery", "token", "client_credentials", "introspect", "fhir"):
    _noun = "document" if _exchange == "discovery" else "response"
    edits_json(f"{_exchange}_array", "refuse", f"the {_noun} in an array")(
        lambda _, answer: [answer]
    )
for _exchange in ("discovery", "token", "fhir"):
    _name = f"{_exchange}_deep_nesting"
    edits(_name, "refuse", "100,000 nested lists")(
        lambda _, response: answers.deeply_nested(response.get_json(force=True))
    )
