"""What every exchange with a server needs: our limits, and our credentials there."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from django.utils import timezone

from .. import transport
from ..conf import conf
from ..exceptions import CredentialsError
from ..models import ClientRegistration, SigningKey
from ..protocol.client_auth import (
    ClientAuthentication,
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJWT,
    PublicClient,
    load_private_key,
)
from ..protocol.jwk import PrivateKey
from ..protocol.messages import HTTPRequest, HTTPResponse

__all__ = [
    "build_client_authentication",
    "open_stream",
    "prepare_client_authentication",
    "send",
    "send_patiently",
    "whole_call_seconds",
]

_BUSY = frozenset({429, 503})
# As for FHIR requests, in seconds.
_DEFAULT_WAIT = 0.5
_LONGEST_WAIT = 5.0
_LONGEST_STREAM = 3600.0

# By algorithm, with its kid: of each there is one key that signs.
_parsed_keys: dict[str, tuple[str, PrivateKey]] = {}


def send(
    request: HTTPRequest,
    *,
    within: float | None = None,
    max_body: int = sys.maxsize,
) -> HTTPResponse:
    """
    Send *request* within the limits of the settings.

    Args:
        within: seconds for the whole call, if there are fewer left than the settings
            say.
        max_body: bytes of the answer's body, if fewer are enough than the settings say.

    Raises:
        TransportError: no usable answer came.
    """
    connect, read, total = conf.SMART_HTTP_TIMEOUT
    if within is not None:
        total = min(total, within)
    return transport.send(
        request,
        timeouts=transport.Timeouts(connect=connect, read=read, total=total),
        max_body=min(conf.SMART_MAX_BODY, max_body),
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )


def open_stream(
    request: HTTPRequest,
) -> AbstractContextManager[transport.ResponseStream]:
    """
    Send *request*; its answer, of any size, is read piece by piece.

    The connect and read limits of the settings hold, and an hour for the whole call.
    """
    connect, read, _ = conf.SMART_HTTP_TIMEOUT
    return transport.open_stream(
        request,
        timeouts=transport.Timeouts(connect=connect, read=read, total=_LONGEST_STREAM),
        max_body=sys.maxsize,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
    )


def send_patiently(build_request: Callable[[], HTTPRequest]) -> HTTPResponse:
    """
    Send, and once more if the server is busy for a moment: for what people wait for.

    After 429 or 503 with a ``Retry-After`` of at most 5 s, or without one, the second
    try follows within the limit of a single call.

    Args:
        build_request: called for each try, as a client assertion is good for one.

    Raises:
        TransportError: no usable answer came.
    """
    started = time.monotonic()
    response = send(build_request())
    wait = _get_wait(response) if response.status_code in _BUSY else None
    if wait is None:
        return response
    left = whole_call_seconds() - (time.monotonic() - started) - wait
    if left <= 0:
        return response
    time.sleep(wait)
    return send(build_request(), within=left)


def _get_wait(response: HTTPResponse) -> float | None:
    """Seconds until the second try, ``None`` for no second try."""
    if "retry-after" not in response.headers:
        return _DEFAULT_WAIT
    wait = response.retry_after
    return wait if wait is not None and wait <= _LONGEST_WAIT else None


def whole_call_seconds() -> float:
    """The longest that one call may take."""
    return conf.SMART_HTTP_TIMEOUT[2]


def build_client_authentication(
    registration: ClientRegistration, *, token_endpoint: str
) -> ClientAuthentication:
    """
    How *registration* proves who it is, ready for one request.

    Raises:
        CredentialsError: the secret or the signing key is missing or unusable.
    """
    return prepare_client_authentication(registration, token_endpoint=token_endpoint)()


def prepare_client_authentication(
    registration: ClientRegistration, *, token_endpoint: str
) -> Callable[[], ClientAuthentication]:
    """
    The same for many requests: call the result for each; it uses no database.

    Raises:
        CredentialsError: the secret or the signing key is missing or unusable.
    """
    method = registration.token_endpoint_auth_method
    client_id = registration.client_id
    if method == ClientRegistration.AuthMethod.NONE:
        return partial(PublicClient, client_id=client_id)
    if method == ClientRegistration.AuthMethod.PRIVATE_KEY_JWT:
        return _prepare_private_key_jwt(registration, token_endpoint=token_endpoint)
    client_secret = registration.get_client_secret(os.environ)
    if method == ClientRegistration.AuthMethod.CLIENT_SECRET_POST:
        return partial(
            ClientSecretPost, client_id=client_id, client_secret=client_secret
        )
    server = registration.server
    return partial(
        ClientSecretBasic,
        client_id=client_id,
        client_secret=client_secret,
        form_encode=server.basic_credentials == server.BasicCredentials.FORM_ENCODED,
    )


def _get_parsed_key(key: SigningKey) -> PrivateKey:
    # Parsing costs 150 signatures; the kid is the key's own thumbprint.  The key before
    # it is forgotten: what does not sign any more does not stay in memory.
    kid, parsed = _parsed_keys.get(key.algorithm, ("", None))
    if parsed is None or kid != key.kid:
        parsed = load_private_key(key.private_key)
        _parsed_keys[key.algorithm] = key.kid, parsed
    return parsed


def _prepare_private_key_jwt(
    registration: ClientRegistration, *, token_endpoint: str
) -> Callable[[], PrivateKeyJWT]:
    # Read each time, as it may have been rotated; the private half only if it is new.
    key = (
        SigningKey.objects.active()
        .filter(algorithm=registration.signing_algorithm)
        .defer("private_key")
        .first()
    )
    if key is None:
        raise CredentialsError(
            f"There is no active {registration.signing_algorithm} signing key: make "
            "one with smart_keys generate."
        )
    parsed, algorithm, kid = _get_parsed_key(key), key.algorithm, key.kid
    server = registration.server
    names_token_endpoint = (
        server.assertion_audience == server.AssertionAudience.TOKEN_ENDPOINT
    )
    return lambda: PrivateKeyJWT(
        client_id=registration.client_id,
        key=parsed,
        algorithm=algorithm,
        kid=kid,
        audience=token_endpoint if names_token_endpoint else None,
        now=timezone.now(),
        jti=secrets.token_urlsafe(24),
    )
