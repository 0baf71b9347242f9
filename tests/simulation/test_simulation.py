"""What the refresh engine promises, in deployments where all that can fail does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.docs.blocks import read_blocks
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.run import parse, simulate
from tests.simulation.world import Scenario, ViolationError

_SHORT: dict[str, Any] = {
    "seconds": 240.0,
    "calm": 240.0,
    "grants": 44,
    "every": 15.0,
    "lifetimes": (300, 600),
}
_QUICK = ("1", "8")


@pytest.fixture(autouse=True)
def _own_databases(django_db_blocker: Any) -> Iterator[None]:
    """Each simulation makes its own database in memory; the real one is not used."""
    with django_db_blocker.unblock():
        yield


def _find(mutant: Mutant) -> int:
    """Return the seed with which *mutant* is found: what happens when is chance."""
    for seed in range(mutant.seed, mutant.seed + 6):
        try:
            with mutant.applied():
                simulate(mutant.build_scenario(seed))
        except ViolationError as exc:
            if mutant.finding in str(exc):
                return seed
    pytest.fail("not found")


def test_commands_of_the_page_are_understood() -> None:
    (block,) = (
        each
        for each in read_blocks("explanation/refresh.rst")
        if each.language == "console"
    )
    for words in block.commands:
        assert words[:3] == ["python", "-m", "tests.simulation.run"]
        assert parse(words[3:]).seeds > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_promises_are_kept_whatever_fails(seed: int) -> None:
    tally = simulate(Scenario(seed=seed, **_SHORT)).tally
    assert tally["requests"] > 50
    assert tally["kill"] + tally["stop"] > 5


def test_seed_repeats_a_run_exactly() -> None:
    scenario = {**_SHORT, "seconds": 60.0, "calm": 60.0}
    first, second, other = (
        simulate(Scenario(seed=seed, **scenario)).get_digest() for seed in (5, 5, 6)
    )
    assert first == second != other


@pytest.mark.parametrize(
    "mutant", [each for each in MUTANTS if each.row.split()[0] in _QUICK], ids=str
)
def test_fault_that_was_put_back_is_found(mutant: Mutant) -> None:
    _find(mutant)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_every_fault_that_was_put_back_is_found(mutant: Mutant) -> None:
    seed = _find(mutant)
    try:
        simulate(mutant.build_scenario(seed))
    except ViolationError as exc:
        pytest.fail(f"found without the fault as well: {exc}")


@pytest.mark.long
@pytest.mark.timeout(36_000)
def test_promises_are_kept_in_200_deployments_of_two_hours() -> None:
    first = int(os.environ.get("SIMULATION_SEED", "1"))
    for seed in range(first, first + 200):
        simulate(Scenario(seed=seed))


@pytest.mark.long
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_promises_are_kept_in_a_deployment_of_a_day(seed: int) -> None:
    simulate(Scenario(seed=seed, seconds=85_000.0, grants=10_000))
