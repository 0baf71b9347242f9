"""Faults of the response to a backend service, which has no user to ask again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    Verdict,
    edits_answer,
    fail_each,
    leave_out_each,
    put_each,
)

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []

_EXCHANGE = "client_credentials"

_ERRORS = {
    "invalid_client": 401,
    "invalid_request": 400,
    "invalid_scope": 400,
    "unauthorized_client": 400,
    "unsupported_grant_type": 400,
}
# Member, what it is set to, and what an app does: each is a fault.
_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "empty_access_token": ("refuse", "access_token", ""),
    "broken_access_token": ("refuse", "access_token", "a token\r\nwith: lines"),
    "wrong_token_type": ("refuse", "token_type", "mac"),
    "negative_expires_in": ("refuse", "expires_in", -300),
    "huge_expires_in": ("refuse", "expires_in", 10**19),
    "nan_expires_in": ("refuse", "expires_in", float("nan")),
    "text_expires_in": ("refuse", "expires_in", "five minutes"),
    "list_scope": ("refuse", "scope", ["system/Patient.rs"]),
    "lower_case_bearer": ("tolerate", "token_type", "bearer"),
    "expires_in_string": ("tolerate", "expires_in", "300"),
    "scope_absent": ("tolerate", "scope", None),
    "scope_narrower": ("tolerate", "scope", "system/Patient.rs"),
    "unasked_refresh_token": ("tolerate", "refresh_token", "nobody-asked-for-it"),
}
_MISSING: dict[str, Verdict] = {
    "access_token": "refuse",
    "token_type": "refuse",
    "expires_in": "tolerate",
}

fail_each(_EXCHANGE, _ERRORS)
put_each(_EXCHANGE, _VALUES)
leave_out_each(_EXCHANGE, _MISSING)


@edits_answer(
    _EXCHANGE, "client_credentials_duplicate_member", "refuse", "two access tokens"
)
def _duplicate_member(exchange: Exchange, response: Response) -> Response:
    return answers.with_duplicate(response.get_json(), "access_token", "another-one")
