"""ID tokens: the key that signed one, the claims it proves, the person it names."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.utils import base64url_decode

from django_smart.exceptions import (
    IDTokenClaimError,
    IDTokenSignatureError,
    InsecureURLError,
    MalformedIDTokenError,
    UnknownSigningKeyError,
)
from django_smart.protocol.json import parse_json_object
from django_smart.protocol.urls import normalize_base_url

__all__ = [
    "DEFAULT_ALGORITHMS",
    "FHIR_USER_TYPES",
    "MAX_ID_TOKEN_LENGTH",
    "SUPPORTED_ALGORITHMS",
    "IDTokenClaims",
    "VerificationKey",
    "parse_fhir_user",
    "select_verification_key",
    "validate_id_token",
]


#: The types a ``fhirUser`` may have (IDT-08).
FHIR_USER_TYPES = (
    "Patient",
    "Practitioner",
    "PractitionerRole",
    "RelatedPerson",
    "Person",
)

_REFERENCE = re.compile(
    rf"(?:{'|'.join(FHIR_USER_TYPES)})/(?!\.{{1,2}}\Z)[A-Za-z0-9\-.]{{1,64}}"
)


def parse_fhir_user(value: str, *, base_url: str) -> str:
    """
    Bring ``fhirUser`` to a reference relative to the FHIR base URL.

    Args:
        value: such as ``https://ehr.example.org/fhir/Practitioner/123`` or
            ``Practitioner/123``.
        base_url: the ``aud`` of the authorization request.

    Returns:
        such as ``Practitioner/123``.

    Raises:
        IDTokenClaimError: another server, another type than the five, or no id.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context", Scopes for requesting
    identity data.
    """
    try:
        base = normalize_base_url(base_url)
        reference = normalize_base_url(value).removeprefix(f"{base}/")
    except InsecureURLError:
        # Not absolute; or with a query or dot segments, which no reference has.
        reference = value
    if not _REFERENCE.fullmatch(reference):
        raise IDTokenClaimError(
            "Expected a fhirUser at the FHIR server of this launch, of the type "
            f"{' or '.join(FHIR_USER_TYPES)}.",
            claim="fhirUser",
        )
    return reference


VerificationKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

#: Algorithm to key type and curve.
SUPPORTED_ALGORITHMS: dict[str, tuple[str, str | None]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
}

_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 4096
# Base64url characters of that many bits after a zero byte, and of an exponent of 64.
_MAX_MODULUS_LENGTH = 684
_MAX_EXPONENT_LENGTH = 11


def select_verification_key(
    jwks: Mapping[str, Any], *, algorithm: str, kid: str | None
) -> VerificationKey:
    """
    The key of *jwks* that fits a signature's header: the first, so that a hostile set
    costs one verification.

    Args:
        jwks: JWK Set as received; keys for encryption, of another type or curve, bound
            to another algorithm, too weak, too large or broken are passed over.
        algorithm: one of ``SUPPORTED_ALGORITHMS``.
        kid: of the header; without one there must be no choice (IDT-06).

    Raises:
        UnknownSigningKeyError: no key fits; the set may be outdated.
        IDTokenSignatureError: there is no *kid*, and several keys fit.
    """
    candidates = (
        jwk
        for jwk in jwks.get("keys", ())
        if _fits(jwk, algorithm) and (kid is None or jwk.get("kid") == kid)
    )
    keys = (key for key in map(_load, candidates) if key is not None)
    key = next(keys, None)
    if key is None:
        raise UnknownSigningKeyError(
            f"No key of the server's JWK Set fits the ID token (alg {algorithm})."
        )
    if kid is None and next(keys, None) is not None:
        raise IDTokenSignatureError(
            "The ID token names no key, and several keys of the server fit."
        )
    return key


def _fits(jwk: Mapping[str, Any], algorithm: str) -> bool:
    """Whether *jwk* says that it verifies signatures of *algorithm*."""
    key_type, curve = SUPPORTED_ALGORITHMS[algorithm]
    key_ops = jwk.get("key_ops")
    return (
        jwk.get("kty") == key_type
        and (curve is None or jwk.get("crv") == curve)
        and jwk.get("use") in (None, "sig")
        and (key_ops is None or (isinstance(key_ops, list) and "verify" in key_ops))
        and jwk.get("alg") in (None, algorithm)
    )


def _load(jwk: Mapping[str, Any]) -> VerificationKey | None:
    """The public half of *jwk*, or ``None`` if it is broken, too weak or too large."""
    names = ("n", "e") if jwk["kty"] == "RSA" else ("crv", "x", "y")
    # Private members, which have no business in the set, are left behind.
    members = {name: jwk.get(name) for name in names}
    if not all(isinstance(value, str) for value in members.values()):
        return None
    try:
        if jwk["kty"] == "EC":
            ec_key = ECAlgorithm.from_jwk({"kty": "EC", **members})
            return ec_key if isinstance(ec_key, ec.EllipticCurvePublicKey) else None
        if (
            len(members["n"] or "") > _MAX_MODULUS_LENGTH
            or len(members["e"] or "") > _MAX_EXPONENT_LENGTH
        ):
            return None
        key = RSAAlgorithm.from_jwk({"kty": "RSA", **members})
    except (jwt.PyJWTError, ValueError):
        return None
    if (
        isinstance(key, rsa.RSAPublicKey)
        and _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS
    ):
        return key
    return None


#: RS256 is what servers have to support (IDT-06); never ``none``, never HMAC.
DEFAULT_ALGORITHMS = frozenset(SUPPORTED_ALGORITHMS)
#: Characters.
MAX_ID_TOKEN_LENGTH = 64 * 1024

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_MAX_SUBJECT_LENGTH = 255
# The last second of the year 9999.
_MAX_TIME = 253_402_300_799


@dataclass(frozen=True, kw_only=True, slots=True)
class IDTokenClaims:
    """
    Claims that were checked; ``repr`` shows the issuer alone.

    Attributes:
        audience: every audience; the client is one of them.
        fhir_user: relative reference such as ``Practitioner/123``, ``None`` if absent.
        expires_at, issued_at: aware datetimes.
        claims: all claims as sent.
    """

    issuer: str
    subject: str = field(repr=False)
    audience: tuple[str, ...] = field(repr=False)
    fhir_user: str | None = field(repr=False)
    expires_at: datetime = field(repr=False)
    issued_at: datetime = field(repr=False)
    nonce: str | None = field(repr=False)
    claims: Mapping[str, Any] = field(repr=False)


def validate_id_token(
    token: str,
    *,
    jwks: Mapping[str, Any],
    issuer: str,
    client_id: str,
    nonce: str | None,
    nonce_required: bool,
    now: datetime,
    leeway: timedelta,
    base_url: str,
    algorithms: frozenset[str] = DEFAULT_ALGORITHMS,
) -> IDTokenClaims:
    """
    Check *token* in the order of OpenID Connect, and return its claims.

    Args:
        token: compact form, as it came in the token response.
        jwks: the issuer's JWK Set; keys the token itself names or carries are ignored.
        issuer: the one expected of this server, compared exactly.
        nonce: as sent in the authorization request; ``None`` if none was sent, and then
            the claim is not looked at.
        nonce_required: a token without ``nonce`` is refused (if one was sent).
        now: aware datetime.
        leeway: how far the two clocks may differ.
        base_url: FHIR base URL that ``fhirUser`` has to be at.
        algorithms: those accepted, further limited to the supported ones.

    Raises:
        MalformedIDTokenError: not a signed JWT.
        UnknownSigningKeyError: no key of *jwks* fits: fetch it once more, then give up.
        IDTokenSignatureError: the signature is wrong, or its algorithm is not accepted.
        IDTokenClaimError: a claim is missing or wrong; ``claim`` names it.

    Spec: OpenID Connect Core 1.0 section 3.1.3.7; SMART App Launch 2.2, "Scopes and
    Launch Context", Scopes for requesting identity data.
    """
    header, claims = _parse(token)
    # Before the signature, so that a token of another issuer makes nobody fetch keys.
    _check_issuer(claims, issuer)
    audience = _check_audience(claims, client_id)
    _check_signature(token, header, jwks, algorithms)
    expires_at = _get_time(claims, "exp")
    if now - leeway >= expires_at:
        raise IDTokenClaimError("The ID token has expired.", claim="exp")
    issued_at = _get_time(claims, "iat")
    for name in ("iat", "nbf"):
        if name in claims and _get_time(claims, name) > now + leeway:
            raise IDTokenClaimError(
                f"{name} of the ID token lies in the future.", claim=name
            )
    return IDTokenClaims(
        issuer=issuer,
        subject=_get_subject(claims),
        audience=audience,
        fhir_user=_get_fhir_user(claims, base_url),
        expires_at=expires_at,
        issued_at=issued_at,
        nonce=_check_nonce(claims, nonce, required=nonce_required),
        claims=claims,
    )


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, not verified."""
    if len(token) > MAX_ID_TOKEN_LENGTH:
        raise MalformedIDTokenError(
            f"The ID token is longer than {MAX_ID_TOKEN_LENGTH} characters."
        )
    if not _COMPACT.fullmatch(token):
        raise MalformedIDTokenError("The ID token is not a signed JWT in compact form.")
    try:
        header, payload = (base64url_decode(part) for part in token.split(".")[:2])
    except ValueError:
        raise MalformedIDTokenError("The ID token is not base64url.") from None
    return (
        parse_json_object(header, error=MalformedIDTokenError, what="ID token header"),
        parse_json_object(payload, error=MalformedIDTokenError, what="ID token"),
    )


