"""The tests of whole records notice when one of their rules is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

from tests.adversary.mutants import Mutant

_ROOT = Path(__file__).resolve().parents[3]
_SYNC = "contrib/records/sync.py"
_PROPERTY = "test_in_step.py"
_SEEDS = "100"

_PUT = """\
if changed:
    self._put(changed)
    self._note_references(changed)
"""
_AFTER = "        if self._on_progress is not None:"

# What is broken, and the tests that find it.
MUTANTS = (
    (
        Mutant(
            attack="overlap of zero",
            patches=[
                (_SYNC, "_OVERLAP = timedelta(minutes=5)", "_OVERLAP = timedelta()")
            ],
        ),
        _PROPERTY,
    ),
    (
        Mutant(
            attack="progress before put",
            patches=[
                (_SYNC, indent(_PUT, " " * 12), ""),
                (_SYNC, _AFTER, indent(_PUT, " " * 8) + _AFTER),
            ],
        ),
        "test_sync.py",
    ),
    (
        Mutant(
            attack="a type skipped after a refusal",
            patches=[
                (
                    _SYNC,
                    "rows.update(state=_State.WAITING",
                    "rows.exclude(state=_State.REFUSED).update(state=_State.WAITING",
                )
            ],
        ),
        _PROPERTY,
    ),
    (
        Mutant(
            attack="deletion by a partial listing",
            patches=[
                (_SYNC, "self._read_unlisted(resource)", "self._delete(resource)")
            ],
        ),
        "test_sync.py",
    ),
    (
        Mutant(
            attack="our clock instead of the server's",
            patches=[(_SYNC, "(newest - taken", "(timezone.now() - taken")],
        ),
        _PROPERTY,
    ),
)


@pytest.mark.parametrize(("mutant", "tests"), MUTANTS, ids=str)
def test_rule_is_where_it_is_broken(mutant: Mutant, tests: str, tmp_path: Path) -> None:
    mutant.copy(tmp_path)


@pytest.mark.long
@pytest.mark.process
@pytest.mark.parametrize(("mutant", "tests"), MUTANTS, ids=str)
def test_mutant_is_found(mutant: Mutant, tests: str, tmp_path: Path) -> None:
    mutant.copy(tmp_path)
    for each in ("setup.cfg", "docs"):
        (tmp_path / each).symlink_to(_ROOT / each)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", "long or not long", f"tests/contrib/records/{tests}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "RECORDS_SEEDS": _SEEDS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "\nE       assert" in done.stdout or "AssertionError" in done.stdout
