"""
Faults that are the same wherever an app requests JSON.

A function for each exchange would say the same six times over, so these are registered
in a loop; the names begin with the exchange, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import replaces

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


# Of a success, the body of a revocation has no meaning, and these have the status 200.
_MEANINGLESS = {
    ("revoke", what) for what in ("not_json", "not_utf8", "empty", "html_200")
}


for _exchange, _companions in _EXCHANGES.items():
    for _what, (_description, _answer) in _FAULTS.items():
        if (_exchange, _what) in _MEANINGLESS:
            continue
        # The CapabilityStatement still names the endpoints, as those of old servers do.
        _is_old = (_exchange, _what) == ("discovery", "404")
        replaces(
            _exchange,
            f"{_exchange}_{_what}",
            "tolerate" if _is_old else "refuse",
            _description,
            *_companions,
        )(_answer)
    replaces(
        _exchange,
        f"{_exchange}_after_3_s",
        "tolerate",
        f"the response takes {answers.PAUSE} s",
        *_companions,
    )(answers.pause)