def _check_issuer(claims: Mapping[str, Any], issuer: str) -> None:
    if claims.get("iss") != issuer:
        raise IDTokenClaimError(
            "iss of the ID token is not the issuer of this server.", claim="iss"
        )


def _check_audience(claims: Mapping[str, Any], client_id: str) -> tuple[str, ...]:
    """``aud`` and ``azp``: the token is for this client, and for no stranger alone."""
    value = claims.get("aud")
    audience = [value] if isinstance(value, str) else value
    if not isinstance(audience, list) or not all(
        isinstance(item, str) for item in audience
    ):
        raise IDTokenClaimError(
            "aud of the ID token is missing or not made of strings.", claim="aud"
        )
    if client_id not in audience:
        raise IDTokenClaimError("aud of the ID token lacks this client.", claim="aud")
    authorized_party = claims.get("azp")
    if authorized_party is None and len(audience) > 1:
        raise IDTokenClaimError(
            "The ID token has several audiences and no azp.", claim="azp"
        )
    if authorized_party not in (None, client_id):
        raise IDTokenClaimError("azp of the ID token is another client.", claim="azp")
    return tuple(audience)


def _check_signature(
    token: str,
    header: Mapping[str, Any],
    jwks: Mapping[str, Any],
    algorithms: frozenset[str],
) -> None:
    """Verify with the key of *jwks* and an algorithm of ours, never of the token's."""
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in algorithms.intersection(
        SUPPORTED_ALGORITHMS
    ):
        raise IDTokenSignatureError(
            "The algorithm of the ID token is not accepted; expected one of "
            f"{', '.join(sorted(algorithms))}."
        )
    if "crit" in header:
        raise IDTokenSignatureError("The ID token has critical header parameters.")
    kid = header.get("kid")
    if "kid" in header and not isinstance(kid, str):
        raise MalformedIDTokenError("kid of the ID token is not a string.")
    key = select_verification_key(jwks, algorithm=algorithm, kid=kid)
    try:
        jwt.PyJWS().decode_complete(token, key, algorithms=[algorithm])
    except jwt.PyJWTError:
        raise IDTokenSignatureError(
            "The signature of the ID token does not verify."
        ) from None


