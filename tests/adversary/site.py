"""URLs of the site: one page that shows all that the browser can see."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import include, path

from django_smart.exceptions import SMARTError
from tests.urls import urlpatterns as package


def show(request: HttpRequest) -> JsonResponse:
    """Who is signed in, the launch, and the record that its token reads."""
    smart = request.smart  # type: ignore[attr-defined]
    shown: dict[str, Any] = {
        "user": request.user.pk,
        "key": None,
        "patient": None,
        "record": None,
    }
    if smart:
        shown |= {"key": smart.launch.key, "patient": smart.patient_id}
        try:
            shown["record"] = smart.fhir.read("Patient", smart.patient_id)["id"]
        except SMARTError as exc:
            shown["record"] = exc.code
    return JsonResponse(shown)


urlpatterns = [
    *package,
    path("seen/", show),
    path("accounts/", include("django.contrib.auth.urls")),
]
