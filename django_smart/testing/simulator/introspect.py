"""
Token revocation and introspection.

Spec: RFC 7009; RFC 7662; SMART App Launch 2.2, "Token Introspection".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from werkzeug.wrappers import Response

from django_smart.testing.simulator.clients import authenticate
from django_smart.testing.simulator.errors import OAuthError
from django_smart.testing.simulator.exchange import json_response
from django_smart.testing.simulator.token import check_form

if TYPE_CHECKING:
    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange

__all__ = ["introspection_endpoint", "revocation_endpoint"]

_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def revocation_endpoint(exchange: Exchange) -> Response:
    """
    Answer ``POST <revocation_endpoint>``.

    A refresh token takes its whole grant with it, an access token only itself.
    """
    form = check_form(exchange)
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
    form = check_form(exchange)
    caller = _caller(exchange)
    value = form.get("token")
    if value is None:
        raise OAuthError("invalid_request", "token is missing")
    with exchange.ehr.store.lock:
        answer = _describe(exchange.ehr, value, caller)
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


def _describe(ehr: EHRSimulator, value: str, caller: str) -> dict[str, Any]:
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
