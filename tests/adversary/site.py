"""The site: one page that shows all that the browser can see, and its own hooks."""

from __future__ import annotations

from typing import Any, ClassVar

from django.http import HttpRequest, JsonResponse
from django.urls import include, path

from django_smart.backends import SMARTAuthenticationBackend
from django_smart.exceptions import SMARTError
from tests.urls import urlpatterns as package

#: The users whom the hooks have changed, and by which server's word.
CHANGED: list[tuple[int, str]] = []


class ClinicBackend(SMARTAuthenticationBackend):
    """Hooks that change the user."""

    groups_by_type: ClassVar = {"Patient": "Patients", "Practitioner": "Clinicians"}

    def update_user(self, user: Any, claims: Any) -> Any:
        CHANGED.append((user.pk, claims.server.slug))
        return user

    def fill_user(self, user: Any, claims: Any, fhir: Any) -> None:
        CHANGED.append((user.pk, claims.server.slug))


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
