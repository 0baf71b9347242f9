"""Whoever owns one of the registered servers gains nothing at the others."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adversary.machine import Adversary
from tests.adversary.mutants import MUTANTS, Mutant, get_finding
from tests.adversary.run import make_machine, play


@pytest.fixture
def machine(transactional_db: None) -> Iterator[type[Adversary]]:
    with make_machine() as machine:
        yield machine


def _get_seed() -> int:
    return int(os.environ.get("ADVERSARY_SEED", secrets.randbelow(10**6)))


def _check_variety(tally: Counter[str]) -> None:
    """It was a play: launches were opened at each server, and attacks refused."""
    for outcome in ("harbour", "meadow", "evil"):
        assert tally[f"opened at {outcome}"], tally
    assert tally["seen"], tally
    assert tally["callback_mismatch"], tally
    assert tally["asked"], tally


@pytest.mark.urls("tests.adversary.site")
def test_hostile_server_gains_nothing(machine: type[Adversary]) -> None:
    play(machine, steps=100, seed=_get_seed())


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.urls("tests.adversary.site")
def test_hostile_server_gains_nothing_in_the_long_run(machine: type[Adversary]) -> None:
    _check_variety(play(machine, steps=20_000, seed=_get_seed()))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_every_hole_can_still_be_made(mutant: Mutant, tmp_path: Path) -> None:
    mutant.copy(tmp_path)
    for name, old, _new in mutant.patches:
        assert old not in (tmp_path / "django_smart" / name).read_text()


@pytest.mark.long
@pytest.mark.process
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_adversary_finds_every_hole(mutant: Mutant, tmp_path: Path) -> None:
    printed = mutant.find(tmp_path, steps=20_000, seed=_get_seed())
    print(mutant.attack, get_finding(printed), sep="\n")  # noqa: T201 (the steps)
