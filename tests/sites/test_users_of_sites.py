"""Sites with their own user models, each in a process: the model is set for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.process
@pytest.mark.parametrize("site", ["members", "persons"])
def test_site_with_users_of_its_own(site: str) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", f"tests/sites/{site}/journey.py"),
            *(f"--ds=tests.sites.{site}.settings", "-q", "-p", "no:cacheprovider"),
        ],
        cwd=_ROOT,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
