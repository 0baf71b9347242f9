"""Requests to a server: the limits of the settings, and this site's credentials."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from functools import partial

from django.db.models import F, Q
from django.utils import timezone

from .. import transport
from ..conf import conf
from ..exceptions import CredentialsError, ServerTimeoutError
from ..models import ClientRegistration, FHIRServer, SigningKey
from ..protocol.client_auth import (
    ClientAuthentication,
    ClientSecretBasic,
    ClientSecretPost,
    PrivateKeyJWT,
    PublicClient,
    WithHeaders,
)
from ..protocol.jwk import PrivateKey, load_private_key
from ..protocol.messages import HTTPRequest, HTTPResponse
from .egress import check_peer

__all__ = [
    "EHRTransport",
    "build_client_authentication",
    "open_stream",
    "prepare_client_authentication",
    "send",
    "send_patiently",
    "whole_call_seconds",
]

# Seconds.
_LONGEST_STREAM = 3600.0
# Bytes of a message that is no FHIR, such as a token response: ten megabytes of JSON
# can take seconds to parse, while other servers wait.
_MAX_MESSAGE = 512 * 1024
# Of any response, after decompression.
_MAX_BODY = 10 * 1024 * 1024

# By algorithm, with the kid: one key of each signs.
_parsed_keys: dict[tuple[str, int | None], tuple[str, PrivateKey]] = {}


def send(
    request: HTTPRequest,
    *,
    server: FHIRServer | None,
    within: float | None = None,
    max_body: int = _MAX_MESSAGE,
) -> HTTPResponse:
    """
    Send *request* within the limits of the settings.

    Args:
        server: who named the URL; ``None`` if the operator did.
        within: seconds for the whole call, if fewer than in the settings.
        max_body: limit for the response body in bytes, if less than in the settings;
            by default, that of anything but FHIR.

    Raises:
        TransportError: no usable answer came.
    """
    connect, read, total = conf.SMART_HTTP_TIMEOUT
    if within is not None:
        total = min(total, within)
    if request.method == "POST":
        # Late tokens are valid, and cannot be fetched again.
        read = total
    return transport.send(
        request,
        timeouts=transport.Timeouts(
            connect=min(connect, total), read=min(read, total), total=total
        ),
        max_body=min(_MAX_BODY, max_body),
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        check_peer=partial(check_peer, request.url) if server else None,
    )


def open_stream(
    request: HTTPRequest, *, server: FHIRServer | None, max_body: int = sys.maxsize
) -> AbstractContextManager[transport.ResponseStream]:
    """Open a stream, which may take an hour; see :func:`send`."""
    connect, read, _ = conf.SMART_HTTP_TIMEOUT
    return transport.open_stream(
        request,
        timeouts=transport.Timeouts(connect=connect, read=read, total=_LONGEST_STREAM),
        max_body=max_body,
        insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS,
        check_peer=partial(check_peer, request.url) if server else None,
    )


class EHRTransport:
    """
    Sends a FHIR client's requests within the limits of the settings.

    A stream may take an hour and has no size limit.

    Args:
        server: whose URLs are requested.
        deadline: in ``time.monotonic()``, after which the result is no longer needed.
    """

    def __init__(self, server: FHIRServer, *, deadline: float = float("inf")) -> None:
        self._server = server
        self._deadline = deadline

    @property
    def call_limit(self) -> float:
        return whole_call_seconds()

    def _complete(self, request: HTTPRequest) -> HTTPRequest:
        """Add the server's extra headers to requests that carry a token."""
        if "Authorization" not in request.headers:
            return request
        extra = self._server.get_request_headers()
        return replace(request, headers={**request.headers, **extra})

    def send(self, request: HTTPRequest) -> HTTPResponse:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise ServerTimeoutError("The request was canceled.")
        return send(
            self._complete(request),
            server=self._server,
            within=left,
            max_body=sys.maxsize,
        )

    def open_stream(
        self, request: HTTPRequest
    ) -> AbstractContextManager[transport.ResponseStream]:
        return open_stream(self._complete(request), server=self._server)


