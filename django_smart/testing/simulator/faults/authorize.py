"""Faults of the authorization response."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from django_smart.testing.simulator.faults.registry import redirects

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator

__all__: list[str] = []

Pairs = list[tuple[str, str]]

# RFC 6749 section 4.1.2.1 and OpenID Connect Core section 3.1.2.6.
_ERRORS = (
    "access_denied",
    "invalid_request",
    "invalid_scope",
    "login_required",
    "server_error",
    "temporarily_unavailable",
    "unauthorized_client",
    "unsupported_response_type",
)
# Parameter, what it is set to (or that it is left out), and in words.
_VALUES: dict[str, tuple[str, str | None, str]] = {
    "missing_code": ("code", None, "neither code nor error"),
    "empty_code": ("code", "", "an empty code"),
    "long_code": ("code", "c" * 100_000, "a code of 100,000 characters"),
    "malformed_code": ("code", "a\r\nb\0c", "a code with control characters"),
    "missing_state": ("state", None, "no state"),
    "empty_state": ("state", "", "an empty state"),
    "unknown_state": ("state", "a-state-that-nobody-sent", "an unknown state"),
    "long_state": ("state", "s" * 100_000, "a state of 100,000 characters"),
    "missing_iss": ("iss", None, "no iss, although discovery promised it"),
}
# What is added to the response, and in words.
_ADDED = {
    "code_and_error": ("error", "server_error", "code together with error"),
    "code_twice": ("code", "another-code", "two codes"),
    "state_twice": ("state", "another-state", "two states"),
    "long_parameter": (
        "session_state",
        "s" * 100_000,
        "a parameter of 100,000 characters",
    ),
}


def _without(pairs: Pairs, *names: str) -> Pairs:
    return [pair for pair in pairs if pair[0] not in names]


def _failed(pairs: Pairs, error: str, description: str = "") -> Pairs:
    """The answer with an error in place of the code."""
    given = [("error", error)]
    if description:
        given.append(("error_description", description))
    return [*given, *_without(pairs, "code", "error", "error_description")]


def _fail_with(error: str) -> Callable[[EHRSimulator, Pairs], Pairs]:
    return lambda _, pairs: _failed(pairs, error)


def _put(name: str, value: str | None) -> Callable[[EHRSimulator, Pairs], Pairs]:
    given = [] if value is None else [(name, value)]
    return lambda _, pairs: [*_without(pairs, name), *given]


def _add(name: str, value: str) -> Callable[[EHRSimulator, Pairs], Pairs]:
    return lambda _, pairs: [*pairs, (name, value)]


for _error in _ERRORS:
    redirects(f"authorize_{_error}", "refuse", f"the error {_error}")(
        _fail_with(_error)
    )
for _name, (_parameter, _value, _words) in _VALUES.items():
    redirects(f"authorize_{_name}", "refuse", _words)(_put(_parameter, _value))
for _name, (_parameter, _further, _words) in _ADDED.items():
    redirects(f"authorize_{_name}", "refuse", _words)(_add(_parameter, _further))
redirects("authorize_error_malformed", "refuse", "an error of control characters")(
    _fail_with("server\nerror")
)
redirects("authorize_error_empty", "refuse", "an empty error")(_fail_with(""))


@redirects(
    "authorize_error_markup", "refuse", "an error with markup in its description"
)
def _error_markup(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    description = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    return _failed(pairs, "server_error", description)


@redirects("authorize_parameter_twice", "refuse", "a repeated parameter")
def _parameter_twice(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("iss", ehr.issuer), ("iss", ehr.foreign_origin)]


@redirects("authorize_wrong_iss", "refuse", "iss of another server (RFC 9207)")
def _wrong_iss(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*_without(pairs, "iss"), ("iss", ehr.foreign_origin)]


@redirects("authorize_unknown_parameters", "tolerate", "unknown parameters")
def _unknown_parameters(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("session_state", "abc.def"), ("ü", "")]
