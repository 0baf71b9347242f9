"""ID tokens: the signing key, the verified claims, and the user's resource."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.utils import base64url_decode

from django_smart.exceptions import (
    IDTokenClaimError,
    IDTokenError,
    IDTokenSignatureError,
    InsecureURLError,
)
from django_smart.protocol.deviations import Deviation
from django_smart.protocol.json import parse_json_object
from django_smart.protocol.jwk import MIN_RSA_BITS
from django_smart.protocol.urls import normalize_base_url

__all__ = [
    "DEFAULT_ALGORITHMS",
    "FHIR_USER_TYPES",
    "MAX_ID_TOKEN_LENGTH",
    "MAX_TIME",
    "IDTokenClaims",
    "VerificationKey",
    "parse_fhir_user",
    "read_access_token",
    "read_unverified_claims",
    "select_verification_key",
    "validate_id_token",
]


#: The resource types that a ``fhirUser`` may have (IDT-08).
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


# Maximum length, as for the columns.
_MAX_REFERENCE = 200


def parse_fhir_user(value: str, *, base_url: str) -> str:
    """
    Convert ``fhirUser`` to a reference relative to the FHIR base URL.

    Args:
        value: such as ``https://ehr.example.org/fhir/Practitioner/123`` or
            ``Practitioner/123``.
        base_url: the ``aud`` of the authorization request.

    Returns:
        such as ``Practitioner/123``.

    Raises:
        IDTokenClaimError: another server, a type other than these five, or no id.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context", Scopes for requesting
    identity data.
    """
    try:
        base = normalize_base_url(base_url)
        reference = normalize_base_url(value).removeprefix(f"{base}/")
    except InsecureURLError:
        # Not absolute, or with a query or dot segments, which a reference cannot have.
        reference = value
    if not _REFERENCE.fullmatch(reference):
        raise IDTokenClaimError(
            "Expected a fhirUser at the FHIR server of this launch, of type "
            f"{' or '.join(FHIR_USER_TYPES)}.",
            claim="fhirUser",
        )
    return reference


VerificationKey = (
    rsa.RSAPublicKey
    | ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | ed448.Ed448PublicKey
)

# By algorithm: key type and curve.
_KEY_TYPES: dict[str, tuple[str, str | None]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", None),
}
# By key type: the public members.
_MEMBERS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}

_MAX_RSA_BITS = 4096
# Base64url length of that many bits after a zero byte, and of a 64-bit exponent.
_MAX_MODULUS_LENGTH = 684
_MAX_EXPONENT_LENGTH = 11


def select_verification_key(
    jwks: Mapping[str, Any], *, algorithm: str, kid: str | None
) -> VerificationKey:
    """
    Return the first key of *jwks* that matches a signature's header.

    Only the first one, so that a hostile set causes only one verification.

    Args:
        jwks: JWK Set as received; keys for encryption, of another type or curve, for
            another algorithm, and weak, oversized or broken keys are ignored.
        algorithm: one of ``DEFAULT_ALGORITHMS``.
        kid: from the header; without one, only one key may match (IDT-06).

    Raises:
        IDTokenSignatureError: no key matches; the set may be outdated.
        IDTokenSignatureError: there is no *kid*, and several keys match.
    """
    candidates = (
        jwk
        for jwk in jwks.get("keys", ())
        if _fits(jwk, algorithm) and (kid is None or jwk.get("kid") == kid)
    )
    keys = (key for key in map(_load, candidates) if key is not None)
    key = next(keys, None)
    if key is None:
        raise IDTokenSignatureError(
            f"No key in the server's JWK Set matches the ID token (alg {algorithm}).",
            code="id_token_key_unknown",
        )
    if kid is None and next(keys, None) is not None:
        raise IDTokenSignatureError(
            "The ID token names no key, and several of the server's keys match."
        )
    return key


def _fits(jwk: Mapping[str, Any], algorithm: str) -> bool:
    """Return whether *jwk* is meant to verify signatures of *algorithm*."""
    key_type, curve = _KEY_TYPES[algorithm]
    key_ops = jwk.get("key_ops")
    return (
        jwk.get("kty") == key_type
        and (curve is None or jwk.get("crv") == curve)
        and jwk.get("use") in (None, "sig")
        and (key_ops is None or (isinstance(key_ops, list) and "verify" in key_ops))
        and jwk.get("alg") in (None, algorithm)
    )


def _load(jwk: Mapping[str, Any]) -> VerificationKey | None:
    """
    Return the public key of *jwk*, or ``None`` if it is broken, weak or oversized.
    """
    # Private members, which do not belong in the set, are dropped.
    members: dict[str, Any] = {name: jwk.get(name) for name in _MEMBERS[jwk["kty"]]}
    if not all(isinstance(value, str) for value in members.values()):
        return None
    if (
        len(members.get("n", "")) > _MAX_MODULUS_LENGTH
        or len(members.get("e", "")) > _MAX_EXPONENT_LENGTH
    ):
        return None
    try:
        key: VerificationKey = jwt.PyJWK({"kty": jwk["kty"], **members}).key
    except (jwt.PyJWTError, ValueError):
        return None
    if isinstance(key, rsa.RSAPublicKey) and not (
        MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS
    ):
        return None
    return key


#: Servers must support RS256 (IDT-06); never ``none``, never HMAC.
DEFAULT_ALGORITHMS = frozenset(_KEY_TYPES)
#: Maximum length of a token.
MAX_ID_TOKEN_LENGTH = 64 * 1024

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_JWS = jwt.PyJWS()
_MAX_SUBJECT_LENGTH = 255
# The last second of the year 9999.
MAX_TIME = 253_402_300_799


@dataclass(frozen=True, kw_only=True, slots=True)
class IDTokenClaims:
    """
    Validated claims; ``repr`` shows only the issuer.

    Attributes:
        fhir_user: relative reference such as ``Practitioner/123``, ``None`` if absent.
        foreign_fhir_user: absolute URL on another FHIR server, for which the token is
            not valid; stored, but never requested.
        claims: all claims as sent.
        deviations: what differs from the specification.
    """

    issuer: str
    subject: str = field(repr=False)
    fhir_user: str | None = field(repr=False)
    claims: Mapping[str, Any] = field(repr=False)
    foreign_fhir_user: str = field(default="", repr=False)
    deviations: tuple[Deviation, ...] = ()


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
    Validate *token* in the order of OpenID Connect, and return its claims.

    Args:
        token: compact form, as received in the token response.
        jwks: the issuer's JWK Set; keys that the token names or contains are ignored.
        issuer: the expected issuer, compared exactly.
        nonce: as sent in the authorization request; ``None`` if none was sent; the
            claim is then ignored.
        nonce_required: refuse a token without ``nonce`` (if one was sent).
        now: aware datetime.
        leeway: tolerated difference between the two clocks.
        base_url: FHIR base URL to which ``fhirUser`` must belong.
        algorithms: accepted ones, further limited to the supported ones.

    Raises:
        IDTokenError: not a signed JWT.
        IDTokenSignatureError: no key of *jwks* matches: refetch it once, then give up.
        IDTokenSignatureError: the signature is wrong, or its algorithm is not accepted.
        IDTokenClaimError: a claim is missing or wrong; ``claim`` names it.

    Spec: OpenID Connect Core 1.0 section 3.1.3.7; SMART App Launch 2.2, "Scopes and
    Launch Context", Scopes for requesting identity data.
    """
    header, claims = _parse(token)
    # Before the signature, so that another issuer's token does not cause a key fetch.
    _check_issuer(claims, issuer)
    _check_audience(claims, client_id)
    _check_signature(token, header, jwks, algorithms)
    if now - leeway >= _get_time(claims, "exp"):
        raise IDTokenClaimError("The ID token has expired.", claim="exp")
    for name in ("iat", "nbf") if "nbf" in claims else ("iat",):
        if _get_time(claims, name) > now + leeway:
            raise IDTokenClaimError(
                f"{name} of the ID token is in the future.", claim=name
            )
    _check_nonce(claims, nonce, required=nonce_required)
    foreign = _get_foreign_fhir_user(claims, base_url)
    return IDTokenClaims(
        issuer=issuer,
        subject=_get_subject(claims),
        fhir_user=None if foreign else _get_fhir_user(claims, base_url),
        foreign_fhir_user=foreign,
        claims=claims,
        deviations=tuple(
            _find_deviations(header, claims, nonce=nonce, now=now, is_foreign=foreign)
        ),
    )


