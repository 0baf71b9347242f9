"""Dynamic client registration: register this client at a server automatically."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django_smart.exceptions import (
    RegistrationError,
    RegistrationRefusedError,
)
from django_smart.protocol.json import parse_json_object
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.oauth import find_oauth_error, get_text

__all__ = [
    "ClientInformation",
    "build_registration_request",
    "process_registration_response",
]

_METHODS = ("client_secret_basic", "client_secret_post", "none", "private_key_jwt")
# RFC 6750 section 2.1.
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientInformation:
    """
    The server's response.

    Attributes:
        client_secret: for ``client_secret_*``, otherwise ``None``.
        client_secret_expires_at: seconds since 1970; ``None`` if it does not expire.
        token_endpoint_auth_method: the requested method, or the server's replacement.
        scope: the registered scope; ``None`` if the server omits it.
    """

    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    client_secret_expires_at: int | None = None
    token_endpoint_auth_method: str
    scope: str | None = None


def build_registration_request(
    metadata: Mapping[str, Any],
    *,
    registration_endpoint: str,
    initial_access_token: str | None = None,
) -> HTTPRequest:
    """
    Build the request that registers this client.

    Args:
        metadata: of this client, by the registered names (RFC 7591 section 2).
        initial_access_token: from the server's operator, if registration is not public.

    Raises:
        ValueError: the token is not valid in a header.

    Spec: RFC 7591 section 3.1.
    """
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    if initial_access_token is not None:
        if not _BEARER.fullmatch(initial_access_token):
            raise ValueError("The initial access token is not a bearer token.")
        headers["Authorization"] = f"Bearer {initial_access_token}"
    return HTTPRequest(
        method="POST",
        url=registration_endpoint,
        headers=headers,
        body=json.dumps(metadata).encode(),
    )


def process_registration_response(
    response: HTTPResponse, *, metadata: Mapping[str, Any]
) -> ClientInformation:
    """
    Turn the registration endpoint's response into a ``ClientInformation``.

    A server may replace requested values; if they make the client unusable, it is
    refused.

    Args:
        metadata: as it was requested.

    Raises:
        RegistrationRefusedError: a status other than 200 or 201.
        RegistrationError: no ``client_id``, a secret that does not
            match the method, or redirect URIs or keys other than the requested ones.

    Spec: RFC 7591 section 3.2.
    """
    if response.status_code not in (200, 201):
        raise _build_refusal(response)
    answer = parse_json_object(
        response.body,
        error=RegistrationError,
        what="registration response",
    )
    read = partial(get_text, answer, error=RegistrationError)
    client_id = read("client_id")
    if client_id is None:
        raise RegistrationError("client_id is missing.")
    requested_method: str = metadata["token_endpoint_auth_method"]
    method = read("token_endpoint_auth_method") or requested_method
    secret = read("client_secret")
    if method not in _METHODS:
        raise RegistrationError(
            f"The server replaced the authentication method with {method}, "
            "which SMART does not define."
        )
    if method.startswith("client_secret_") and secret is None:
        raise RegistrationError(f"client_secret is missing, but {method} requires it.")
    _expect(answer, "redirect_uris", *metadata.get("redirect_uris", ()))
    if method == "private_key_jwt":
        if "jwks_uri" in metadata:
            _expect(answer, "jwks_uri", metadata["jwks_uri"])
        elif "jwks" not in metadata:
            raise RegistrationError(
                "The server replaced the authentication method with "
                "private_key_jwt, but it was sent no keys."
            )
    return ClientInformation(
        client_id=client_id,
        client_secret=secret if method.startswith("client_secret_") else None,
        client_secret_expires_at=_get_seconds(answer, "client_secret_expires_at")
        or None,
        token_endpoint_auth_method=method,
        scope=read("scope"),
    )


def _get_seconds(answer: Mapping[str, Any], name: str) -> int | None:
    value = answer.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RegistrationError(f"{name} is not a whole number.")
    return value


def _expect(answer: Mapping[str, Any], name: str, *values: str) -> None:
    """Refuse a member that lacks *values*; an absent one counts as accepted."""
    found = answer.get(name)
    if found is None:
        return
    listed = found if isinstance(found, list) else [found]
    if any(value not in listed for value in values):
        raise RegistrationError(
            f"The server registered a different {name} than requested."
        )


def _build_refusal(response: HTTPResponse) -> RegistrationRefusedError:
    status = response.status_code
    refusal = find_oauth_error(response)
    message = f"The server refused to register this client, with status {status}"
    message += f" and error={refusal['error']}." if refusal else "."
    if status in (401, 403):
        message += " It may require an initial access token: ask its operator for one."
    return RegistrationRefusedError(
        message,
        error=refusal.get("error", ""),
        error_description=refusal.get("error_description", ""),
        status_code=status,
    )
