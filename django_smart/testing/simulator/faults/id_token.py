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
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange
    from django_smart.testing.simulator.id_tokens import IDTokenDraft

__all__: list[str] = []

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


def _unsigned(draft: IDTokenDraft, algorithm: str) -> str:
    """Header and claims; PyJWT refuses to make some of what is wanted here."""
    header = {"alg": algorithm, "typ": "JWT", "kid": draft.kid}
    parts = (json.dumps(part).encode() for part in (header, draft.claims))
    return ".".join(map(_base64url, parts))


def _sign_hs256(draft: IDTokenDraft, secret: bytes) -> None:
    signed = _unsigned(draft, "HS256")
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    draft.encoded = f"{signed}.{_base64url(mac)}"


def _sign_with_stranger(
    draft: IDTokenDraft, build_header: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Sign with a key of nobody's, which the header brings or points to."""
    stranger = answers.stranger()
    jwk = RSAAlgorithm.to_jwk(stranger.public_key(), as_dict=True)
    header = {"kid": draft.kid, **build_header({**jwk, "kid": draft.kid})}
    draft.encoded = jwt.encode(draft.claims, stranger, "RS256", headers=header)


def _put(claim: str, value: Any) -> Callable[[IDTokenDraft], None]:
    def change(draft: IDTokenDraft) -> None:
        draft.claims[claim] = value

    return change


def _leave_out(claim: str) -> Callable[[IDTokenDraft], None]:
    def change(draft: IDTokenDraft) -> None:
        draft.claims.pop(claim, None)

    return change


for _name, (_verdict, _claim, _value) in _VALUES.items():
    _shown = repr(_value) if len(repr(_value)) < 40 else "too long"
    drafts(f"id_token_{_name}", _verdict, f"{_claim} is {_shown}")(_put(_claim, _value))
for _claim, _verdict in _MISSING.items():
    drafts(f"id_token_missing_{_claim.lower()}", _verdict, f"no {_claim}")(
        _leave_out(_claim)
    )


@edits_json(
    "token", "id_token_absent", "refuse", "no id_token, though openid was granted"
)
def _absent(exchange: Exchange, answer: dict[str, Any]) -> None:
    answer.pop("id_token", None)


@edits_json("token", "id_token_object", "refuse", "id_token is a JSON object")
def _object(exchange: Exchange, answer: dict[str, Any]) -> None:
    if "id_token" in answer:
        answer["id_token"] = {"jwt": answer["id_token"]}


# Form


@drafts("id_token_malformed", "refuse", "no JWT")
def _malformed(draft: IDTokenDraft) -> None:
    draft.encoded = "this-is-not-a-token"


@drafts("id_token_two_parts", "refuse", "a JWT without its signature")
def _two_parts(draft: IDTokenDraft) -> None:
    draft.encoded = draft.encode().rpartition(".")[0]


@drafts("id_token_bad_base64", "refuse", "a part with an impossible base64url length")
def _bad_base64(draft: IDTokenDraft) -> None:
    header, _, signature = draft.encode().split(".")
    draft.encoded = f"{header}.abcde.{signature}"


@drafts("id_token_encrypted", "refuse", "five parts, like an encrypted JWT")
def _encrypted(draft: IDTokenDraft) -> None:
    draft.encoded = f"{draft.encode()}.YQ.Yg"


@drafts(
    "id_token_not_json", "refuse", "claims that are not JSON, with a valid signature"
)
def _not_json(draft: IDTokenDraft) -> None:
    draft.encoded = jwt.PyJWS().encode(
        b"not json", draft.key.private_key, draft.key.algorithm, {"kid": draft.kid}
    )


@drafts("id_token_too_long", "refuse", "100,000 characters")
def _too_long(draft: IDTokenDraft) -> None:
    draft.claims["padding"] = "p" * 100_000


# Signature


@drafts("id_token_bad_signature", "refuse", "the signature is invalid")
def _bad_signature(draft: IDTokenDraft) -> None:
    signed, _, signature = draft.encode().rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[0] ^= 1
    draft.encoded = f"{signed}.{_base64url(bytes(raw))}"


@drafts("id_token_alg_none", "refuse", "alg is none")
def _alg_none(draft: IDTokenDraft) -> None:
    draft.encoded = _unsigned(draft, "none") + "."


@drafts("id_token_alg_none_signed", "refuse", "alg is none, with a signature")
def _alg_none_signed(draft: IDTokenDraft) -> None:
    draft.encoded = f"{_unsigned(draft, 'none')}.{_base64url(b'signature')}"


@drafts("id_token_hs256_secret", "refuse", "HS256 with the client's secret")
def _hs256_secret(draft: IDTokenDraft) -> None:
    secret = draft.ehr.clients[draft.client_id].client_secret or draft.client_id
    _sign_hs256(draft, secret.encode())


@drafts("id_token_hs256_public_key", "refuse", "HS256 with the published key as secret")
def _hs256_public_key(draft: IDTokenDraft) -> None:
    public_key = draft.key.private_key.public_key()
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _sign_hs256(draft, pem)


@drafts("id_token_kid_space", "refuse", "the key's kid followed by a space")
def _kid_space(draft: IDTokenDraft) -> None:
    draft.kid = f"{draft.kid} "


@drafts("id_token_unknown_kid", "refuse", "kid is not in the key set")
def _unknown_kid(draft: IDTokenDraft) -> None:
    draft.kid = "a-key-that-nobody-published"


@drafts(
    "id_token_kid_of_another_key", "refuse", "kid of another key", "jwks_second_key"
)
def _kid_of_another_key(draft: IDTokenDraft) -> None:
    draft.kid = "another-key"


@drafts(
    "id_token_missing_kid_of_several",
    "refuse",
    "no kid, and several published keys",
    "jwks_second_key",
)
def _missing_kid_of_several(draft: IDTokenDraft) -> None:
    draft.kid = None


@drafts("id_token_number_kid", "refuse", "kid is a number")
def _number_kid(draft: IDTokenDraft) -> None:
    payload = json.dumps(draft.claims).encode()
    header = json.dumps({"alg": "RS256", "kid": 1}).encode()
    draft.encoded = ".".join(map(_base64url, (header, payload, b"signature")))


@drafts("id_token_jwk_header", "refuse", "signed by the key in its own header")
def _jwk_header(draft: IDTokenDraft) -> None:
    _sign_with_stranger(draft, lambda jwk: {"jwk": jwk})


@drafts("id_token_jku_header", "refuse", "the header says where its keys are: jku")
def _jku_header(draft: IDTokenDraft) -> None:
    _sign_with_stranger(draft, lambda _: {"jku": f"{draft.ehr.foreign_origin}/jwks"})


@drafts("id_token_x5u_header", "refuse", "the header says where its keys are: x5u")
def _x5u_header(draft: IDTokenDraft) -> None:
    _sign_with_stranger(draft, lambda _: {"x5u": f"{draft.ehr.foreign_origin}/cert"})


@drafts("id_token_crit_header", "refuse", "a critical header parameter")
def _crit_header(draft: IDTokenDraft) -> None:
    draft.encoded = jwt.encode(
        draft.claims,
        draft.key.private_key,
        draft.key.algorithm,
        headers={"kid": draft.kid, "crit": ["exp"], "exp": 1},
    )


@drafts("id_token_missing_kid", "tolerate", "no kid, and one published key")
def _missing_kid(draft: IDTokenDraft) -> None:
    draft.kid = None


# Claims


@drafts("id_token_wrong_iss", "refuse", "iss of another server")
def _wrong_iss(draft: IDTokenDraft) -> None:
    draft.claims["iss"] = draft.ehr.foreign_origin


@drafts("id_token_iss_slash", "refuse", "iss with a trailing slash")
def _iss_slash(draft: IDTokenDraft) -> None:
    draft.claims["iss"] += "/"


@drafts("id_token_wrong_aud", "refuse", "aud is another client")
def _wrong_aud(draft: IDTokenDraft) -> None:
    draft.claims["aud"] = f"not-{draft.client_id}"


@drafts("id_token_several_aud", "refuse", "several audiences without azp")
def _several_aud(draft: IDTokenDraft) -> None:
    draft.claims["aud"] = [draft.client_id, "another-client"]


@drafts(
    "id_token_several_aud_wrong_azp",
    "refuse",
    "several audiences; azp is another client",
)
def _several_aud_wrong_azp(draft: IDTokenDraft) -> None:
    draft.claims["aud"] = [draft.client_id, "another-client"]
    draft.claims["azp"] = "another-client"


@drafts("id_token_several_aud_azp", "tolerate", "several audiences; azp is this client")
def _several_aud_azp(draft: IDTokenDraft) -> None:
    draft.claims["aud"] = [draft.client_id, "another-client"]
    draft.claims["azp"] = draft.client_id


@drafts("id_token_aud_list", "tolerate", "aud is a list with one element")
def _aud_list(draft: IDTokenDraft) -> None:
    draft.claims["aud"] = [draft.claims["aud"]]


@drafts("id_token_expired", "refuse", "exp was an hour ago")
def _expired(draft: IDTokenDraft) -> None:
    draft.claims["exp"] -= 3900
    draft.claims["iat"] -= 3900


@drafts("id_token_issued_in_future", "refuse", "iat is in an hour")
def _issued_in_future(draft: IDTokenDraft) -> None:
    draft.claims["exp"] += 3600
    draft.claims["iat"] += 3600


@drafts("id_token_not_valid_yet", "refuse", "nbf is in an hour")
def _not_valid_yet(draft: IDTokenDraft) -> None:
    draft.claims["nbf"] = draft.claims["iat"] + 3600


@drafts("id_token_clock_skew", "tolerate", "issued by a clock that is 50 s fast")
def _clock_skew(draft: IDTokenDraft) -> None:
    draft.claims["iat"] += 50
    draft.claims["exp"] += 50


@drafts("id_token_just_expired", "tolerate", "exp was 50 s ago")
def _just_expired(draft: IDTokenDraft) -> None:
    draft.claims["exp"] = draft.claims["iat"] - 50
    draft.claims["iat"] -= 350


@drafts("id_token_fhir_user_other_host", "tolerate", "fhirUser at another server")
def _fhir_user_other_host(draft: IDTokenDraft) -> None:
    draft.claims["fhirUser"] = f"{draft.ehr.foreign_origin}/fhir/Practitioner/1"


@drafts("id_token_fhir_user_as_profile", "tolerate", "profile instead of fhirUser")
def _fhir_user_as_profile(draft: IDTokenDraft) -> None:
    draft.claims["profile"] = draft.claims.pop("fhirUser", None)
