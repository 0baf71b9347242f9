"""Discovery: the SMART configuration, and the documents that complete it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_smart.exceptions import (
    DiscoveryError,
    DiscoveryStatusError,
)
from django_smart.protocol.configuration import DocumentReader
from django_smart.protocol.json import parse_json_object
from django_smart.protocol.messages import HTTPRequest, HTTPResponse

__all__ = [
    "build_capability_statement_request",
    "build_discovery_request",
    "build_jwks_request",
    "build_openid_configuration_request",
    "process_discovery_response",
    "process_jwks_response",
    "process_openid_configuration_response",
]

# Limit for a JWK Set; the largest known ones have about twenty keys.
_MAX_KEYS = 100


def build_discovery_request(
    base_url: str, *, headers: Mapping[str, str] | None = None
) -> HTTPRequest:
    """
    Build the request for the SMART configuration of the FHIR server at *base_url*.

    Args:
        base_url: with or without a trailing slash; its path is kept (DISC-01).
        headers: what the server requires besides ``Accept`` (such as
            ``Epic-Client-ID``).

    Spec: SMART App Launch 2.2, "Conformance", Using Well-Known.
    """
    return HTTPRequest(
        method="GET",
        url=f"{base_url.removesuffix('/')}/.well-known/smart-configuration",
        headers={**(headers or {}), "Accept": "application/json"},
    )


def process_discovery_response(response: HTTPResponse) -> dict[str, Any]:
    """
    Return the document in the response to :func:`build_discovery_request`.

    The media type is ignored, as long as the body is a JSON object.

    Raises:
        DiscoveryStatusError: a status other than 200, including redirects.
        DiscoveryError: not a JSON object.

    Spec: SMART App Launch 2.2, "Conformance", Response.
    """
    return _parse_body(response, what="SMART configuration")


def build_capability_statement_request(
    base_url: str, *, headers: Mapping[str, str] | None = None
) -> HTTPRequest:
    """
    Build the request for the CapabilityStatement, which every FHIR server has.
    """
    return HTTPRequest(
        method="GET",
        url=f"{base_url.removesuffix('/')}/metadata",
        headers={**(headers or {}), "Accept": "application/fhir+json"},
    )


def build_openid_configuration_request(issuer: str) -> HTTPRequest:
    """
    Build the request for the OpenID configuration of *issuer*, keeping its path.

    Spec: OpenID Connect Discovery 1.0 section 4.1.
    """
    return HTTPRequest(
        method="GET",
        url=f"{issuer.removesuffix('/')}/.well-known/openid-configuration",
        headers={"Accept": "application/json"},
    )


def process_openid_configuration_response(
    response: HTTPResponse,
    *,
    issuer: str | None,
    insecure_hosts: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """
    Read issuer, ``jwks_uri``, and other members if usable.

    Args:
        issuer: the expected issuer, which the document must repeat exactly. ``None`` if
            the document was fetched below the FHIR base URL because no issuer is known;
            the document then names it.

    Returns:
        ``issuer`` and ``jwks_uri``; ``end_session_endpoint`` and
        ``id_token_signing_alg_values_supported``, ``None`` if unusable.

    Raises:
        DiscoveryStatusError: another status than 200.
        DiscoveryError: not a JSON object, a member is missing or unsafe, or
            the issuer differs.

    Spec: OpenID Connect Discovery 1.0 sections 4.2 and 4.3.
    """
    document = _parse_body(response, what="OpenID configuration")
    reader = DocumentReader(
        document=document, base_url="", insecure_hosts=insecure_hosts
    )
    found_issuer = reader.absolute_url("issuer")
    jwks_uri = reader.absolute_url("jwks_uri")
    if found_issuer is None or jwks_uri is None:
        raise DiscoveryError("issuer or jwks_uri is missing.")
    if issuer not in (None, found_issuer):
        raise DiscoveryError(
            "The OpenID configuration names an issuer other than the one it "
            "was fetched from."
        )
    algorithms = document.get("id_token_signing_alg_values_supported")
    listed = algorithms if isinstance(algorithms, list) else []
    return {
        "issuer": found_issuer,
        "jwks_uri": jwks_uri,
        "end_session_endpoint": reader.optional(
            reader.absolute_url, "end_session_endpoint"
        ),
        "id_token_signing_alg_values_supported": (
            [each for each in listed if isinstance(each, str)] or None
        ),
    }


def build_jwks_request(jwks_uri: str) -> HTTPRequest:
    """Build the request for the keys with which ID tokens are signed."""
    return HTTPRequest(
        method="GET",
        url=jwks_uri,
        headers={"Accept": "application/jwk-set+json, application/json"},
    )


def process_jwks_response(response: HTTPResponse) -> dict[str, Any]:
    """
    Read a JWK Set; individual keys are validated when they are used.

    Returns:
        the JSON object, whose ``keys`` is a list of objects.

    Raises:
        DiscoveryStatusError: another status than 200.
        DiscoveryError: not a JSON object of that shape, or too many keys.

    Spec: RFC 7517 section 5.
    """
    document = _parse_body(response, what="JWK Set")
    keys = document.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise DiscoveryError("keys is not a list of objects.")
    if len(keys) > _MAX_KEYS:
        raise DiscoveryError(
            f"The JWK Set has {len(keys)} keys; the limit is {_MAX_KEYS}."
        )
    return document


def _parse_body(response: HTTPResponse, *, what: str) -> dict[str, Any]:
    """Return the JSON object of a 200 response."""
    if response.status_code != 200:
        raise DiscoveryStatusError(
            f"Expected the {what} with status 200, got {response.status_code}.",
            status_code=response.status_code,
        )
    return parse_json_object(response.body, error=DiscoveryError, what=what)
