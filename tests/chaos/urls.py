"""One page, which reads with a grant."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import include, path

from django_smart.clients import fhir_client_for
from django_smart.exceptions import SMARTError
from django_smart.models import TokenGrant
from tests.known import PATIENT

__all__ = ["urlpatterns"]


def read_patient(request: HttpRequest, grant_id: int) -> JsonResponse:
    """Read the patient, with a token that is fresh."""
    grants = TokenGrant.objects.select_related("registration__server")
    grant = get_object_or_404(grants, pk=grant_id)
    try:
        patient = fhir_client_for(grant=grant).read("Patient", PATIENT)
    except SMARTError as exc:
        return JsonResponse({"error": exc.code}, status=502)
    return JsonResponse({"id": patient["id"]})


urlpatterns = [
    path("read/<int:grant_id>/", read_patient),
    path("smart/", include("django_smart.urls")),
]
