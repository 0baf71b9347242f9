"""Signing a client assertion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.setting_up import configure, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
What a token request with ``private_key_jwt`` needs besides the request: a key, a ``jti`` and a signature.
The package does what a batch of refreshes does: it looks up the registration's signing key once and signs a separate assertion for each request.
"""


def run(report: Report) -> None:
    """Measure."""
    with running_stub() as stub:
        configure(stub=stub)
        from django_smart.servers.signing_keys import create_signing_key

        parsed = _count_parses()
        for algorithm in ("RS384", "ES384"):
            key = create_signing_key(algorithm)
            registration = make_registration(
                stub,
                server__slug=algorithm.lower(),
                server__base_url=f"{stub.base_url}/{algorithm}",
                token_endpoint_auth_method="private_key_jwt",
                signing_algorithm=algorithm,
                callback_id=algorithm.lower(),
                client_secret="",
            )
            times = measure(
                [
                    # A PEM with an RSA key takes a tenth of a second.
                    Variant(name=name, run=_repeat(sign), every=12, operations=3)
                    if name == _PARSING
                    else Variant(name=name, run=_repeat(sign))
                    for name, sign in _make_signers(key, registration, stub).items()
                ],
                rounds=report.rounds(120),
                operations=20,
            )
            report.add_table(
                algorithm, algorithm, times, base=_BASE, operations=20, unit="assertion"
            )
            report.check_ratio(
                algorithm, f"{algorithm}, of PyJWT", name=_OURS, base=_BASE, at_most=1.2
            )
        report.check(
            "parses", "parses of a key in this process", parsed[0] / 2, at_most=1
        )


_BASE = "PyJWT, ready key"
_OURS = "django_smart"
_PARSING = "PyJWT, PEM each time"


def _repeat(sign: Callable[[], Any]) -> Callable[[int], None]:
    def run_it(number: int) -> None:
        for _ in range(number):
            sign()

    return run_it


def _count_parses() -> list[int]:
    """Count what a login parses; making a key parses it too, and is not counted."""
    from django_smart.servers import http

    module: Any = http
    parsed, parse = [0], module.load_private_key

    def count(pem: str | bytes) -> Any:
        parsed[0] += 1
        return parse(pem)

    module.load_private_key = count
    return parsed


def _make_signers(
    key: Any, registration: Any, stub: Any
) -> dict[str, Callable[[], Any]]:
    import secrets
    import time

    import jwt

    from django_smart.protocol.jwk import load_private_key
    from django_smart.servers.http import prepare_client_authentication

    endpoint = f"{stub.origin}/token"
    ready, pem = load_private_key(key.private_key), key.private_key
    algorithm = key.algorithm

    def sign(with_key: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": registration.client_id,
            "sub": registration.client_id,
            "aud": endpoint,
            "exp": now + 240,
            "iat": now,
            "jti": secrets.token_urlsafe(24),
        }
        return jwt.encode(
            claims, with_key, algorithm=algorithm, headers={"kid": key.kid}
        )

    prepare = prepare_client_authentication(registration, token_endpoint=endpoint)

    def sign_ours() -> None:
        prepare().apply([], {}, endpoint=endpoint)

    return {
        _BASE: lambda: sign(ready),
        _OURS: sign_ours,
        _PARSING: lambda: sign(pem),
    }
