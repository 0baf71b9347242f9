"""One list of codes: each is used, and says what it means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from django_smart import exceptions
from django_smart.diagnoses import DIAGNOSES, Turn

_PACKAGE = Path(exceptions.__file__).parent
_SOURCES = {
    path.relative_to(_PACKAGE).as_posix(): path.read_text(encoding="utf-8")
    for path in _PACKAGE.rglob("*.py")
    if path.name not in {"exceptions.py", "diagnoses.py"}
    and "testing" not in path.parts
}
_CODE = "\n".join(_SOURCES.values())
_CLASSES = {
    getattr(exceptions, name).__dict__.get("code"): name for name in exceptions.__all__
}

# From the name of a context or of a kind of launch.
_COMPOSED = {
    "encounter_missing": 'f"{name}_missing"',
    "ehr_launch_not_offered": "_launch_not_offered",
    "standalone_launch_not_offered": "_launch_not_offered",
}


@pytest.mark.parametrize("code", DIAGNOSES)
def test_every_code_is_raised_or_found_somewhere(code: str) -> None:
    name = _CLASSES.get(code)
    # Raised, returned, or handed to a function that raises it.
    is_raised = name and re.search(rf"\b{name}\(|[=:] {name}\b|={name}\b", _CODE)
    assert is_raised or _COMPOSED.get(code, f'"{code}"') in _CODE


@pytest.mark.parametrize("code", DIAGNOSES)
def test_turn_of_a_code_is_that_of_its_page(code: str) -> None:
    diagnosis = DIAGNOSES[code]
    assert diagnosis.what.endswith(".")
    assert diagnosis.why.endswith(".") or (diagnosis.status and not diagnosis.why)
    if diagnosis.page is not None:
        assert diagnosis.page.advice.turn is diagnosis.turn
    else:
        assert diagnosis.turn is not Turn.USER
