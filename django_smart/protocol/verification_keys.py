"""The keys of a server's JWK Set that a signature may be verified with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from django_smart.exceptions import IDTokenSignatureError, UnknownSigningKeyError

__all__ = ["SUPPORTED_ALGORITHMS", "VerificationKey", "select_verification_keys"]

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
# Base64url characters of 16384 bits, and of an exponent of 64.
_MAX_MODULUS_LENGTH = 2731
_MAX_EXPONENT_LENGTH = 11


def select_verification_keys(
    jwks: Mapping[str, Any], *, algorithm: str, kid: str | None
) -> list[VerificationKey]:
    """
    The keys of *jwks* that fit a signature's header; at least one.

    Args:
        jwks: JWK Set as received; keys for encryption, of another type or curve, bound
            to another algorithm, too weak or broken are passed over.
        algorithm: one of ``SUPPORTED_ALGORITHMS``.
        kid: of the header; without one there must be no choice (IDT-06).

    Raises:
        UnknownSigningKeyError: no key fits; the set may be outdated.
        IDTokenSignatureError: there is no *kid*, and several keys fit.
    """
    candidates = [
        jwk
        for jwk in jwks.get("keys", ())
        if _fits(jwk, algorithm) and (kid is None or jwk.get("kid") == kid)
    ]
    keys = [key for key in map(_load, candidates) if key is not None]
    if not keys:
        raise UnknownSigningKeyError(
            f"No key of the server's JWK Set fits the ID token (alg {algorithm})."
        )
    if kid is None and len(keys) > 1:
        raise IDTokenSignatureError(
            "The ID token names no key, and several keys of the server fit."
        )
    return keys


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
    """The public half of *jwk*, or ``None`` if it is broken or too weak."""
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
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    return None
