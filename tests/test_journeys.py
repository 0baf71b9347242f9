"""The script that counts the files of journeys still makes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from django_smart.models import TokenGrant
from django_smart.testing.client import SMARTClient
from django_smart.testing.pytest_plugin import ehr
from django_smart.testing.site import create_registration
from tests.journeys import PAGE, count_steps, list_files, make_journeys

__all__ = ["ehr"]

_ROOT = Path(__file__).resolve().parent.parent
_NAMES = [
    *("launch request", "callback", "page", "background refresh"),
    *("sign-out", "revocation"),
]


@pytest.mark.django_db
@pytest.mark.urls("tests.journeys")
def test_journeys_end_as_expected_and_enter_files(ehr):
    browser = SMARTClient(create_registration(ehr, landing_page=PAGE), ehr)
    journeys = make_journeys(browser)
    assert list(journeys) == _NAMES
    for calls in journeys.values():
        files = list_files(calls)
        assert 1 < len(files) <= count_steps(calls) + 1
        assert not [each for each in files if each.startswith("testing")]
    # Of the launch for the refresh; the other ended with the sign-out.
    assert TokenGrant.objects.filter(status=TokenGrant.Status.ACTIVE).count() == 1
    assert TokenGrant.objects.filter(status=TokenGrant.Status.REVOKED).count() == 1


@pytest.mark.process
def test_script_prints_a_table_and_the_files():
    done = subprocess.run(
        [sys.executable, "-m", "tests.journeys", "--files"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    rows = [each.rsplit(maxsplit=2) for each in lines if not each.startswith(" ")]
    assert [name for name, _, _ in rows] == _NAMES
    assert sum(int(files) for _, files, _ in rows) == len(lines) - len(rows)
