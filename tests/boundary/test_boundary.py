"""Nobody else's record passes, and the patient's own does."""

from __future__ import annotations

import pytest

from tests.boundary.cases import Case, build_cases
from tests.boundary.running import WAYS, run
from tests.boundary.table import TABLE, build_table

CASES = build_cases()


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{n}-{c.about}"[:70]) for n, c in enumerate(CASES)]
)
def test_request_at_the_boundary(case: Case) -> None:
    for way in WAYS:
        result = run(case, way)
        assert result is None or result.fits(case), (way, case, result)


def test_documentation_has_this_table() -> None:
    assert TABLE.read_text(encoding="utf-8") == build_table()
    attacks = [case for case in CASES if case.is_attack]
    assert (len(attacks), len(CASES) - len(attacks)) >= (200, 88)
