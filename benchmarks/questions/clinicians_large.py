"""Fifty clinicians at work for five minutes."""

from __future__ import annotations

from benchmarks.harness import Report
from benchmarks.questions import clinicians

__all__ = ["IS_LARGE", "TEXT", "run"]

IS_LARGE = True
TEXT = clinicians.TEXT.replace("half a minute", "five minutes")


def run(report: Report) -> None:
    """Measure."""
    clinicians.measure_clinicians(report, seconds=300)
