"""Validate a server's ID tokens with its known issuer and keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from django.utils import timezone

from ..conf import CLOCK_LEEWAY
from ..exceptions import IDTokenSignatureError
from ..models import ClientRegistration, FHIRServer
from ..protocol.id_token import (
    DEFAULT_ALGORITHMS,
    IDTokenClaims,
    read_access_token,
    validate_id_token,
)
from .discovery import get_issuer, iter_jwks

__all__ = ["check_id_token", "get_access_token_claims"]

_Claims = TypeVar("_Claims")


def check_id_token(
    token: str,
    *,
    registration: ClientRegistration,
    nonce: str | None,
    nonce_required: bool,
    issuer: str = "",
) -> IDTokenClaims:
    """
    Validate an ID token from the registration's server, and return its claims.

    Args:
        nonce, nonce_required: as for
            :func:`~django_smart.protocol.id_token.validate_id_token`.
        issuer: the required issuer; empty for the server's issuer.

    Raises:
        IDTokenError: as ``validate_id_token``.
        TransportError, DiscoveryError, UnsupportedServerError: the server's issuer or
            keys are unknown and could not be fetched.
    """
    server = registration.server
    validate = partial(
        validate_id_token,
        token,
        issuer=issuer or get_issuer(server),
        client_id=registration.client_id,
        nonce=nonce,
        nonce_required=nonce_required,
        leeway=CLOCK_LEEWAY,
        algorithms=_get_algorithms(server),
        base_url=server.base_url,
    )
    return _try_keys(server, validate)


def get_access_token_claims(
    token: str, *, registration: ClientRegistration
) -> dict[str, Any]:
    """
    Verify an access token of the registration's server, a JWT; return its claims.

    Raises:
        IDTokenError: as :func:`~django_smart.protocol.id_token.read_access_token`.
        TransportError, DiscoveryError, UnsupportedServerError: as
            :func:`check_id_token`.
    """
    server = registration.server
    read = partial(
        read_access_token,
        token,
        issuer=get_issuer(server),
        client_id=registration.client_id,
        leeway=CLOCK_LEEWAY,
    )
    return _try_keys(server, read)


def _try_keys(server: FHIRServer, validate: Callable[..., _Claims]) -> _Claims:
    refused = IDTokenSignatureError("None of the server's keys are known.")
    for jwks in iter_jwks(server):
        try:
            return validate(jwks=jwks, now=timezone.now())
        # Also a wrong signature: without ``kid``, a new key looks like the old one.
        except IDTokenSignatureError as exc:
            refused = exc
    raise refused


def _get_algorithms(server: FHIRServer) -> frozenset[str]:
    """Return accepted algorithms: the server's or the operator's, or all."""
    # The stored configuration: it was read before any ID token was received.
    stored = {**(server.discovered.configuration or {}), **server.overrides}
    named = stored.get("id_token_signing_alg_values_supported")
    return DEFAULT_ALGORITHMS.intersection(named) if named else DEFAULT_ALGORITHMS
