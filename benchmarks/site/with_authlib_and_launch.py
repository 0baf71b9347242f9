"""
Launches with Authlib's client for Django, and what it leaves to the site.

Authlib binds the state to the browser's session and checks the ID token.  The site
looks the hospital up, keeps a row of each launch, which is used once, and stores the
identity and the encrypted tokens, with Django's ORM and nothing else.
"""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode
from datetime import timedelta
from functools import cache
from hashlib import sha256
from typing import Any

from authlib.integrations.django_client import OAuth, OAuthError
from cryptography.fernet import Fernet
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.utils import timezone

from benchmarks import settings
from benchmarks.site.by_hand import sign_in
from benchmarks.site.models import ChartLaunch, Hospital

__all__ = ["begin", "complete", "launch", "make_hospital"]

_REDIRECT_URI = f"{settings.SITE}/authlib-launch/callback/"
_SCOPE = "openid fhirUser launch/patient patient/*.rs"
_LIFETIME = timedelta(minutes=10)
_fernet = Fernet(urlsafe_b64encode(sha256(settings.SECRET_KEY.encode()).digest()))
_oauth = OAuth()


def launch(request: HttpRequest) -> HttpResponse:
    """From the EHR."""
    hospital = get_object_or_404(Hospital, base_url=request.GET.get("iss", ""))
    return _redirect(
        request,
        hospital,
        scope=f"launch {_SCOPE}",
        launch=request.GET.get("launch", ""),
    )


def begin(request: HttpRequest) -> HttpResponse:
    """From this site."""
    hospital = get_object_or_404(Hospital, slug=request.GET.get("hospital", ""))
    return _redirect(request, hospital, scope=_SCOPE)


def _redirect(request: HttpRequest, hospital: Hospital, **extra: str) -> HttpResponse:
    state = secrets.token_urlsafe(32)
    answer: HttpResponse = _get_client(hospital).authorize_redirect(
        request, _REDIRECT_URI, state=state, aud=hospital.base_url, **extra
    )
    ChartLaunch.objects.create(hospital=hospital, state_digest=_digest(state))
    return answer


def complete(request: HttpRequest) -> HttpResponse:
    """Back from the EHR."""
    launch = get_object_or_404(
        ChartLaunch.objects.select_related("hospital"),
        state_digest=_digest(request.GET.get("state", "")),
    )
    now = timezone.now()
    # Two callbacks with one state: the first one has it.
    is_first = ChartLaunch.objects.filter(
        pk=launch.pk, consumed_at=None, started_at__gt=now - _LIFETIME
    ).update(consumed_at=now)
    if not is_first:
        return HttpResponse("state", status=400)
    try:
        tokens = _get_client(launch.hospital).authorize_access_token(request)
    except OAuthError as exc:
        return HttpResponse(exc.error, status=400)
    with transaction.atomic():
        launch.account = sign_in(request, tokens["userinfo"])
        launch.access_token = _encrypt(tokens["access_token"])
        launch.refresh_token = _encrypt(tokens.get("refresh_token", ""))
        launch.token_expires_at = now + timedelta(seconds=tokens["expires_in"])
        launch.scope = tokens["scope"]
        launch.patient_id = tokens.get("patient", "")
        launch.save(
            update_fields=[
                "account",
                "access_token",
                "refresh_token",
                "token_expires_at",
                "scope",
                "patient_id",
            ]
        )
    return HttpResponseRedirect("/plain/")


@cache
def _register(slug: str, base_url: str, client_id: str, client_secret: str) -> Any:
    return _oauth.register(
        name=slug,
        client_id=client_id,
        client_secret=_fernet.decrypt(client_secret).decode(),
        server_metadata_url=f"{base_url}/.well-known/smart-configuration",
        client_kwargs={"scope": _SCOPE, "code_challenge_method": "S256"},
    )


def _get_client(hospital: Hospital) -> Any:
    return _register(
        hospital.slug, hospital.base_url, hospital.client_id, hospital.client_secret
    )


def _digest(state: str) -> str:
    return sha256(state.encode()).hexdigest()


def _encrypt(text: str) -> str:
    return _fernet.encrypt(text.encode()).decode()


def make_hospital(base_url: str) -> None:
    """The stub, as this site knows it."""
    Hospital.objects.create(
        slug="stub",
        base_url=base_url,
        client_id=settings.OIDC_RP_CLIENT_ID,
        client_secret=_encrypt(settings.OIDC_RP_CLIENT_SECRET),
    )
