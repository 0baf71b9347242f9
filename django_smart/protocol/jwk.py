"""The app's keys: generate, load, and publish them as JSON Web Keys."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from typing import cast

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from django_smart.exceptions import CredentialsError

__all__ = [
    "MIN_RSA_BITS",
    "PrivateKey",
    "generate_private_key_pem",
    "get_algorithm",
    "load_private_key",
    "public_jwk",
]

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

MIN_RSA_BITS = 2048


def generate_private_key_pem(algorithm: str) -> str:
    """
    Generate a key pair: RSA with 2048 bits for ``RS384``, P-384 for ``ES384``.

    The only function of this subpackage that uses randomness, in ``cryptography``.

    Returns:
        PEM, PKCS #8, unencrypted: encrypt it before storing it (JWKS-02).

    Raises:
        ValueError: *algorithm* is neither of these.
    """
    key: PrivateKey
    if algorithm == "RS384":
        key = rsa.generate_private_key(public_exponent=65537, key_size=MIN_RSA_BITS)
    elif algorithm == "ES384":
        key = ec.generate_private_key(ec.SECP384R1())
    else:
        raise ValueError(f"Expected RS384 or ES384, got {algorithm!r}")
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def load_private_key(pem: str) -> PrivateKey:
    """
    Parse a private key, to sign with it many times.

    Raises:
        CredentialsError: not a key as :func:`generate_private_key_pem` makes it.
    """
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except Exception:  # noqa: BLE001 -- OpenSSL raises many kinds, some quoting the key
        raise CredentialsError(
            "The private key is not PEM without a password."
        ) from None
    get_algorithm(key)
    return cast("PrivateKey", key)


def get_algorithm(key: object) -> str:
    """
    Return the signing algorithm for a private key.

    Raises:
        CredentialsError: neither RSA of at least 2048 bits nor P-384.
    """
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return "RS384"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp384r1":
        return "ES384"
    raise CredentialsError(
        f"The private key is neither RSA of at least {MIN_RSA_BITS} bits nor P-384."
    )


def public_jwk(private_key: PrivateKey) -> dict[str, str]:
    """
    Return the public key of *private_key* for a JWK Set.

    Its ``kid`` is the RFC 7638 thumbprint, which is unique by construction (JWKS-07).

    Raises:
        CredentialsError: the key is unsuitable.

    Spec: SMART App Launch 2.2, "Client Authentication: Asymmetric"; RFC 7517; RFC 7518
    section 6; RFC 7638.
    """
    algorithm = get_algorithm(private_key)
    public_key = private_key.public_key()
    if isinstance(public_key, rsa.RSAPublicKey):
        members = RSAAlgorithm.to_jwk(public_key, as_dict=True)
    else:
        members = ECAlgorithm.to_jwk(public_key, as_dict=True)
    members.pop("key_ops", None)
    # For the thumbprint, in alphabetical order.
    canonical = json.dumps(members, separators=(",", ":"), sort_keys=True).encode()
    digest = hashlib.sha256(canonical).digest()
    thumbprint = urlsafe_b64encode(digest).rstrip(b"=").decode()
    return {**members, "alg": algorithm, "kid": thumbprint, "use": "sig"}