def _get_time(claims: Mapping[str, Any], name: str) -> datetime:
    value = claims.get(name)
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 <= value <= _MAX_TIME
    ):
        raise IDTokenClaimError(
            f"{name} of the ID token is missing or not a time in seconds.", claim=name
        )
    return datetime.fromtimestamp(value, tz=UTC)


def _get_subject(claims: Mapping[str, Any]) -> str:
    value = claims.get("sub")
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_SUBJECT_LENGTH:
        raise IDTokenClaimError(
            f"Expected sub of 1 to {_MAX_SUBJECT_LENGTH} characters.", claim="sub"
        )
    return value


def _check_nonce(
    claims: Mapping[str, Any], expected: str | None, *, required: bool
) -> str | None:
    value = claims.get("nonce")
    if not isinstance(value, str | None):
        raise IDTokenClaimError("nonce of the ID token is not a string.", claim="nonce")
    if not expected:
        return value
    if value is None:
        # Servers need not support it (AUTH-16).
        if required:
            raise IDTokenClaimError("The ID token has no nonce.", claim="nonce")
        return None
    if not hmac.compare_digest(value.encode(), expected.encode()):
        raise IDTokenClaimError("nonce is not the one that was sent.", claim="nonce")
    return value


def _get_fhir_user(claims: Mapping[str, Any], base_url: str) -> str | None:
    """``fhirUser``, or what ``profile`` was used for before there was one."""
    value = claims.get("fhirUser")
    if value is not None:
        if not isinstance(value, str):
            raise IDTokenClaimError("fhirUser is not a string.", claim="fhirUser")
        return parse_fhir_user(value, base_url=base_url)
    legacy = claims.get("profile")
    if not isinstance(legacy, str):
        return None
    try:
        return parse_fhir_user(legacy, base_url=base_url)
    except IDTokenClaimError:
        # OpenID Connect's own profile: a page about the user.
        return None
