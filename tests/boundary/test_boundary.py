"""Nobody else's record passes, and the patient's own does."""

from __future__ import annotations

from tests.boundary.cases import build_cases
from tests.boundary.running import get_hospital
from tests.boundary.table import TABLE, build_table, run_cases

CASES = build_cases()


def test_requests_of_a_script_end_as_the_documentation_says() -> None:
    rows = run_cases()
    unfit = [
        (case, each) for case, found in rows for each in found if not each.fits(case)
    ]
    assert unfit == []
    assert TABLE.read_text(encoding="utf-8") == build_table(rows)
    attacks = [case for case in CASES if case.is_attack]
    assert (len(attacks), len(CASES) - len(attacks)) >= (200, 88)


def test_use_that_an_attribute_opens_is_refused_without_it() -> None:
    lenient = get_hospital("lenient")
    for case in [case for case in CASES if case.needs_attribute]:
        result = lenient.run(case, is_opened=False)
        assert (result.is_refused, result.written) == (True, 0), case
        [attribute] = case.attributes
        assert f"attribute {attribute} " in result.text, case


def test_view_receives_and_changes_nothing_of_others() -> None:
    """The site's own code may send more, but what comes is checked as well."""
    lenient = get_hospital("lenient")
    cases = [case for case in CASES if not case.is_for_proxy]
    results = [(case, lenient.run(case, by_client=True)) for case in cases]
    assert [each for each in results if not each[1].is_harmless(each[0])] == []
