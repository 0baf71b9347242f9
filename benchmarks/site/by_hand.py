"""
Signing in by hand: the least that is correct.

State, nonce and PKCE; the ID token's signature, issuer, audience, time and nonce are
checked with keys that were fetched once; users are found by issuer and subject.  It
keeps no token and no launch, knows one server, and tells nobody what went wrong.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64encode
from functools import cache
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode

import jwt
import requests
from django.contrib.auth import get_user_model, login
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from benchmarks import settings
from benchmarks.site.models import Account

__all__ = ["begin", "complete", "sign_in"]

_REDIRECT_URI = f"{settings.SITE}/by-hand/callback/"
_session = requests.Session()


@cache
def _get_keys(issuer: str) -> dict[str, Any]:
    answer = _session.get(f"{issuer}/jwks", timeout=10).json()
    return {each["kid"]: jwt.PyJWK(each) for each in answer["keys"]}


def begin(request: HttpRequest) -> HttpResponse:
    """To the authorization endpoint."""
    state, nonce = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    verifier = secrets.token_urlsafe(64)
    request.session["oidc"] = {"state": state, "nonce": nonce, "verifier": verifier}
    challenge = urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=")
    query = {
        "response_type": "code",
        "client_id": settings.OIDC_RP_CLIENT_ID,
        "redirect_uri": _REDIRECT_URI,
        "scope": "openid fhirUser",
        "state": state,
        "nonce": nonce,
        "code_challenge": challenge.decode(),
        "code_challenge_method": "S256",
    }
    return HttpResponseRedirect(f"{settings.STUB}/authorize?{urlencode(query)}")


def complete(request: HttpRequest) -> HttpResponse:
    """From the authorization endpoint."""
    known = request.session.pop("oidc", None)
    state = request.GET.get("state", "")
    if known is None or not hmac.compare_digest(known["state"], state):
        return HttpResponse("state", status=400)
    answer = _session.post(
        f"{settings.STUB}/token",
        {
            "grant_type": "authorization_code",
            "code": request.GET["code"],
            "redirect_uri": _REDIRECT_URI,
            "code_verifier": known["verifier"],
        },
        auth=(settings.OIDC_RP_CLIENT_ID, settings.OIDC_RP_CLIENT_SECRET),
        timeout=10,
        allow_redirects=False,
    )
    answer.raise_for_status()
    token = answer.json()["id_token"]
    key = _get_keys(settings.STUB)[jwt.get_unverified_header(token)["kid"]]
    claims = jwt.decode(
        token,
        key,
        algorithms=["RS256"],
        audience=settings.OIDC_RP_CLIENT_ID,
        issuer=settings.STUB,
        options={"require": ["exp", "iat", "iss", "aud", "sub"]},
    )
    if not hmac.compare_digest(claims.get("nonce", ""), known["nonce"]):
        return HttpResponse("nonce", status=400)
    sign_in(request, claims)
    return HttpResponseRedirect("/plain/")


def sign_in(request: HttpRequest, claims: dict[str, Any]) -> Account:
    """Sign in whose account it is; made at first sight."""
    found = {"issuer": claims["iss"], "subject": claims["sub"]}
    account = Account.objects.filter(**found).select_related("user").first()
    if account is None:
        user = get_user_model().objects.create_user(secrets.token_hex(8))
        account = Account.objects.create(user=user, **found)
    login(request, account.user, "django.contrib.auth.backends.ModelBackend")
    return account
