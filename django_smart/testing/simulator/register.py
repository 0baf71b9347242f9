"""
The registration endpoint for dynamic client registration.

Spec: RFC 7591; SMART App Launch 2.2, "Register App with EHR", leaves it to servers.
"""

from __future__ import annotations

import hmac
import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from django_smart.testing.simulator import scopes
from django_smart.testing.simulator.clients import AUTH_METHODS
from django_smart.testing.simulator.errors import OAuthError
from django_smart.testing.simulator.exchange import json_response
from django_smart.testing.simulator.state import new_id

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["registration_endpoint"]

_GRANT_TYPES = {"authorization_code", "refresh_token", "client_credentials"}


def registration_endpoint(exchange: Exchange) -> Response:
    """Answer ``POST <registration_endpoint>``."""
    _check_access(exchange)
    metadata = _read(exchange)
    method = metadata.get("token_endpoint_auth_method", "client_secret_basic")
    grant_types = metadata.get("grant_types", ["authorization_code"])
    _check_redirect_uris(metadata, uses_code="authorization_code" in grant_types)
    _check_metadata(metadata, method, grant_types)
    secret = secrets.token_urlsafe() if method.startswith("client_secret_") else None
    client = exchange.ehr.register_client(
        new_id(),
        client_secret=secret,
        auth_method=method,
        redirect_uris=metadata.get("redirect_uris", ()),
        launch_url=metadata.get("initiate_login_uri"),
        jwks=metadata.get("jwks"),
        jwks_url=metadata.get("jwks_uri"),
        name=metadata.get("client_name"),
        scope=metadata.get("scope"),
    )
    exchange.client_id = client.client_id
    answer = {
        **metadata,
        "client_id": client.client_id,
        "client_id_issued_at": int(exchange.ehr.clock()),
        "token_endpoint_auth_method": method,
        "grant_types": grant_types,
    }
    if secret is not None:
        answer |= {"client_secret": secret, "client_secret_expires_at": 0}
    return json_response(answer, status=201, headers={"Cache-Control": "no-store"})


def _check_access(exchange: Exchange) -> None:
    expected = exchange.ehr.initial_access_token
    if expected is None:
        return
    sent = exchange.request.headers.get("Authorization", "")
    if not hmac.compare_digest(sent.encode(), f"Bearer {expected}".encode()):
        raise OAuthError(
            "invalid_token", "an initial access token is needed", status=401
        )


def _read(exchange: Exchange) -> dict[str, Any]:
    if exchange.request.mimetype != "application/json":
        raise _refused("the request must be application/json")
    try:
        metadata = json.loads(exchange.body)
    except ValueError:
        raise _refused("the request is not JSON") from None
    if not isinstance(metadata, dict):
        raise _refused("the request is not a JSON object")
    if any(value is None for value in metadata.values()):
        raise _refused("members without a value are left out")
    return metadata


def _check_redirect_uris(metadata: dict[str, Any], *, uses_code: bool) -> None:
    uris = metadata.get("redirect_uris", [])
    valid = isinstance(uris, list) and all(_is_url(uri) for uri in uris)
    if not valid or (uses_code and not uris):
        raise OAuthError("invalid_redirect_uri", "redirect_uris are complete URLs")


def _check_metadata(metadata: dict[str, Any], method: Any, grant_types: Any) -> None:
    if method not in AUTH_METHODS:
        raise _refused(f"token_endpoint_auth_method is one of {AUTH_METHODS}")
    if not isinstance(grant_types, list) or not set(grant_types) <= _GRANT_TYPES:
        raise _refused(f"grant_types are some of {sorted(_GRANT_TYPES)}")
    types = ["code"] if "authorization_code" in grant_types else []
    if metadata.get("response_types", types) != types:
        raise _refused(f"response_types for these grant_types are {types}")
    keys = {"jwks", "jwks_uri"} & set(metadata)
    if len(keys) != (1 if method == "private_key_jwt" else 0):
        raise _refused("jwks or jwks_uri, and one of them, goes with private_key_jwt")
    for name in ("initiate_login_uri", "jwks_uri"):
        if name in metadata and not _is_url(metadata[name]):
            raise _refused(f"{name} is a complete URL")
    for name in ("client_name", "scope"):
        if not isinstance(metadata.get(name, ""), str):
            raise _refused(f"{name} is text")
    try:
        for item in scopes.split_scope(metadata.get("scope", "openid")):
            scopes.parse_scope(item)
    except scopes.ScopeError as exc:
        raise _refused(str(exc)) from exc


def _is_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    parts = urlsplit(value)
    is_complete = parts.scheme in ("http", "https") and bool(parts.netloc)
    return is_complete and not parts.fragment


def _refused(description: str) -> OAuthError:
    return OAuthError("invalid_client_metadata", description)
