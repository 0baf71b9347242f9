"""
Client authentication at the token endpoint, with one class for each method.

``apply`` adds to the form parameters and headers of a request. The names are the values
of ``token_endpoint_auth_method``.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, MutableMapping, MutableSequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from urllib.parse import quote_plus

import jwt

from django_smart.exceptions import CredentialsError
from django_smart.protocol.jwk import PrivateKey, get_algorithm
from django_smart.protocol.urls import get_origin

__all__ = [
    "CLIENT_ASSERTION_TYPE",
    "MAX_ASSERTION_LIFETIME",
    "ClientAuthentication",
    "ClientSecretBasic",
    "ClientSecretPost",
    "PrivateKeyJWT",
    "PublicClient",
]

CLIENT_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
#: Seconds (TOK-15).
MAX_ASSERTION_LIFETIME = 300
#: Seconds; with the default skew, ``exp`` minus ``iat`` just reaches the limit.
_DEFAULT_LIFETIME = 240
_DEFAULT_SKEW = 60

_Parameters = MutableSequence[tuple[str, str]]
_Headers = MutableMapping[str, str]


class ClientAuthentication(Protocol):
    """The interface of each method: it completes a request."""

    def apply(
        self, parameters: _Parameters, headers: _Headers, *, endpoint: str
    ) -> None:
        """
        Add the method's values to *parameters* and *headers*.

        Args:
            endpoint: the URL that the request is sent to.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicClient:
    """``none``: the client only identifies itself (TOK-03, TOK-08)."""

    client_id: str

    def apply(
        self, parameters: _Parameters, headers: _Headers, *, endpoint: str
    ) -> None:
        """Insert ``client_id`` as the first form parameter."""
        parameters.insert(0, ("client_id", self.client_id))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSecretBasic:
    """
    ``client_secret_basic``: an ``Authorization: Basic`` header.

    SMART encodes id and secret unchanged; RFC 6749 section 2.3.1 form-encodes both
    first. The results differ for ``:``, ``%``, ``+``, space and non-ASCII letters.

    Attributes:
        form_encode: as in RFC 6749, for servers that require it.
    """

    client_id: str
    client_secret: str = field(repr=False)
    form_encode: bool = False

    def apply(
        self, parameters: _Parameters, headers: _Headers, *, endpoint: str
    ) -> None:
        """
        Set the header.

        Raises:
            CredentialsError: there is no secret, or the id contains a colon and is not
                form-encoded.
        """
        _check_secret(self.client_secret)
        user, password = self.client_id, self.client_secret
        if self.form_encode:
            user, password = quote_plus(user), quote_plus(password)
        elif ":" in user:
            raise CredentialsError(
                "A client_id with a colon can only be sent form-encoded in "
                "HTTP Basic: turn that on, or use client_secret_post."
            )
        credentials = b64encode(f"{user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {credentials}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSecretPost:
    """``client_secret_post``: id and secret in the form."""

    client_id: str
    client_secret: str = field(repr=False)

    def apply(
        self, parameters: _Parameters, headers: _Headers, *, endpoint: str
    ) -> None:
        """
        Append both to the form.

        Raises:
            CredentialsError: there is no secret.
        """
        _check_secret(self.client_secret)
        parameters.append(("client_id", self.client_id))
        parameters.append(("client_secret", self.client_secret))


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateKeyJWT:
    """
    ``private_key_jwt``: an assertion signed for one request.

    Build a new one for each request, with an unused ``jti`` (TOK-09).

    Attributes:
        key: as returned by :func:`~django_smart.protocol.jwk.load_private_key`.
        algorithm: ``RS384`` with an RSA key, ``ES384`` with a P-384 key.
        kid: the key's id in the published JWK Set.
        audience: the ``aud``, if a server requires another than the request's URL.
        with_client_id: add ``client_id`` to the form, for servers that require it.
        now: aware datetime.
        jti: single-use value with at least 128 random bits.
    """

    client_id: str
    key: PrivateKey = field(repr=False)
    algorithm: str
    kid: str
    now: datetime
    jti: str = field(repr=False)
    audience: str | None = None
    with_client_id: bool = False

    def apply(
        self, parameters: _Parameters, headers: _Headers, *, endpoint: str
    ) -> None:
        """
        Append the assertion to the form.

        The recipient of an assertion can present it to its audience. So the audience
        must be the recipient, or at least on its origin.

        Raises:
            CredentialsError: the audience is not on the origin of *endpoint*, or as for
                :meth:`sign`.
        """
        audience = self.audience or endpoint
        if get_origin(audience) != get_origin(endpoint):
            raise CredentialsError(
                "A client assertion is sent only to the origin it was made "
                f"for; the endpoint {endpoint} is not at the origin of "
                f"{audience}."
            )
        if self.with_client_id:
            parameters.append(("client_id", self.client_id))
        parameters.append(("client_assertion_type", CLIENT_ASSERTION_TYPE))
        parameters.append(("client_assertion", self.sign(audience)))

    def sign(
        self,
        audience: str,
        *,
        lifetime: int = _DEFAULT_LIFETIME,
        skew: int | None = _DEFAULT_SKEW,
    ) -> str:
        """
        Build and sign the JWT that authenticates one request.

        Args:
            audience: URL of the request (TOK-14).
            lifetime: 1 to 300 seconds, from ``now`` to ``exp``.
            skew: seconds by which ``iat`` and ``nbf`` are moved back, for servers whose
                clock is slow; ``None`` omits both.

        Raises:
            CredentialsError: the key is not for ``algorithm``, or ``client_id``,
                ``kid`` or ``jti`` is empty.
            ValueError: *lifetime* is out of bounds.

        Spec: SMART App Launch 2.2, "Client Authentication: Asymmetric".
        """
        if not 0 < lifetime <= MAX_ASSERTION_LIFETIME:
            raise ValueError(f"Expected a lifetime of 1 to 300 seconds, got {lifetime}")
        if not (self.client_id and self.kid and self.jti):
            raise CredentialsError(
                "A client assertion requires client_id, kid and jti."
            )
        if get_algorithm(self.key) != self.algorithm:
            raise CredentialsError(
                f"The private key cannot sign with {self.algorithm!r}."
            )
        issued_at = int(self.now.timestamp())
        claims: dict[str, str | int] = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": audience,
            "exp": issued_at + lifetime,
            "jti": self.jti,
        }
        if skew is not None:
            claims["iat"] = claims["nbf"] = issued_at - skew
        headers = {"kid": self.kid, "typ": "JWT"}
        return jwt.encode(claims, self.key, algorithm=self.algorithm, headers=headers)


@dataclass(frozen=True, kw_only=True, slots=True)
class WithHeaders:
    """Another method with additional headers that the server requires."""

    method: ClientAuthentication
    headers: Mapping[str, str] = field(repr=False)

    def apply(
        self, parameters: _Parameters, headers: _Headers, *, endpoint: str
    ) -> None:
        """Apply the method and add the headers."""
        headers.update(self.headers)
        self.method.apply(parameters, headers, endpoint=endpoint)


def _check_secret(client_secret: str) -> None:
    if not client_secret:
        raise CredentialsError("The registration has no client secret.")
