"""Published values, keys and answers that several of these tests use."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from django_smart.protocol.messages import HTTPRequest, HTTPResponse

VECTORS_DIR = Path(__file__).resolve().parent.parent / "vectors"
VECTORS: dict[str, Any] = json.loads((VECTORS_DIR / "known-answers.json").read_text())
SEED: dict[str, Any] = VECTORS["seed_flow"]

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BASE_URL = "https://ehr.example.org/fhir"
CLIENT_ID = "growth-chart"


def load_jwk_set(name: str) -> dict[str, Any]:
    """A key file of the specification."""
    document: dict[str, Any] = json.loads((VECTORS_DIR / name).read_text())
    return document


def load_private_jwk(name: str) -> Any:
    """The private key of a key file, parsed."""
    jwks = load_jwk_set(name)
    (jwk,) = [key for key in jwks["keys"] if "sign" in key["key_ops"]]
    return jwt.PyJWK(jwk).key


def build_answer(
    body: object = b"", *, status_code: int = 200, **headers: str
) -> HTTPResponse:
    """An answer; *body* is encoded as JSON unless it is bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HTTPResponse(
        status_code=status_code,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        body=data,
    )


def read_form(request: HTTPRequest) -> list[tuple[str, str]]:
    """The parameters of a form that is to be posted."""
    assert request.body is not None
    return parse_qsl(request.body.decode("ascii"), strict_parsing=True)


@cache
def make_rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """A key of its own for each *number*."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def make_ec_key(curve: type[ec.EllipticCurve]) -> ec.EllipticCurvePrivateKey:
    """A key on *curve*."""
    return ec.generate_private_key(curve())
