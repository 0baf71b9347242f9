"""Pages that do next to nothing, so that what is around them shows."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

__all__ = ["READS", "plain", "with_fhir", "with_user"]

READS = 0
"""Patients that :func:`with_fhir` reads."""


def plain(request: HttpRequest) -> HttpResponse:
    """Touch neither session nor user nor launch."""
    return HttpResponse("ok")


def with_user(request: HttpRequest) -> HttpResponse:
    """A page for whoever is signed in."""
    return HttpResponse(f"user {request.user.pk}")


def with_fhir(request: HttpRequest) -> HttpResponse:
    """A page for whoever is signed in, with a client that is ready to send."""
    fhir = request.smart.fhir  # type: ignore[attr-defined]  # the middleware's
    for _ in range(READS):
        fhir.read("Patient", fhir.patient_id)
    return HttpResponse(f"user {request.user.pk} {fhir.patient_id}")
