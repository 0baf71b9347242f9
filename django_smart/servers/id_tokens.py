"""ID tokens of a server, checked with what is known of it."""

from __future__ import annotations

from django.utils import timezone

from ..conf import conf
from ..exceptions import UnknownSigningKeyError
from ..models import ClientRegistration, FHIRServer
from ..protocol.id_token import DEFAULT_ALGORITHMS, IDTokenClaims, validate_id_token
from .discovery import get_configuration, get_issuer, iter_jwks

__all__ = ["check_id_token"]


def check_id_token(
    token: str,
    *,
    registration: ClientRegistration,
    nonce: str | None,
    nonce_required: bool,
    issuer: str = "",
) -> IDTokenClaims:
    """
    The claims of an ID token that came from the registration's server.

    Args:
        nonce, nonce_required: as for
            :func:`~django_smart.protocol.id_token.validate_id_token`.
        issuer: who has to have issued it; empty for the server's issuer.

    Raises:
        IDTokenError: as ``validate_id_token``.
        TransportError, DiscoveryError, UnsupportedServerError: the server's issuer or
            keys are not known and could not be had.
    """
    server = registration.server
    issuer = issuer or get_issuer(server)
    algorithms = _get_algorithms(server)

    missing = UnknownSigningKeyError("No key of the server is known.")
    for jwks in iter_jwks(server):
        try:
            return validate_id_token(
                token,
                jwks=jwks,
                issuer=issuer,
                client_id=registration.client_id,
                nonce=nonce,
                nonce_required=nonce_required,
                now=timezone.now(),
                leeway=conf.SMART_CLOCK_LEEWAY,
                algorithms=algorithms,
                base_url=server.base_url,
            )
        except UnknownSigningKeyError as exc:
            missing = exc
    raise missing


def _get_algorithms(server: FHIRServer) -> frozenset[str]:
    """Of our allow-list: what is set by hand, or what the server says, or all."""
    pinned = server.id_token_algorithms.split()
    advertised = get_configuration(server).id_token_signing_alg_values_supported
    named = pinned or advertised
    return DEFAULT_ALGORITHMS.intersection(named) if named else DEFAULT_ALGORITHMS
