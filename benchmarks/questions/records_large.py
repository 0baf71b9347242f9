"""The same for a record of 100,000 resources."""

from __future__ import annotations

from benchmarks.harness import Report
from benchmarks.questions.records import measure_record

__all__ = ["IS_LARGE", "TEXT", "run"]

IS_LARGE = True
TEXT = """
The same as *A whole record* for 100,000 Observations.
"""


def run(report: Report) -> None:
    """Measure."""
    measure_record(report, report.size(100_000, smoke=1_000), rounds=report.rounds(2))
