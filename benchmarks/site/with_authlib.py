"""Signing in with Authlib's client for Django, as its documentation has it."""

from __future__ import annotations

from authlib.integrations.django_client import OAuth
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from benchmarks import settings
from benchmarks.site.by_hand import sign_in

__all__ = ["begin", "complete"]

_REDIRECT_URI = f"{settings.SITE}/authlib/callback/"
_oauth = OAuth()
_oauth.register(
    name="stub",
    client_id=settings.OIDC_RP_CLIENT_ID,
    client_secret=settings.OIDC_RP_CLIENT_SECRET,
    server_metadata_url=f"{settings.STUB}/.well-known/openid-configuration",
    client_kwargs={"scope": "openid fhirUser", "code_challenge_method": "S256"},
)


def begin(request: HttpRequest) -> HttpResponse:
    """To the authorization endpoint."""
    answer: HttpResponse = _oauth.stub.authorize_redirect(request, _REDIRECT_URI)
    return answer


def complete(request: HttpRequest) -> HttpResponse:
    """From the authorization endpoint; Authlib checks the ID token."""
    tokens = _oauth.stub.authorize_access_token(request)
    sign_in(request, tokens["userinfo"])
    return HttpResponseRedirect("/plain/")
