"""One module for each question; :data:`QUESTIONS` has them in the order of a report."""

from __future__ import annotations

__all__ = ["QUESTIONS"]

QUESTIONS = (
    "fhir_read",
    "fhir_pages",
    "middleware",
    "fhir_view",
    "login",
    "assertion",
    "refresh",
    "claim",
    "launches",
    "picker",
    "growth",
    "start_up",
)
