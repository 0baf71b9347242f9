"""Faults of the ID token; many are the OpenID Foundation's tests of relying parties."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from django_smart.testing.simulator.faults import answers
from django_smart.testing.simulator.faults.registry import (
    Verdict,
    drafts,
    edits_json,
    leave_out,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange
    from django_smart.testing.simulator.id_tokens import IDTokenDraft

__all__: list[str] = []

_Build = Callable[["IDTokenDraft"], Any]

# Claim, what it is set to, and what an app does: each is a fault.
_VALUES: dict[str, tuple[Verdict, str, Any]] = {
    "empty_sub": ("refuse", "sub", ""),
    "number_sub": ("refuse", "sub", 1),
    "long_sub": ("refuse", "sub", "s" * 256),
    "text_exp": ("refuse", "exp", "tomorrow"),
    "huge_exp": ("refuse", "exp", 10**18),
    "text_iat": ("refuse", "iat", "now"),
    "number_aud": ("refuse", "aud", 1),
    "empty_aud": ("refuse", "aud", []),
    "number_nonce": ("refuse", "nonce", 1),
    "wrong_nonce": ("refuse", "nonce", "a-nonce-that-nobody-sent"),
    "wrong_azp": ("refuse", "azp", "another-client"),
    "fhir_user_wrong_type": ("refuse", "fhirUser", "Organization/1"),
    "fhir_user_no_id": ("refuse", "fhirUser", "Practitioner/"),
    "fhir_user_path": ("refuse", "fhirUser", "Practitioner/../Patient/1"),
    "fhir_user_number": ("refuse", "fhirUser", 1),
    "fhir_user_relative": ("tolerate", "fhirUser", "Practitioner/1"),
}
_MISSING: dict[str, Verdict] = {
    "iss": "refuse",
    "sub": "refuse",
    "aud": "refuse",
    "exp": "refuse",
    "iat": "refuse",
    "nonce": "refuse",
    # Whoever it is has no resource at this server.
    "fhirUser": "tolerate",
}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _write(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """Header and claims; PyJWT refuses to make some of what is wanted here."""
    parts = (json.dumps(part).encode() for part in (header, claims))
    return ".".join(map(_base64url, parts))


def _write_unsigned(draft: IDTokenDraft, algorithm: str) -> str:
    header = {"alg": algorithm, "typ": "JWT", "kid": draft.kid}
    return _write(header, draft.claims)


def _sign_hs256(draft: IDTokenDraft, secret: bytes) -> str:
    signed = _write_unsigned(draft, "HS256")
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_base64url(mac)}"


def _sign_with_client_secret(draft: IDTokenDraft) -> str:
    secret = draft.ehr.clients[draft.client_id].client_secret or draft.client_id
    return _sign_hs256(draft, secret.encode())


def _sign_with_public_key(draft: IDTokenDraft) -> str:
    public_key = draft.key.private_key.public_key()
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _sign_hs256(draft, pem)


def _sign_with_stranger(draft: IDTokenDraft, name: str, value: Any) -> str:
    """Sign with a key of nobody's, which the header brings or points to."""
    header = {"kid": draft.kid, name: value}
    return jwt.encode(draft.claims, answers.stranger(), "RS256", headers=header)


def _bring_own_key(draft: IDTokenDraft) -> str:
    jwk = RSAAlgorithm.to_jwk(answers.stranger().public_key(), as_dict=True)
    return _sign_with_stranger(draft, "jwk", {**jwk, "kid": draft.kid})


def _spoil_claims(draft: IDTokenDraft) -> str:
    header, _, signature = draft.encode().split(".")
    return f"{header}.abcde.{signature}"


def _spoil_signature(draft: IDTokenDraft) -> str:
    signed, _, signature = draft.encode().rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[0] ^= 1
    return f"{signed}.{_base64url(bytes(raw))}"


def _shift(draft: IDTokenDraft, seconds: int) -> dict[str, Any]:
    return {name: draft.claims[name] + seconds for name in ("exp", "iat")}


