"""This site's public keys."""

from __future__ import annotations

from datetime import timedelta

from django.contrib.auth.decorators import login_not_required
from django.core import signing
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.utils.decorators import method_decorator
from django.views.generic import View

from ..models import SigningKey
from ..servers.signing_keys import JWKS_MAX_AGE

__all__ = [
    "PARAMETER",
    "SEEN_AS",
    "JWKSView",
    "answer_probe",
    "build_probe",
]


# Public: EHRs fetch it without credentials, and need neither session nor cookie.  The
# middleware looks for a launch before a transaction opens, so there is none.
@method_decorator(login_not_required, name="dispatch")
@method_decorator(transaction.non_atomic_requests, name="dispatch")
class JWKSView(View):
    """This site's public keys: ``GET jwks.json`` (JWKS-04)."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest) -> JsonResponse:
        """The JWK Set, cacheable for as long as a rotation waits (JWKS-05, JWKS-11)."""
        response = JsonResponse(SigningKey.objects.as_jwks())
        seconds = int(JWKS_MAX_AGE.total_seconds())
        response.headers["Cache-Control"] = f"public, max-age={seconds}"
        response.headers["Access-Control-Allow-Origin"] = "*"
        if (seen_as := answer_probe(request)) is not None:
            response.headers[SEEN_AS] = seen_as
        return response


PARAMETER = "probe"
"""The query parameter of the request."""
SEEN_AS = "Smart-Seen-As"
"""The header of the answer: the address as Django sees it, without its query."""

_WORD = "how do you see me"
_LIFETIME = timedelta(minutes=1)


def build_probe() -> str:
    """The value of the parameter, good for a minute."""
    return _get_signer().sign(_WORD)


def answer_probe(request: HttpRequest) -> str | None:
    """The value of the header; ``None`` for a request that is not the doctor's."""
    probe = request.GET.get(PARAMETER)
    if not probe:
        return None
    try:
        _get_signer().unsign(probe, max_age=_LIFETIME)
    except signing.BadSignature:
        return None
    return request.build_absolute_uri(request.path)


def _get_signer() -> signing.TimestampSigner:
    return signing.TimestampSigner(salt="django_smart.probe")