def send_patiently(
    build_request: Callable[[], HTTPRequest], *, server: FHIRServer
) -> HTTPResponse:
    """
    Send a request for a waiting user, and again if the server is briefly busy.

    After 429 or 503 with a ``Retry-After`` of at most 5 s, or without one, there is a
    second attempt within the time limit of a single call.

    Args:
        build_request: called for each attempt, because a client assertion is
            single-use.
        server: who named the URL.

    Raises:
        TransportError: no usable answer came.
    """
    started = time.monotonic()
    response = send(build_request(), server=server)
    wait = response.retry_wait
    if wait is None:
        return response
    ends_at = started + whole_call_seconds()
    left = ends_at - time.monotonic() - wait
    if left <= 0:
        return response
    time.sleep(wait)
    again = build_request()
    # The process may have been suspended in the meantime.
    left = min(left, ends_at - time.monotonic())
    return send(again, server=server, within=left) if left > 0 else response


def whole_call_seconds() -> float:
    """Return the longest time that one call may take."""
    return conf.SMART_HTTP_TIMEOUT[2]


def build_client_authentication(
    registration: ClientRegistration,
    *,
    token_endpoint: str,
    clock: Callable[[], datetime] = timezone.now,
) -> ClientAuthentication:
    """
    Return the client authentication of *registration* for one request.

    Args:
        clock: returns the time for an assertion, ideally the database's.

    Raises:
        CredentialsError: the secret or the signing key is missing or unusable.
    """
    return prepare_client_authentication(
        registration, token_endpoint=token_endpoint, clock=clock
    )()


def prepare_client_authentication(
    registration: ClientRegistration,
    *,
    token_endpoint: str,
    clock: Callable[[], datetime] = timezone.now,
) -> Callable[[], ClientAuthentication]:
    """
    Return a function that authenticates many requests without using the database.

    Raises:
        CredentialsError: the secret or the signing key is missing or unusable.
    """
    server, method = registration.server, registration.token_endpoint_auth_method
    build: Callable[[], ClientAuthentication]
    if method == ClientRegistration.AuthMethod.NONE:
        build = partial(PublicClient, client_id=registration.client_id)
    elif method == ClientRegistration.AuthMethod.PRIVATE_KEY_JWT:
        build = _prepare_private_key_jwt(
            registration, token_endpoint=token_endpoint, clock=clock
        )
    elif method == ClientRegistration.AuthMethod.CLIENT_SECRET_POST:
        build = partial(
            ClientSecretPost,
            client_id=registration.client_id,
            client_secret=registration.get_client_secret(os.environ),
        )
    else:
        build = partial(
            ClientSecretBasic,
            client_id=registration.client_id,
            client_secret=registration.get_client_secret(os.environ),
            form_encode=server.quirks.basic_credentials == "form_encoded",
        )
    headers = server.get_request_headers()
    return (lambda: WithHeaders(method=build(), headers=headers)) if headers else build


def _get_parsed_key(key: SigningKey) -> PrivateKey:
    # Parsing takes as long as 150 signatures; the kid is the key's thumbprint. The
    # previous key is forgotten: a key that no longer signs does not stay in memory.
    owner = key.algorithm, key.registration_id
    kid, parsed = _parsed_keys.get(owner, ("", None))
    if parsed is None or kid != key.kid:
        parsed = load_private_key(key.private_key)
        _parsed_keys[owner] = key.kid, parsed
    return parsed


def _prepare_private_key_jwt(
    registration: ClientRegistration,
    *,
    token_endpoint: str,
    clock: Callable[[], datetime],
) -> Callable[[], PrivateKeyJWT]:
    # Read each time, since it may have been rotated; the private key only if new.
    # A separate key takes precedence over the shared one.
    key = (
        SigningKey.objects.active()
        .filter(
            Q(registration=registration) | Q(registration=None),
            algorithm=registration.signing_algorithm,
        )
        .defer("private_key")
        .order_by(F("registration").asc(nulls_last=True))
        .first()
    )
    if key is None:
        raise CredentialsError(
            f"There is no active {registration.signing_algorithm} signing key: "
            "run smart_keys generate --algorithm "
            f"{registration.signing_algorithm}."
        )
    parsed, algorithm, kid = _get_parsed_key(key), key.algorithm, key.kid
    quirks = registration.server.quirks
    names_token_endpoint = quirks.assertion_audience == "token_endpoint"
    return lambda: PrivateKeyJWT(
        client_id=registration.client_id,
        key=parsed,
        algorithm=algorithm,
        kid=kid,
        audience=token_endpoint if names_token_endpoint else None,
        with_client_id=quirks.client_id_with_assertion,
        now=clock(),
        jti=secrets.token_urlsafe(24),
    )
