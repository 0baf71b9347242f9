"""Random requests of a script reach nothing of another patient."""

from __future__ import annotations

import itertools

import pytest

from django_smart.views import fhir_proxy
from tests.boundary.fuzzing import play
from tests.boundary.mutants import draw_mutants


def test_no_request_reaches_another_patient() -> None:
    assert list(play(1_000, seed=1)) == []


@pytest.mark.long
def test_none_of_many_requests_reaches_another_patient() -> None:
    assert list(play(20_000, seed=2)) == []


@pytest.mark.long
def test_fuzzer_finds_faults_that_it_was_not_written_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for name, mutant in draw_mutants(10, seed=38):
        monkeypatch.setattr(fhir_proxy, "AllowList", mutant.AllowList)
        if finding := next(itertools.islice(play(10_000, seed=3), 1), ""):
            found.append(f"{name} by {finding}")
    assert len(found) >= 5, found
