"""A typed site, as the API page shows one, passes mypy and pyright in strict mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import django_smart
from tests.docs.blocks import read_blocks

_ROOT = Path(django_smart.__file__).parents[1]
_WRONG = """

def wrong(request: SMARTHttpRequest) -> HttpResponse:
    return HttpResponse(request.smart.patient)


@smart_required
def wrong_too(request: SMARTHttpRequest) -> HttpResponse:
    return HttpResponse(request.smart.fhir.serch("Observation"))


wrong_too(1)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose views are right, and one with three mistakes."""
    (code,) = [
        each.code
        for each in read_blocks("reference/api.rst")
        if "SMARTHttpRequest" in each.code
    ]
    (tmp_path / "views.py").write_text(code)
    (tmp_path / "wrong.py").write_text(code + _WRONG)
    return tmp_path


def test_typed_site_passes_mypy_and_a_mistake_does_not(site: Path) -> None:
    pytest.importorskip("mypy")
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "."],
        cwd=site,
        env={**os.environ, "MYPYPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in ran.stdout.splitlines() if ": error:" in line]
    assert [line.partition(":")[0] for line in lines] == ["wrong.py"] * 3, ran.stdout
    assert "patient" in lines[0]
    assert "serch" in lines[1]
    assert "arg-type" in lines[2]


@pytest.mark.long
@pytest.mark.process
def test_typed_site_passes_pyright_and_a_mistake_does_not(site: Path) -> None:
    pyright = shutil.which("pyright")
    if pyright is None:
        pytest.skip("needs pyright, by npm or pip")
    settings = {
        "extraPaths": [str(_ROOT)],
        "typeCheckingMode": "strict",
        "reportIncompatibleVariableOverride": False,  # as the page says
    }
    (site / "pyrightconfig.json").write_text(json.dumps(settings))
    ran = subprocess.run(
        [pyright, "--pythonpath", sys.executable, "--outputjson"],
        cwd=site,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = json.loads(ran.stdout)["generalDiagnostics"]
    assert {Path(each["file"]).name for each in found} == {"wrong.py"}, ran.stdout
    rules = {each["rule"] for each in found}
    assert {"reportAttributeAccessIssue", "reportArgumentType"} <= rules
    text = " ".join(each["message"] for each in found)
    assert '"patient"' in text
    assert '"serch"' in text
