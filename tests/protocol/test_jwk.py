"""The app's own keys."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from django_smart.exceptions import CredentialsError
from django_smart.protocol.jwk import (
    generate_private_key_pem,
    get_algorithm,
    load_private_key,
    public_jwk,
)
from tests.protocol.helpers import (
    VECTORS,
    load_jwk_set,
    load_private_jwk,
    make_ec_key,
    make_rsa_key,
)

PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


def to_pem(key, encryption=None):
    return key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()
    ).decode()


@pytest.mark.compliance("JWKS-01", "JWKS-06", "JWKS-07")
@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_the_published_keys_give_their_public_members_and_thumbprint(algorithm):
    key = load_private_jwk(f"{algorithm}.private.json")
    (published,) = load_jwk_set(f"{algorithm}.public.json")["keys"]
    jwk = public_jwk(key)
    names = ("kty", "n", "e") if algorithm == "RS384" else ("kty", "crv", "x", "y")
    assert {name: jwk[name] for name in names} == {
        name: published[name] for name in names
    }
    vector = VECTORS["keys"][f"{algorithm}.public.json"]
    assert jwk["kid"] == vector["rfc7638_thumbprint_sha256"]


@pytest.mark.compliance("JWKS-01", "JWKS-02", "JWKS-06")
@pytest.mark.parametrize("algorithm", ["RS384", "ES384"])
def test_a_new_key_loads_and_publishes_no_private_member(algorithm):
    pem = generate_private_key_pem(algorithm)
    assert pem.startswith("-----BEGIN PRIVATE KEY-----")
    assert pem != generate_private_key_pem(algorithm)
    key = load_private_key(pem)
    assert get_algorithm(key) == algorithm
    jwk = public_jwk(key)
    assert jwk["alg"] == algorithm
    assert jwk["use"] == "sig"
    assert set(jwk).isdisjoint(PRIVATE_MEMBERS)
    assert jwt.PyJWK(json.loads(json.dumps(jwk))).key == key.public_key()


@pytest.mark.compliance("JWKS-06")
@pytest.mark.parametrize(("value", "name"), [(197, "x"), (176, "y")])
def test_coordinates_of_p_384_are_padded_to_48_bytes(value, name):
    # Private values of which one coordinate begins with a zero byte.
    key = ec.derive_private_key(value, ec.SECP384R1())
    jwk = public_jwk(key)
    assert len(jwk["x"]) == len(jwk["y"]) == 64
    assert urlsafe_b64decode(jwk[name])[0] == 0
    assert jwt.PyJWK(jwk).key == key.public_key()


def test_coordinate_loses_nothing_at_its_end():
    # Of whole groups of three bytes: there is no padding to be taken off.
    jwk = public_jwk(ec.derive_private_key(36, ec.SECP384R1()))
    assert jwk["x"].endswith("X")
    assert len(jwk["x"]) == 64


def test_other_algorithms_have_no_keys():
    with pytest.raises(ValueError, match="RS384 or ES384"):
        generate_private_key_pem("HS256")


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        ("", "not PEM"),
        ("not a key", "not PEM"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not PEM"),
        (to_pem(make_ec_key(ec.SECP384R1), BestAvailableEncryption(b"x")), "not PEM"),
        (to_pem(make_ec_key(ec.SECP256R1)), "nor P-384"),
        (to_pem(make_rsa_key(1024)), "2048 bits"),
        (to_pem(ed25519.Ed25519PrivateKey.generate()), "neither RSA"),
    ],
)
def test_a_key_that_is_of_no_use_is_refused_with_its_reason(pem, reason):
    with pytest.raises(CredentialsError, match=reason) as caught:
        load_private_key(pem)
    assert caught.value.__cause__ is None


def test_a_public_key_is_no_private_key():
    pem = VECTORS["id_token"]["public_key_pem"]
    with pytest.raises(CredentialsError, match="not PEM"):
        load_private_key(pem)
