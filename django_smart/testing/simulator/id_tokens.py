"""
ID tokens, and the keys that sign them.

Spec: SMART App Launch 2.2, "Scopes for requesting identity data"; OpenID Connect
Core 1.0 section 2.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.state import Grant

__all__ = [
    "ID_TOKEN_LIFETIME",
    "IDTokenDraft",
    "SigningKey",
    "get_first_key",
    "issue_id_token",
]

ID_TOKEN_LIFETIME = 300
"""Seconds."""

_CURVES: dict[str, ec.EllipticCurve] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
}
_PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair of the EHR's own."""

    algorithm: str
    private_key: _PrivateKey = field(repr=False)
    kid: str

    @classmethod
    def generate(cls, algorithm: str) -> SigningKey:
        """Make a key pair for RS256, RS384, ES256 or ES384."""
        private_key: _PrivateKey
        if algorithm in _CURVES:
            private_key = ec.generate_private_key(_CURVES[algorithm])
        elif algorithm in {"RS256", "RS384"}:
            private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        else:
            raise ValueError(f"unknown ID token algorithm: {algorithm}")
        return cls(algorithm, private_key, secrets.token_hex(8))

    def as_jwk(self) -> dict[str, Any]:
        """The public half."""
        public_key = self.private_key.public_key()
        if isinstance(public_key, rsa.RSAPublicKey):
            members = RSAAlgorithm.to_jwk(public_key, as_dict=True)
        else:
            members = ECAlgorithm.to_jwk(public_key, as_dict=True)
        members.pop("key_ops", None)
        return {**members, "kid": self.kid, "use": "sig", "alg": self.algorithm}


# RSA takes a tenth of a second, and most tests have a simulator of their own.
@lru_cache(maxsize=16)
def get_first_key(_base_url: str, algorithm: str) -> SigningKey:
    """The key pair that every simulator at this URL begins with, in this process."""
    return SigningKey.generate(algorithm)


@dataclass(slots=True, kw_only=True)
class IDTokenDraft:
    """An ID token before it is signed; faults change it here."""

    ehr: EHRSimulator
    client_id: str
    claims: dict[str, Any]
    key: SigningKey
    kid: str | None
    encoded: str | None = None
    """Set by a fault that signs the token itself."""

    def encode(self) -> str:
        if self.encoded is not None:
            return self.encoded
        headers = {"kid": self.kid} if self.kid is not None else None
        return jwt.encode(
            self.claims, self.key.private_key, self.key.algorithm, headers=headers
        )


def issue_id_token(ehr: EHRSimulator, grant: Grant) -> str:
    """The ID token for a grant whose scopes hold ``openid``."""
    user = ehr.users[grant.user or ""]
    now = int(ehr.clock())
    claims: dict[str, Any] = {
        "iss": ehr.issuer,
        "sub": user.subject,
        "aud": grant.client_id,
        "exp": now + ID_TOKEN_LIFETIME,
        "iat": now,
    }
    if grant.nonce is not None:
        claims["nonce"] = grant.nonce
    if "fhirUser" in grant.scopes:
        claims["fhirUser"] = f"{ehr.base_url}/{user.reference}"
    if "profile" in grant.scopes:
        claims |= {
            "name": user.name,
            "given_name": user.given_name,
            "family_name": user.family_name,
        }
    key = ehr.signing_keys[-1]
    draft = IDTokenDraft(
        ehr=ehr, client_id=grant.client_id, claims=claims, key=key, kid=key.kid
    )
    for fault in ehr.faults.active("drafts", "id_token"):
        fault.function(draft)
    grant.id_token_issued = True
    return draft.encode()


def issue_access_token(ehr: EHRSimulator, grant: Grant, expires_at: float) -> str:
    """An access token that is a JWT with the launch context (RFC 9068)."""
    claims = {
        **grant.context,
        "iss": ehr.issuer,
        "aud": ehr.base_url,
        "client_id": grant.client_id,
        "exp": int(expires_at),
        "jti": secrets.token_urlsafe(16),
    }
    key = ehr.signing_keys[-1]
    headers = {"kid": key.kid, "typ": "at+jwt"}
    return jwt.encode(claims, key.private_key, key.algorithm, headers=headers)