# In words, and the token that each sends.
_TOKENS: dict[str, tuple[str, _Build]] = {
    "malformed": ("no JWT", lambda _: "this-is-not-a-token"),
    "two_parts": (
        "a JWT without its signature",
        lambda one: one.encode().rpartition(".")[0],
    ),
    "bad_base64": ("a part with an impossible base64url length", _spoil_claims),
    "encrypted": (
        "five parts, like an encrypted JWT",
        lambda one: f"{one.encode()}.YQ.Yg",
    ),
    "not_json": (
        "claims that are not JSON, with a valid signature",
        lambda one: jwt.PyJWS().encode(
            b"not json", one.key.private_key, one.key.algorithm, {"kid": one.kid}
        ),
    ),
    "bad_signature": ("the signature is invalid", _spoil_signature),
    "alg_none": ("alg is none", lambda one: f"{_write_unsigned(one, 'none')}."),
    "alg_none_signed": (
        "alg is none, with a signature",
        lambda one: f"{_write_unsigned(one, 'none')}.{_base64url(b'signature')}",
    ),
    "hs256_secret": ("HS256 with the client's secret", _sign_with_client_secret),
    "hs256_public_key": (
        "HS256 with the published key as secret",
        _sign_with_public_key,
    ),
    "number_kid": (
        "kid is a number",
        lambda one: (
            f"{_write({'alg': 'RS256', 'kid': 1}, one.claims)}"
            f".{_base64url(b'signature')}"
        ),
    ),
    "jwk_header": ("signed by the key in its own header", _bring_own_key),
    "jku_header": (
        "the header says where its keys are: jku",
        lambda one: _sign_with_stranger(one, "jku", f"{one.ehr.foreign_origin}/jwks"),
    ),
    "x5u_header": (
        "the header says where its keys are: x5u",
        lambda one: _sign_with_stranger(one, "x5u", f"{one.ehr.foreign_origin}/cert"),
    ),
    "crit_header": (
        "a critical header parameter",
        lambda one: jwt.encode(
            one.claims,
            one.key.private_key,
            one.key.algorithm,
            headers={"kid": one.kid, "crit": ["exp"], "exp": 1},
        ),
    ),
}
# What an app does, in words, the kid that each names, and the faults that go with it.
_KIDS: dict[str, tuple[Verdict, str, _Build, tuple[str, ...]]] = {
    "kid_space": (
        "refuse",
        "the key's kid followed by a space",
        lambda one: f"{one.kid} ",
        (),
    ),
    "unknown_kid": (
        "refuse",
        "kid is not in the key set",
        lambda _: "a-key-that-nobody-published",
        (),
    ),
    "kid_of_another_key": (
        "refuse",
        "kid of another key",
        lambda _: "another-key",
        ("jwks_second_key",),
    ),
    "missing_kid_of_several": (
        "refuse",
        "no kid, and several published keys",
        lambda _: None,
        ("jwks_second_key",),
    ),
    "missing_kid": ("tolerate", "no kid, and one published key", lambda _: None, ()),
}
# What an app does, in words, and the claims that each changes.
_CLAIMS: dict[str, tuple[Verdict, str, _Build]] = {
    "too_long": ("refuse", "100,000 characters", lambda _: {"padding": "p" * 100_000}),
    "wrong_iss": (
        "refuse",
        "iss of another server",
        lambda one: {"iss": one.ehr.foreign_origin},
    ),
    "iss_slash": (
        "refuse",
        "iss with a trailing slash",
        lambda one: {"iss": f"{one.claims['iss']}/"},
    ),
    "wrong_aud": (
        "refuse",
        "aud is another client",
        lambda one: {"aud": f"not-{one.client_id}"},
    ),
    "several_aud": (
        "refuse",
        "several audiences without azp",
        lambda one: {"aud": [one.client_id, "another-client"]},
    ),
    "several_aud_wrong_azp": (
        "refuse",
        "several audiences; azp is another client",
        lambda one: {"aud": [one.client_id, "another-client"], "azp": "another-client"},
    ),
    "several_aud_azp": (
        "tolerate",
        "several audiences; azp is this client",
        lambda one: {"aud": [one.client_id, "another-client"], "azp": one.client_id},
    ),
    "aud_list": (
        "tolerate",
        "aud is a list with one element",
        lambda one: {"aud": [one.claims["aud"]]},
    ),
    "expired": ("refuse", "exp was an hour ago", lambda one: _shift(one, -3900)),
    "issued_in_future": ("refuse", "iat is in an hour", lambda one: _shift(one, 3600)),
    "not_valid_yet": (
        "refuse",
        "nbf is in an hour",
        lambda one: {"nbf": one.claims["iat"] + 3600},
    ),
    "clock_skew": (
        "tolerate",
        "issued by a clock that is 50 s fast",
        lambda one: _shift(one, 50),
    ),
    "just_expired": (
        "tolerate",
        "exp was 50 s ago",
        lambda one: {"exp": one.claims["iat"] - 50, "iat": one.claims["iat"] - 350},
    ),
    "fhir_user_other_host": (
        "tolerate",
        "fhirUser at another server",
        lambda one: {"fhirUser": f"{one.ehr.foreign_origin}/fhir/Practitioner/1"},
    ),
    "fhir_user_as_profile": (
        "tolerate",
        "profile instead of fhirUser",
        lambda one: {"profile": one.claims.pop("fhirUser", None)},
    ),
}


def _set(member: str, build: _Build) -> Callable[[IDTokenDraft], None]:
    return lambda draft: setattr(draft, member, build(draft))


def _update_claims(build: _Build) -> Callable[[IDTokenDraft], None]:
    return lambda draft: draft.claims.update(build(draft))


def _put(claim: str, value: Any) -> Callable[[IDTokenDraft], None]:
    return _update_claims(lambda _: {claim: value})


def _leave_out(claim: str) -> Callable[[IDTokenDraft], None]:
    return lambda draft: draft.claims.pop(claim, None)


for _name, (_verdict, _claim, _value) in _VALUES.items():
    _shown = repr(_value) if len(repr(_value)) < 40 else "too long"
    drafts(f"id_token_{_name}", _verdict, f"{_claim} is {_shown}")(_put(_claim, _value))
for _claim, _verdict in _MISSING.items():
    drafts(f"id_token_missing_{_claim.lower()}", _verdict, f"no {_claim}")(
        _leave_out(_claim)
    )
for _name, (_words, _build) in _TOKENS.items():
    drafts(f"id_token_{_name}", "refuse", _words)(_set("encoded", _build))
for _name, (_verdict, _words, _build, _companions) in _KIDS.items():
    drafts(f"id_token_{_name}", _verdict, _words, *_companions)(_set("kid", _build))
for _name, (_verdict, _words, _build) in _CLAIMS.items():
    drafts(f"id_token_{_name}", _verdict, _words)(_update_claims(_build))
edits_json(
    "id_token_absent",
    "refuse",
    "no id_token, though openid was granted",
    exchange="token",
)(leave_out("id_token"))


@edits_json("id_token_object", "refuse", "id_token is a JSON object", exchange="token")
def _object(exchange: Exchange, answer: dict[str, Any]) -> None:
    if "id_token" in answer:
        answer["id_token"] = {"jwt": answer["id_token"]}
