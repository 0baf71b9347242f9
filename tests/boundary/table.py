"""
The table in the documentation: each request with the expected and actual result.

``python -m tests.boundary.table`` writes it.
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.boundary.cases import Case
    from tests.boundary.running import Result

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "patient-boundary.csv"
_LONGEST = 160


def run_cases() -> list[tuple[Case, list[Result]]]:
    """Each request with its results, in the order of ``WAYS``."""
    from tests.boundary.cases import build_cases
    from tests.boundary.running import WAYS, get_hospital

    return [
        (case, [get_hospital(way).run(case) for way in WAYS]) for case in build_cases()
    ]


def build_table(rows: list[tuple[Case, list[Result]]]) -> str:
    """Return the table as CSV."""
    from tests.boundary.running import WAYS

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["", "Kind", "Request", "Description", "Attribute", "Expected"]
    writer.writerow([*head, *(way.capitalize() for way in WAYS), "Written"])
    for number, (case, results) in enumerate(rows, start=1):
        writer.writerow(
            [
                str(number),
                "attack" if case.is_attack else "legitimate",
                f"``{case.request}``",
                _shorten(case.about),
                " ".join(f"``{name}``" for name in case.attributes),
                _EXPECTED[case.expected],
                *(result.status for result in results),
                "–" if case.method in {"GET", "HEAD"} else str(results[1].written),
            ]
        )
    return text.getvalue()


_EXPECTED = {
    "answered": "allowed",
    "nothing": "no data of others",
    "own": "only the patient's data",
    "refused": "refused",
}


def _shorten(text: str) -> str:
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return short.replace("*", r"\*").replace("`", "'").replace("|", r"\|")


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    import django

    django.setup()
    TABLE.write_text(build_table(run_cases()), encoding="utf-8")
