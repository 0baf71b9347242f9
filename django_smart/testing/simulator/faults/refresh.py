"""
Faults of the response to a refresh.

All except ``invalid_grant``, and those whose tokens are for another user or patient,
are temporary: the app must keep its refresh token. If the request does not reach the
server, the refresh token has not been used, either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt

from django_smart.testing.simulator.faults.registry import (
    Verdict,
    edits_json,
    fail_with,
    name_another_patient,
    narrow_scope,
    put_each,
    replaces,
    widen_scope,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__: list[str] = []

_ERRORS = {
    "invalid_grant": (400, "the error invalid_grant: final"),
    "invalid_client": (401, "the error invalid_client: not final"),
    "invalid_request": (400, "the error invalid_request: not final"),
    "invalid_scope": (400, "the error invalid_scope: not final"),
    "unauthorized_client": (400, "the error unauthorized_client: not final"),
}
# Member, what it is set to, and what an app does: each is a fault.
_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "empty_access_token": ("refuse", "access_token", ""),
    "wrong_token_type": ("refuse", "token_type", "mac"),
    "huge_expires_in": ("refuse", "expires_in", 10**19),
    "path_patient": ("refuse", "patient", "../Practitioner/1"),
    "number_patient": ("refuse", "patient", 42),
    "other_encounter": ("refuse", "encounter", "another-encounter"),
    "scope_absent": ("tolerate", "scope", None),
    "patient_absent": ("tolerate", "patient", None),
}


def _id_token(exchange: Exchange, **changes: Any) -> str:
    """An ID token as it may come with a refresh (OpenID Connect Core section 12.2)."""
    ehr = exchange.ehr
    grant = ehr.store.refresh_tokens[dict(exchange.form)["refresh_token"]].grant
    now = int(ehr.clock())
    claims = {
        "iss": ehr.issuer,
        "sub": ehr.users[grant.user or ""].subject,
        "aud": grant.client_id,
        "iat": now,
        "exp": now + 300,
        **changes,
    }
    key = ehr.signing_keys[-1]
    return jwt.encode(claims, key.private_key, key.algorithm, headers={"kid": key.kid})


for _error, (_status, _description) in _ERRORS.items():
    replaces("refresh", f"refresh_{_error}", "refuse", _description)(
        fail_with(_error, _status)
    )
put_each("refresh", _VALUES)
edits_json(
    "refresh", "refresh_other_patient", "refuse", "patient names another patient"
)(name_another_patient)
edits_json(
    "refresh",
    "refresh_wider_scope",
    "tolerate",
    "scopes that were not granted originally",
)(widen_scope)
edits_json("refresh", "refresh_narrower_scope", "tolerate", "a scope is missing")(
    narrow_scope
)


@edits_json("refresh", "refresh_other_subject", "refuse", "an ID token of another user")
def _other_subject(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["id_token"] = _id_token(exchange, sub="somebody-else")


@edits_json("refresh", "refresh_id_token", "tolerate", "an ID token of the same user")
def _same_subject(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer["id_token"] = _id_token(exchange)


@edits_json(
    "refresh",
    "refresh_bad_id_token",
    "tolerate",
    "an ID token with an invalid signature",
)
def _bad_id_token(exchange: Exchange, answer: dict[str, Any]) -> None:
    signed = _id_token(exchange, sub="somebody-else").rpartition(".")[0]
    answer["id_token"] = f"{signed}.c2lnbmF0dXJl"


@edits_json(
    "refresh",
    "refresh_no_refresh_token",
    "tolerate",
    "the old refresh token remains valid",
)
def _no_refresh_token(exchange: Exchange, answer: dict[str, Any]) -> None:
    tokens = exchange.ehr.store.refresh_tokens
    old = tokens[dict(exchange.form)["refresh_token"]]
    if answer["refresh_token"] != old.value:
        del tokens[answer["refresh_token"]]
    old.used = False
    del answer["refresh_token"]
