"""
Client assertions (``private_key_jwt``), checked as a server has to.

Spec: SMART App Launch 2.2, "Client Authentication: Asymmetric", "Signature
Verification"; RFC 7523 section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt

from django_smart.testing.simulator.errors import OAuthError

if TYPE_CHECKING:
    from django_smart.testing.simulator.clients import Client
    from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = ["ALGORITHMS", "ASSERTION_TYPE", "MAX_LIFETIME", "claimed_issuer", "verify"]

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ALGORITHMS = {"RS384": "RSA", "ES384": "EC"}
MAX_LIFETIME = 300
"""Seconds that an assertion may live at most."""


def claimed_issuer(assertion: str) -> str:
    """The ``iss`` of an assertion that nobody has verified yet."""
    return str(_unverified(assertion)[1].get("iss", ""))


def verify(
    ehr: EHRSimulator, client: Client, form: dict[str, str], *, endpoint: str = ""
) -> None:
    """
    Check the assertion of a request to *endpoint*, and use it up.

    Its audience is *endpoint*, unless a quirk is on, or the token endpoint (RFC 7523
    section 3).

    Raises:
        OAuthError: ``invalid_client``, with the rule that was broken.
    """
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise _invalid(f"client_assertion_type must be {ASSERTION_TYPE}")
    assertion = form.get("client_assertion", "")
    header, claims = _unverified(assertion)
    key = _choose_key(ehr, client, header)
    try:
        # The claims are checked below, by the simulator's own clock.
        jwt.PyJWS().decode(assertion, key, algorithms=[header["alg"]])
    except jwt.InvalidTokenError as exc:
        raise _invalid(f"the signature does not verify ({exc})") from exc
    audiences = [ehr.token_endpoint]
    if "assertion_token_endpoint" not in ehr.quirks:
        audiences.append(endpoint)
    _check_claims(ehr, client, claims, audiences=audiences)


def _unverified(assertion: str) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        whole = jwt.decode_complete(assertion, options={"verify_signature": False})
    except jwt.InvalidTokenError as exc:
        raise _invalid(f"client_assertion is not a JWT ({exc})") from exc
    return whole["header"], whole["payload"]


def _choose_key(ehr: EHRSimulator, client: Client, header: dict[str, Any]) -> jwt.PyJWK:
    """Exactly one registered key has the ``kid`` and suits the ``alg``."""
    algorithm = header.get("alg")
    if algorithm not in ALGORITHMS:
        raise _invalid("alg must be RS384 or ES384")
    if header.get("typ") != "JWT":
        raise _invalid("typ must be JWT")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise _invalid("kid is missing")
    if "jku" in header and header["jku"] != client.jwks_url:
        raise _invalid("jku is not the registered JWKS URL")
    found = [
        key
        for key in _registered_keys(ehr, client)
        if key.get("kid") == kid and key.get("kty") == ALGORITHMS[algorithm]
    ]
    if len(found) != 1:
        raise _invalid(f"{len(found)} registered keys match kid and alg, not one")
    if set(found[0]) & {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}:
        raise _invalid("the registered key set holds private values")
    try:
        return jwt.PyJWK.from_dict(found[0], algorithm=algorithm)
    except jwt.PyJWTError as exc:
        raise _invalid(f"the registered key cannot be used ({exc})") from exc


def _registered_keys(ehr: EHRSimulator, client: Client) -> list[dict[str, Any]]:
    try:
        if client.jwks is not None:
            keys = client.jwks["keys"]
        else:
            keys = ehr.fetch_jwks(client.jwks_url or "")["keys"]
        return [key for key in keys if isinstance(key, dict)]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise _invalid(f"the client's key set cannot be read ({exc})") from exc


def _check_claims(
    ehr: EHRSimulator, client: Client, claims: dict[str, Any], *, audiences: list[str]
) -> None:
    now = ehr.clock()
    for name in ("iss", "sub"):
        if claims.get(name) != client.client_id:
            raise _invalid(f"{name} must be the client_id")
    named = claims.get("aud")
    audience = named[0] if isinstance(named, list) and len(named) == 1 else named
    if audience not in audiences:
        raise _invalid("aud must be the URL that the assertion was posted to")
    expires_at = claims.get("exp")
    if not isinstance(expires_at, int) or isinstance(expires_at, bool):
        raise _invalid("exp must be an integer")
    if expires_at <= now:
        raise _invalid("the assertion has expired")
    if expires_at > now + MAX_LIFETIME:
        raise _invalid("exp is more than five minutes ahead")
    not_before = claims.get("nbf", 0)
    if not isinstance(not_before, int | float) or not_before > now:
        raise _invalid("nbf is in the future")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not jti:
        raise _invalid("jti is missing")
    if not ehr.store.use_jti(client.client_id, jti, now=now, expires_at=expires_at):
        raise _invalid("jti has been used before")


def _invalid(description: str) -> OAuthError:
    return OAuthError("invalid_client", description, status=401)
