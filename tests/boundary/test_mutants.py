"""The tests of the proxy notice when one of its rules is taken out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adversary.mutants import Mutant

_RULES = "tests/boundary/test_boundary.py::test_request_of_a_script"
_FUZZ = "tests/boundary/test_fuzz.py::test_no_request_reaches_another_patient"
_PROXY = "tests/test_fhir_proxy.py"

# What is taken out: the file, its text and what replaces it, and the tests.
HOLES = (
    (
        "a parameter in another case",
        "fhir/allow_list.py",
        "    found = _read_table().get(resource_type, {})\n",
        "    known = _read_table().get(resource_type, {})\n"
        "    found = {key.lower(): kind for key, kind in known.items()}\n"
        "    name = name.lower()\n",
        (_FUZZ,),
    ),
    (
        "a modifier that is not listed",
        "fhir/allow_list.py",
        'bool(known) and modifier in {"", *_MODIFIERS[known]}',
        "bool(known)",
        (_FUZZ,),
    ),
    (
        "a modifier of a reference",
        "fhir/allow_list.py",
        "if modifier and not is_shared(modifier):",
        "if False:",
        (_RULES,),
    ),
    (
        "the search of a conditional change",
        "fhir/allow_list.py",
        "for parameter, value in pairs if len(parts) == 1 else ():",
        "for parameter, value in ():",
        (_RULES,),
    ),
    (
        "a patch that copies",
        "fhir/allow_list.py",
        '"from" in step',
        "False",
        (_PROXY,),
    ),
    (
        "the page of another launch",
        "views/fhir_proxy.py",
        'f"{_SALT}.{key}"',
        "_SALT",
        (_PROXY,),
    ),
    (
        "an entry of a batch",
        "views/fhir_proxy.py",
        "        for one in asked_for:\n            rules.check(one)\n",
        "",
        (_PROXY,),
    ),
    (
        "a response without a type",
        "views/fhir_proxy.py",
        'asked.name != "capabilities" and not isinstance(checked, ParsedResponse)',
        "False",
        (_PROXY,),
    ),
    (
        "a Binary that a text names",
        "fhir/record_check.py",
        '(item.get(name) for name in ("reference", "url"))',
        "item.values()",
        (_PROXY,),
    ),
    (
        "a Binary that a script's own document names",
        "fhir/record_check.py",
        "|binary/)",
        ")",
        (_RULES,),
    ),
    (
        "another patient who is named",
        "fhir/record_check.py",
        "(?:patient[/?%\\\\]|",
        "(?:",
        (_RULES,),
    ),
    (
        "the subjects of a list that the view lists",
        "fhir/record_check.py",
        'elif "[]" not in path or _is_to_patient(told, reference):',
        'elif "[]" not in path:',
        (_RULES,),
    ),
)


@pytest.mark.long
@pytest.mark.parametrize("hole", HOLES, ids=[hole[0] for hole in HOLES])
def test_hole_is_found(
    hole: tuple[str, str, str, str, tuple[str, ...]], tmp_path: Path
) -> None:
    name, file, old, new, tests = hole
    Mutant(attack=name, patches=[(file, old, new)]).copy(tmp_path)
    for each in ("setup.cfg", "docs"):
        (tmp_path / each).symlink_to(Path(__file__).parents[2] / each)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
