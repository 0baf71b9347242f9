"""One module for each question; :data:`QUESTIONS` has them in the order of a report."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

__all__ = ["QUESTIONS", "choose", "is_large"]

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
    "clinicians",
    "clinicians_large",
    "picker",
    "growth",
    "history",
    "history_large",
    "records",
    "records_large",
    "chart_page",
    "start_up",
    "tls",
    "asgi",
)


def is_large(question: str) -> bool:
    """Left out unless asked for: its module says ``IS_LARGE = True``."""
    module = import_module(f"benchmarks.questions.{question}")
    return getattr(module, "IS_LARGE", False) is True


def choose(named: Collection[str], *, large: bool, smoke: bool) -> list[str]:
    """Those that are named, or else those for ``make bench``, ``-large``, ``-smoke``."""
    if named:
        return [each for each in QUESTIONS if each in named]
    if smoke and not large:
        return list(QUESTIONS)
    return [each for each in QUESTIONS if is_large(each) is large]
