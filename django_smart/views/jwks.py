"""This site's public keys, and the address at which Django serves them."""

from __future__ import annotations

from datetime import timedelta

from django.contrib.auth.decorators import login_not_required
from django.core import signing
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.utils.decorators import method_decorator
from django.views.generic import View

from ..models import ClientRegistration, SigningKey
from ..servers.signing_keys import JWKS_MAX_AGE
from .base import outside_transactions

__all__ = ["PROBE_PARAMETER", "SEEN_AS_HEADER", "JWKSView", "build_probe"]

PROBE_PARAMETER = "probe"
"""The query parameter with which the doctor asks for :data:`SEEN_AS_HEADER`."""
SEEN_AS_HEADER = "Smart-Seen-As"
"""The response header: the address as Django sees it, without its query."""
_PROBE = "how do you see me"
_PROBE_LIFETIME = timedelta(minutes=1)


# Public: EHRs fetch it without credentials, and need neither session nor cookie.  The
# middleware looks for a launch before a transaction opens, so there is none.
@method_decorator(login_not_required, name="dispatch")
@method_decorator(outside_transactions, name="dispatch")
class JWKSView(View):
    """
    This site's public keys: ``GET jwks.json`` (JWKS-04).

    ``GET jwks/<id>.json`` has those for the server of one registration.
    """

    http_method_names = ["get", "head", "options"]

    def get(
        self, request: HttpRequest, registration_id: int | None = None
    ) -> JsonResponse:
        """The JWK Set, cacheable for as long as a rotation waits (JWKS-05, JWKS-11)."""
        if registration_id is None:
            keys = SigningKey.objects.of(None)
        else:
            keys = SigningKey.objects.for_registration(
                get_object_or_404(ClientRegistration, pk=registration_id)
            )
        response = JsonResponse(keys.as_jwks())
        seconds = int(JWKS_MAX_AGE.total_seconds())
        response.headers["Cache-Control"] = f"public, max-age={seconds}"
        response.headers["Access-Control-Allow-Origin"] = "*"
        if _is_probe(request):
            seen_as = request.build_absolute_uri(request.path)
            response.headers[SEEN_AS_HEADER] = seen_as
        return response


def build_probe() -> str:
    """The value of the parameter, valid for a minute."""
    return _get_signer().sign(_PROBE)


def _is_probe(request: HttpRequest) -> bool:
    """Whether the doctor of this site sent *request*."""
    try:
        _get_signer().unsign(
            request.GET.get(PROBE_PARAMETER, ""), max_age=_PROBE_LIFETIME
        )
    except signing.BadSignature:
        return False
    return True


def _get_signer() -> signing.TimestampSigner:
    return signing.TimestampSigner(salt="django_smart.probe")
