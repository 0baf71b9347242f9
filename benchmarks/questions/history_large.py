"""As ``history``, at sizes whose rows take minutes to make."""

from __future__ import annotations

from benchmarks.harness import Report
from benchmarks.questions.history import measure_history

__all__ = ["IS_LARGE", "TEXT", "run"]

IS_LARGE = True
TEXT = """
As above, with a million and ten million launches beside ten thousand.
"""


def run(report: Report) -> None:
    """Measure."""
    sizes = [1_000, 2_000] if report.is_smoke else [10_000, 1_000_000, 10_000_000]
    measure_history(report, sizes, plot="history-large", in_bulk=True)
