"""
Registered apps, and their authentication at the token endpoint.

Spec: SMART App Launch 2.2, "Client Authentication: Asymmetric" and "Symmetric";
RFC 6749 section 2.3.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from django_smart.testing.simulator import assertions
from django_smart.testing.simulator.errors import OAuthError

if TYPE_CHECKING:
    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["AUTH_METHODS", "Client", "authenticate"]

AUTH_METHODS = ("none", "client_secret_basic", "client_secret_post", "private_key_jwt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One registered app."""

    client_id: str
    name: str
    auth_method: str
    client_secret: str | None = None
    redirect_uris: tuple[str, ...] = ()
    launch_url: str | None = None
    jwks: dict[str, Any] | None = None
    jwks_url: str | None = None
    scope: str | None = None
    """The maximum scope for this app; ``None`` for anything the server knows."""

    def __post_init__(self) -> None:
        if self.auth_method not in AUTH_METHODS:
            raise ValueError(f"auth_method must be one of {', '.join(AUTH_METHODS)}")
        needs_secret = self.auth_method.startswith("client_secret_")
        if needs_secret != bool(self.client_secret):
            raise ValueError("client_secret goes with the client_secret_* methods")
        has_keys = self.jwks is not None or self.jwks_url is not None
        if has_keys != (self.auth_method == "private_key_jwt"):
            raise ValueError("jwks or jwks_url goes with private_key_jwt")


def authenticate(exchange: Exchange) -> Client:
    """
    Identify and authenticate the client that sent a form.

    Each client must use only its registered method, so that an app that sends its
    secret twice fails here.

    Raises:
        OAuthError: ``invalid_client`` with 401, or ``invalid_request``.
    """
    form = dict(exchange.form)
    header = exchange.request.headers.get("Authorization")
    basic = _read_basic(header) if header is not None else None
    if basic is not None and "basic_form_encoded" in exchange.ehr.quirks:
        basic = basic[1:] or basic
    elif basic is not None and "basic_raw" in exchange.ehr.quirks:
        basic = basic[:1]
    client_id = _claimed_client_id(form, basic)
    client = exchange.ehr.clients.get(client_id)
    if client is None:
        raise _refused("unknown client", basic)
    used = _used_methods(form, basic)
    if used != {client.auth_method}:
        raise _refused(f"{client_id} is registered for {client.auth_method}", basic)
    if client.auth_method == "private_key_jwt":
        if "assertion_client_id" in exchange.ehr.quirks and "client_id" not in form:
            raise OAuthError("", "client_id is missing")
        assertions.verify(
            exchange.ehr, client, form, endpoint=exchange.request.base_url
        )
    elif client.auth_method != "none":
        candidates = basic or [(client_id, form["client_secret"])]
        _check_secret(client, candidates, basic)
    exchange.client_id = client.client_id
    return client


def _used_methods(
    form: dict[str, str], basic: list[tuple[str, str]] | None
) -> set[str]:
    used = set()
    if basic is not None:
        used.add("client_secret_basic")
    if "client_secret" in form:
        used.add("client_secret_post")
    if "client_assertion" in form or "client_assertion_type" in form:
        used.add("private_key_jwt")
    return used or {"none"}


def _claimed_client_id(
    form: dict[str, str], basic: list[tuple[str, str]] | None
) -> str:
    """Return the client that every part of the request names."""
    named: set[str] = set()
    if basic is not None:
        names = {name for name, _ in basic}
        # Both meanings of Basic are possible; an additional client_id decides.
        named.add(form["client_id"] if form.get("client_id") in names else basic[0][0])
    if "client_assertion" in form:
        named.add(assertions.claimed_issuer(form["client_assertion"]))
    if "client_id" in form:
        named.add(form["client_id"])
    if not named:
        raise _refused("no client authentication and no client_id", basic)
    if len(named) > 1:
        raise _refused("the request names two clients", basic)
    return named.pop()


def _read_basic(header: str) -> list[tuple[str, str]]:
    """
    Return the possible meanings of a Basic header.

    SMART encodes ``client_id:client_secret`` as they are, RFC 6749 section 2.3.1
    form-encodes both first; servers differ, and this one accepts both.
    """
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        raise _refused("Authorization must be Basic", None)
    try:
        text = base64.b64decode(value, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        raise _refused("Basic credentials are not base64", [("", "")]) from None
    name, colon, secret = text.partition(":")
    if not colon:
        raise _refused("Basic credentials have no colon", [("", "")])
    return [(name, secret), (unquote_plus(name), unquote_plus(secret))]


def _check_secret(
    client: Client,
    candidates: list[tuple[str, str]],
    basic: list[tuple[str, str]] | None,
) -> None:
    expected = (client.client_secret or "").encode()
    for name, secret in candidates:
        if name == client.client_id and hmac.compare_digest(secret.encode(), expected):
            return
    raise _refused("wrong secret", basic)


def _refused(description: str, basic: list[tuple[str, str]] | None) -> OAuthError:
    return OAuthError(
        "invalid_client", description, status=401, basic=basic is not None
    )
