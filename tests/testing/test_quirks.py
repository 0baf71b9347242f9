"""Quirks of the simulator: named, and off unless they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.ehr import QUIRKS


def test_quirks_are_off_and_known_by_name(ehr: EHRSimulator) -> None:
    assert not ehr.quirks
    ehr.quirks = QUIRKS
    assert ehr.quirks == set(QUIRKS)
    with pytest.raises(ValueError, match="no such quirk: odd"):
        ehr.quirks = ["odd"]
    assert ehr.quirks == set(QUIRKS)


def test_every_quirk_is_on_the_page_that_says_what_answers_it() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "odd-servers.rst"
    text = page.read_text(encoding="utf-8")
    assert [name for name in QUIRKS if f"``{name}``" not in text] == []
