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


for _error in _ERRORS:
    redirects(f"authorize_{_error}", "refuse", f"the error {_error}")(
        _fail_with(_error)
    )


@redirects(
    "authorize_error_markup", "refuse", "an error with markup in its description"
)
def _error_markup(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    description = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    return _failed(pairs, "server_error", description)


@redirects("authorize_error_malformed", "refuse", "an error of control characters")
def _error_malformed(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return _failed(pairs, "server\nerror")


@redirects("authorize_error_empty", "refuse", "an empty error")
def _error_empty(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return _failed(pairs, "")


@redirects("authorize_code_and_error", "refuse", "code together with error")
def _code_and_error(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("error", "server_error")]


@redirects("authorize_missing_code", "refuse", "neither code nor error")
def _missing_code(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return _without(pairs, "code")


@redirects("authorize_empty_code", "refuse", "an empty code")
def _empty_code(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [("code", ""), *_without(pairs, "code")]


@redirects("authorize_code_twice", "refuse", "two codes")
def _code_twice(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("code", "another-code")]


@redirects("authorize_long_code", "refuse", "a code of 100,000 characters")
def _long_code(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [("code", "c" * 100_000), *_without(pairs, "code")]


@redirects("authorize_malformed_code", "refuse", "a code with control characters")
def _malformed_code(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [("code", "a\r\nb\0c"), *_without(pairs, "code")]


@redirects("authorize_long_parameter", "refuse", "a parameter of 100,000 characters")
def _long_parameter(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("session_state", "s" * 100_000)]


@redirects("authorize_parameter_twice", "refuse", "a repeated parameter")
def _parameter_twice(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("iss", ehr.issuer), ("iss", ehr.foreign_origin)]


@redirects("authorize_missing_state", "refuse", "no state")
def _missing_state(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return _without(pairs, "state")


@redirects("authorize_empty_state", "refuse", "an empty state")
def _empty_state(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*_without(pairs, "state"), ("state", "")]


@redirects("authorize_state_twice", "refuse", "two states")
def _state_twice(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("state", "another-state")]


@redirects("authorize_unknown_state", "refuse", "an unknown state")
def _unknown_state(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*_without(pairs, "state"), ("state", "a-state-that-nobody-sent")]


@redirects("authorize_long_state", "refuse", "a state of 100,000 characters")
def _long_state(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*_without(pairs, "state"), ("state", "s" * 100_000)]


@redirects("authorize_wrong_iss", "refuse", "iss of another server (RFC 9207)")
def _wrong_iss(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*_without(pairs, "iss"), ("iss", ehr.foreign_origin)]


@redirects("authorize_missing_iss", "refuse", "no iss, although discovery promised it")
def _missing_iss(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return _without(pairs, "iss")


@redirects("authorize_unknown_parameters", "tolerate", "unknown parameters")
def _unknown_parameters(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("session_state", "abc.def"), ("ü", "")]