def read_access_token(
    token: str,
    *,
    jwks: Mapping[str, Any],
    issuer: str,
    client_id: str,
    now: datetime,
    leeway: timedelta,
) -> dict[str, Any]:
    """
    Verify an access token that is a JWT, and return its claims.

    Its audience is the FHIR server, so the client is compared with ``client_id`` and
    ``azp``, if present.

    Args:
        jwks, issuer, client_id, now, leeway: as for :func:`validate_id_token`.

    Raises:
        IDTokenError: as :func:`validate_id_token`.

    Spec: RFC 9068 section 4.
    """
    header, claims = _parse(token)
    _check_issuer(claims, issuer)
    _check_signature(token, header, jwks, DEFAULT_ALGORITHMS)
    if now - leeway >= _get_time(claims, "exp"):
        raise IDTokenClaimError("The access token has expired.", claim="exp")
    for name in ("client_id", "azp"):
        if claims.get(name) not in (None, client_id):
            raise IDTokenClaimError(
                f"{name} of the access token is another client.", claim=name
            )
    return claims


def read_unverified_claims(token: object) -> dict[str, Any]:
    """Return the claims of a JWT, unverified; none of anything else."""
    try:
        return _parse(str(token))[1]
    except IDTokenError:
        return {}


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims, unverified."""
    if len(token) > MAX_ID_TOKEN_LENGTH:
        raise IDTokenError(
            f"The ID token is longer than {MAX_ID_TOKEN_LENGTH} characters."
        )
    if not _COMPACT.fullmatch(token):
        raise IDTokenError("The ID token is not a signed JWT in compact form.")
    try:
        header, payload = (base64url_decode(part) for part in token.split(".")[:2])
    except ValueError:
        raise IDTokenError("The ID token is not base64url.") from None
    return (
        parse_json_object(header, error=IDTokenError, what="ID token header"),
        parse_json_object(payload, error=IDTokenError, what="ID token"),
    )


def _check_issuer(claims: Mapping[str, Any], issuer: str) -> None:
    if claims.get("iss") != issuer:
        raise IDTokenClaimError(
            "iss of the ID token is not this server's issuer.", claim="iss"
        )


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    """Check ``aud`` and ``azp``: the token must have been issued to this client."""
    value = claims.get("aud")
    audience = [value] if isinstance(value, str) else value
    if not isinstance(audience, list) or not all(
        isinstance(item, str) for item in audience
    ):
        raise IDTokenClaimError(
            "aud of the ID token is missing or not a string or list of strings.",
            claim="aud",
        )
    if client_id not in audience:
        raise IDTokenClaimError(
            "aud of the ID token does not include this client.", claim="aud"
        )
    authorized_party = claims.get("azp")
    if authorized_party is None and len(audience) > 1:
        raise IDTokenClaimError(
            "The ID token has several audiences but no azp.", claim="azp"
        )
    if authorized_party not in (None, client_id):
        raise IDTokenClaimError("azp of the ID token is another client.", claim="azp")


def _check_signature(
    token: str,
    header: Mapping[str, Any],
    jwks: Mapping[str, Any],
    algorithms: frozenset[str],
) -> None:
    """
    Verify with a key of *jwks* and an accepted algorithm, never one from the token.
    """
    algorithm = header.get("alg")
    accepted = algorithms & DEFAULT_ALGORITHMS
    if not isinstance(algorithm, str) or algorithm not in accepted:
        raise IDTokenSignatureError(
            "The algorithm of the ID token is not accepted; expected one of "
            f"{', '.join(sorted(algorithms))}."
        )
    if "crit" in header:
        raise IDTokenSignatureError("The ID token has critical header parameters.")
    kid = header.get("kid")
    if "kid" in header and not isinstance(kid, str):
        raise IDTokenError("kid of the ID token is not a string.")
    key = select_verification_key(jwks, algorithm=algorithm, kid=kid)
    try:
        _JWS.decode_complete(token, key, algorithms=[algorithm])
    except jwt.PyJWTError:
        raise IDTokenSignatureError(
            "The signature of the ID token is invalid."
        ) from None


def _get_time(claims: Mapping[str, Any], name: str) -> datetime:
    value = claims.get(name)
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 <= value <= MAX_TIME
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
) -> None:
    value = claims.get("nonce")
    if not isinstance(value, str | None):
        raise IDTokenClaimError("nonce of the ID token is not a string.", claim="nonce")
    if not expected:
        return
    if value is None:
        # Servers need not support it (AUTH-16).
        if required:
            raise IDTokenClaimError("The ID token has no nonce.", claim="nonce")
    elif not hmac.compare_digest(value.encode(), expected.encode()):
        raise IDTokenClaimError("nonce is not the one that was sent.", claim="nonce")


def _find_deviations(
    header: Mapping[str, Any],
    claims: Mapping[str, Any],
    *,
    nonce: str | None,
    now: datetime,
    is_foreign: object,
) -> Iterator[Deviation]:
    """Yield what is tolerated in a valid token."""
    if "kid" not in header:
        yield Deviation(code="id_token_without_kid")
    if nonce and claims.get("nonce") is None:
        yield Deviation(code="id_token_without_nonce")
    ahead = (_get_time(claims, "iat") - now).total_seconds()
    late = (now - _get_time(claims, "exp")).total_seconds()
    if ahead > 0:
        yield Deviation(
            code="id_token_clock", evidence=f"iat is {ahead:.0f} s in the future"
        )
    elif late >= 0:
        yield Deviation(code="id_token_clock", evidence=f"exp is {late:.0f} s ago")
    if is_foreign:
        yield Deviation(code="fhir_user_elsewhere")
    elif not claims.get("fhirUser") and "/" in str(claims.get("profile")):
        yield Deviation(code="fhir_user_in_profile")


def _get_foreign_fhir_user(claims: Mapping[str, Any], base_url: str) -> str:
    """Return a ``fhirUser`` on another FHIR server, as some vendors' portals send."""
    value = claims.get("fhirUser")
    if not isinstance(value, str) or len(value) > _MAX_REFERENCE:
        return ""
    try:
        base, url = normalize_base_url(base_url), normalize_base_url(value)
    except InsecureURLError:
        return ""
    reference = "/".join(url.rsplit("/", 2)[1:])
    is_elsewhere = not url.startswith(f"{base}/")
    return url if is_elsewhere and _REFERENCE.fullmatch(reference) else ""


def _get_fhir_user(claims: Mapping[str, Any], base_url: str) -> str | None:
    """Return ``fhirUser``, or ``profile``, which was used before it existed."""
    value = claims.get("fhirUser")
    if value not in (None, ""):
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
