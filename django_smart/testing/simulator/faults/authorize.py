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
_MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"
# The parameter that is left out, what is added, and in words.
_CHANGES: dict[str, tuple[str, Pairs, str]] = {
    **{each: ("code", [("error", each)], f"the error {each}") for each in _ERRORS},
    "error_malformed": (
        "code",
        [("error", "server\nerror")],
        "an error of control characters",
    ),
    "error_empty": ("code", [("error", "")], "an empty error"),
    "error_markup": (
        "code",
        [("error", "server_error"), ("error_description", _MARKUP)],
        "an error with markup in its description",
    ),
    "missing_code": ("code", [], "neither code nor error"),
    "empty_code": ("code", [("code", "")], "an empty code"),
    "long_code": ("code", [("code", "c" * 100_000)], "a code of 100,000 characters"),
    "malformed_code": (
        "code",
        [("code", "a\r\nb\0c")],
        "a code with control characters",
    ),
    "missing_state": ("state", [], "no state"),
    "empty_state": ("state", [("state", "")], "an empty state"),
    "unknown_state": (
        "state",
        [("state", "a-state-that-nobody-sent")],
        "an unknown state",
    ),
    "long_state": (
        "state",
        [("state", "s" * 100_000)],
        "a state of 100,000 characters",
    ),
    "missing_iss": ("iss", [], "no iss, although discovery promised it"),
    "code_and_error": ("", [("error", "server_error")], "code together with error"),
    "code_twice": ("", [("code", "another-code")], "two codes"),
    "state_twice": ("", [("state", "another-state")], "two states"),
    "long_parameter": (
        "",
        [("session_state", "s" * 100_000)],
        "a parameter of 100,000 characters",
    ),
}


def _replace(name: str, added: Pairs) -> Callable[[EHRSimulator, Pairs], Pairs]:
    return lambda _, pairs: [*(pair for pair in pairs if pair[0] != name), *added]


for _name, (_left_out, _added, _words) in _CHANGES.items():
    redirects(f"authorize_{_name}", "refuse", _words)(_replace(_left_out, _added))


@redirects("authorize_parameter_twice", "refuse", "a repeated parameter")
def _parameter_twice(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("iss", ehr.issuer), ("iss", ehr.foreign_origin)]


@redirects("authorize_wrong_iss", "refuse", "iss of another server (RFC 9207)")
def _wrong_iss(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return _replace("iss", [("iss", ehr.foreign_origin)])(ehr, pairs)


@redirects("authorize_unknown_parameters", "tolerate", "unknown parameters")
def _unknown_parameters(ehr: EHRSimulator, pairs: Pairs) -> Pairs:
    return [*pairs, ("session_state", "abc.def"), ("ü", "")]
