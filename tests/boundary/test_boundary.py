"""Nobody else's record passes, and the patient's own does."""

from __future__ import annotations

import pytest

from tests.boundary.cases import Case, build_cases
from tests.boundary.running import WAYS, get_hospital
from tests.boundary.table import TABLE, build_table

CASES = build_cases()
each_case = pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{n}-{c.about}"[:70]) for n, c in enumerate(CASES)]
)


@each_case
@pytest.mark.parametrize("way", WAYS)
def test_request_of_a_script(case: Case, way: str) -> None:
    result = get_hospital(way).run(case)
    assert result.fits(case), result


@pytest.mark.parametrize("case", [c for c in CASES if c.needs_attribute])
def test_use_that_an_attribute_opens(case: Case) -> None:
    result = get_hospital("lenient").run(case, is_opened=False)
    assert (result.is_refused, result.written) == (True, 0)
    [attribute] = case.attributes
    assert f"attribute {attribute} " in result.text


def test_view_receives_and_changes_nothing_of_others() -> None:
    """The site's own code may send more, but what comes is checked as well."""
    lenient = get_hospital("lenient")
    cases = [case for case in CASES if not case.is_for_proxy]
    results = [(case, lenient.run(case, by_client=True)) for case in cases]
    assert [each for each in results if not each[1].is_harmless(each[0])] == []


def test_documentation_has_this_table() -> None:
    assert TABLE.read_text(encoding="utf-8") == build_table()
    attacks = [case for case in CASES if case.is_attack]
    assert (len(attacks), len(CASES) - len(attacks)) >= (200, 88)
