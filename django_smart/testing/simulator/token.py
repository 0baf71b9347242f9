"""
The endpoints for tokens: to get one, to revoke it, and to ask about it.

Spec: SMART App Launch 2.2, "Obtain access token", "Refresh access token", "Backend
Services" and "Token Introspection"; RFC 6749 sections 4.1.3, 4.4, 5 and 6; RFC 7009;
RFC 7636 section 4.6; RFC 7662.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from django_smart.testing.simulator import scopes
from django_smart.testing.simulator.clients import authenticate
from django_smart.testing.simulator.errors import OAuthError
from django_smart.testing.simulator.exchange import FORM_TYPE, json_response
from django_smart.testing.simulator.id_tokens import issue_access_token, issue_id_token
from django_smart.testing.simulator.state import (
    AccessToken,
    Code,
    Grant,
    RefreshToken,
    new_id,
)

if TYPE_CHECKING:
    from django_smart.testing.simulator.clients import Client
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange

__all__ = [
    "BACKEND_LIFETIME",
    "introspection_endpoint",
    "oauth_error_response",
    "revocation_endpoint",
    "token_endpoint",
]

BACKEND_LIFETIME = 300
"""Seconds that an access token of a backend service lives."""

_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_FORM_ONLY = frozenset(
    [
        "grant_type",
        "code",
        "code_verifier",
        "redirect_uri",
        "refresh_token",
        "client_id",
        "client_secret",
        "client_assertion",
        "client_assertion_type",
        "token",
    ]
)


def token_endpoint(exchange: Exchange) -> Response:
    """Answer ``POST <token_endpoint>``."""
    form = _check_form(exchange)
    client = authenticate(exchange)
    handler = _GRANTS.get(form.get("grant_type", ""))
    if "grant_type" not in form:
        raise OAuthError("invalid_request", "grant_type is missing")
    if handler is None:
        raise OAuthError("unsupported_grant_type", "this grant_type is not supported")
    with exchange.ehr.store.lock:
        answer = handler(exchange, client, form)
    return json_response(answer, headers=_NO_STORE)


def _check_form(exchange: Exchange) -> dict[str, str]:
    """
    The parameters of a form POST, each at most once, empty ones left out.

    Raises:
        OAuthError: ``invalid_request``.
    """
    if exchange.request.mimetype != FORM_TYPE:
        raise OAuthError("invalid_request", f"the body must be {FORM_TYPE}")
    if any(name in _FORM_ONLY for name, _ in exchange.query):
        raise OAuthError("invalid_request", "parameters belong in the body")
    counts = Counter(name for name, _ in exchange.form)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise OAuthError(
            "invalid_request", f"given more than once: {', '.join(repeated)}"
        )
    return {name: value for name, value in exchange.form if value}


def oauth_error_response(error: OAuthError) -> Response:
    """The JSON answer for *error* (RFC 6749 section 5.2)."""
    headers = dict(_NO_STORE)
    if error.basic and error.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="Harbour EHR"'
    if not error.error:
        return Response(status=error.status, headers=headers)
    body = {"error": error.error, "error_description": error.description}
    return json_response(body, status=error.status, headers=headers)


def _exchange_code(
    exchange: Exchange, client: Client, form: dict[str, str]
) -> dict[str, Any]:
    ehr = exchange.ehr
    for name in ("code", "redirect_uri", "code_verifier"):
        if name not in form:
            # A verifier that is missing is a wrong one: RFC 7636 section 4.6.
            error = "invalid_grant" if name == "code_verifier" else "invalid_request"
            raise OAuthError(error, f"{name} is missing")
    code = ehr.store.codes.get(form["code"])
    if code is None or code.grant.client_id != client.client_id:
        raise OAuthError("invalid_grant", "code is not known")
    if code.used:
        # RFC 6749 section 4.1.2: what the code has brought is taken back.
        code.grant.revoked = True
        raise OAuthError("invalid_grant", "code has been used before")
    _check_code(ehr, code, form)
    code.used = True
    grant = code.grant
    exchange.patient = grant.patient
    answer = _token_answer(ehr, grant, grant.scopes, ehr.access_token_lifetime)
    if not ehr.echo_offline_access:
        echoed = [item for item in grant.scopes if item != "offline_access"]
        answer["scope"] = " ".join(echoed)
    if "patient_in_fhir_user" in ehr.quirks:
        answer.pop("patient", None)
    if "openid" in grant.scopes:
        answer["id_token"] = issue_id_token(ehr, grant)
    if {"offline_access", "online_access"} & set(grant.scopes):
        answer.update(_describe(ehr, _issue_refresh_token(ehr, grant)))
    return answer


def _check_code(ehr: EHRSimulator, code: Code, form: dict[str, str]) -> None:
    if code.expires_at <= ehr.clock():
        raise OAuthError("invalid_grant", "code has expired")
    if form["redirect_uri"] != code.redirect_uri:
        raise OAuthError(
            "invalid_grant", "redirect_uri is not that of the authorization request"
        )
    verifier = form["code_verifier"]
    if not _VERIFIER.fullmatch(verifier):
        raise OAuthError("invalid_grant", "code_verifier is malformed")
    digest = hashlib.sha256(verifier.encode()).digest()
    challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    if challenge != code.code_challenge:
        raise OAuthError("invalid_grant", "code_verifier does not match the challenge")


def _refresh(
    exchange: Exchange, client: Client, form: dict[str, str]
) -> dict[str, Any]:
    ehr = exchange.ehr
    value = form.get("refresh_token")
    if value is None:
        raise OAuthError("invalid_request", "refresh_token is missing")
    token = ehr.store.refresh_tokens.get(value)
    if token is None or token.grant.client_id != client.client_id:
        raise OAuthError("invalid_grant", "refresh_token is not known")
    if token.used:
        # Either the app or a thief holds an old token: nobody can tell which.
        token.grant.revoked = True
        ehr.reused_refresh_tokens += 1
        raise OAuthError("invalid_grant", "refresh_token has been used before")
    if ehr.store.live_refresh_token(value, now=ehr.clock()) is None:
        raise OAuthError("invalid_grant", "refresh_token has expired or is revoked")
    grant = token.grant
    asked = _narrowed_scopes(grant, form.get("scope"))
    exchange.patient = grant.patient
    answer = _token_answer(ehr, grant, asked, ehr.access_token_lifetime)
    if ehr.rotate_refresh_tokens:
        token.used = True
        token = _issue_refresh_token(ehr, grant)
    answer.update(_describe(ehr, token))
    return answer


def _narrowed_scopes(grant: Grant, scope: str | None) -> list[str]:
    if scope is None:
        return grant.scopes
    try:
        asked = scopes.split_scope(scope)
        grown = [item for item in asked if not scopes.covers(grant.scopes, item)]
    except scopes.ScopeError as exc:
        raise OAuthError("invalid_scope", str(exc)) from exc
    if grown:
        raise OAuthError("invalid_scope", f"not granted before: {' '.join(grown)}")
    return asked


def _client_credentials(
    exchange: Exchange, client: Client, form: dict[str, str]
) -> dict[str, Any]:
    has_secret = client.auth_method.startswith("client_secret_")
    # A secret is enough only for what the client was registered for as a service.
    is_service = has_secret and "system/" in (client.scope or "")
    if client.auth_method != "private_key_jwt" and not is_service:
        raise OAuthError("unauthorized_client", "backend services use private_key_jwt")
    try:
        asked = scopes.split_scope(form.get("scope", ""))
        parsed = [scopes.parse_scope(item) for item in asked]
        if client.scope is not None:
            allowed = client.scope.split()
            asked = [item for item in asked if scopes.covers(allowed, item)]
    except scopes.ScopeError as exc:
        raise OAuthError("invalid_scope", str(exc)) from exc
    if not all(scope is not None and scope.level == "system" for scope in parsed):
        raise OAuthError("invalid_scope", "backend services get system/ scopes only")
    if not asked:
        raise OAuthError("invalid_scope", "the client is registered for none of these")
    grant = Grant(
        client_id=client.client_id, user=None, patient=None, scopes=asked, context={}
    )
    return _token_answer(exchange.ehr, grant, asked, BACKEND_LIFETIME)


_GRANTS = {
    "authorization_code": _exchange_code,
    "refresh_token": _refresh,
    "client_credentials": _client_credentials,
}


def _token_answer(
    ehr: EHRSimulator, grant: Grant, granted: list[str], lifetime: int
) -> dict[str, Any]:
    """The members that every successful answer has, and the launch context."""
    now = ehr.clock()
    is_jwt = "context_in_access_token" in ehr.quirks
    token = AccessToken(
        value=issue_access_token(ehr, grant, now + lifetime) if is_jwt else new_id(),
        grant=grant,
        scopes=list(granted),
        issued_at=now,
        expires_at=now + lifetime,
    )
    ehr.store.access_tokens[token.value] = token
    return {
        **({} if is_jwt else grant.context),
        "token_type": "Bearer",
        "scope": " ".join(granted),
        "expires_in": lifetime,
        "access_token": token.value,
    }


def _issue_refresh_token(ehr: EHRSimulator, grant: Grant) -> RefreshToken:
    lifetime = ehr.refresh_token_lifetime
    expires_at = None if lifetime is None else ehr.clock() + lifetime
    token = RefreshToken(value=new_id(), grant=grant, expires_at=expires_at)
    ehr.store.refresh_tokens[token.value] = token
    return token


def _describe(ehr: EHRSimulator, token: RefreshToken) -> dict[str, Any]:
    """The refresh token, and how long it lives if it has an end, as Keycloak does."""
    if token.expires_at is None:
        return {"refresh_token": token.value}
    left = max(int(token.expires_at - ehr.clock()), 0)
    return {"refresh_token": token.value, "refresh_expires_in": left}


# Revocation and introspection


def revocation_endpoint(exchange: Exchange) -> Response:
    """
    Answer ``POST <revocation_endpoint>``.

    A refresh token takes its whole grant with it, an access token only itself.
    """
    form = _check_form(exchange)
    client = authenticate(exchange)
    value = form.get("token")
    if value is None:
        raise OAuthError("invalid_request", "token is missing")
    store = exchange.ehr.store
    with store.lock:
        grant = store.grant_of(value)
        if grant is not None and grant.client_id != client.client_id:
            raise OAuthError("unauthorized_client", "this token is another client's")
        if value in store.access_tokens:
            store.access_tokens[value].revoked = True
        elif grant is not None:
            grant.revoked = True
    return Response(status=200, headers=_NO_STORE)


def introspection_endpoint(exchange: Exchange) -> Response:
    """
    Answer ``POST <introspection_endpoint>``.

    The caller authenticates as a client, or shows a bearer token that is alive; it
    learns about its own client's tokens only.
    """
    form = _check_form(exchange)
    caller = _caller(exchange)
    value = form.get("token")
    if value is None:
        raise OAuthError("invalid_request", "token is missing")
    with exchange.ehr.store.lock:
        answer = _introspect(exchange.ehr, value, caller)
    return json_response(answer, headers=_NO_STORE)


def _caller(exchange: Exchange) -> str:
    ehr = exchange.ehr
    header = exchange.request.headers.get("Authorization", "")
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer":
        return authenticate(exchange).client_id
    token = ehr.store.live_access_token(value, now=ehr.clock())
    if token is None:
        raise OAuthError("invalid_token", "the bearer token is not good", status=401)
    exchange.client_id = token.grant.client_id
    return token.grant.client_id


def _introspect(ehr: EHRSimulator, value: str, caller: str) -> dict[str, Any]:
    now = ehr.clock()
    token = ehr.store.live_access_token(value, now=now)
    refresh_token = ehr.store.live_refresh_token(value, now=now)
    found = token or refresh_token
    if found is None or found.grant.client_id != caller:
        return {"active": False}
    grant = found.grant
    scopes = token.scopes if token is not None else grant.scopes
    answer: dict[str, Any] = {
        "active": True,
        "scope": " ".join(scopes),
        "client_id": grant.client_id,
        **grant.context,
    }
    if token is not None:
        answer |= {"token_type": "Bearer", "iat": int(token.issued_at)}
    if found.expires_at is not None:
        answer["exp"] = int(found.expires_at)
    if grant.id_token_issued and grant.user is not None:
        answer |= {"iss": ehr.issuer, "sub": ehr.users[grant.user].subject}
        if "fhirUser" in grant.scopes:
            answer["fhirUser"] = f"{ehr.base_url}/{grant.user}"
    return answer
