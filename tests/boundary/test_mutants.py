"""The tests of the patient's boundary notice when one of its rules is taken out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adversary.mutants import Mutant

_ROOT = Path(__file__).parents[2]
_PACKAGE = _ROOT / "django_smart"

_RULES = "tests/boundary/test_boundary.py"
_FUZZ = "tests/boundary/test_fuzz.py::test_no_request_reaches_another_patient"
_GUARD = "tests/fhir/test_guard.py"
_PROXY = "tests/test_fhir_proxy.py"

# What is taken out: a text that is once among the modules of FHIR, in whichever of
# them, what replaces it, and the tests.
HOLES = (
    # What comes, and what the site's own code sends
    (
        "the type beside a reference to the patient",
        "reference in self._own and is_patient",
        "reference in self._own",
        _GUARD,
    ),
    (
        "the type beside a reference to somebody else",
        '    if reference:\n        return "patient/" in',
        '    if reference and told.get("type", "Patient") == "Patient":\n'
        '        return "patient/" in',
        _GUARD,
    ),
    (
        "what a resource contains",
        'if "contained" in resource:',
        "if False:",
        _GUARD,
    ),
    (
        "the name of an entry that is another patient",
        'url.startswith("urn:") and names == ("Patient", self._record.patient_id)',
        'url.startswith("urn:")',
        _GUARD,
    ),
    (
        "an included entry",
        "is_own |= self._check_entry(entry)",
        "is_own |= not _is_included(entry) and self._check_entry(entry)",
        _GUARD,
    ),
    (
        "an entry inside Parameters",
        'if each.get("resource") is not None:',
        "if False:",
        _GUARD,
    ),
    (
        "a part of Parameters",
        'is_own |= self._check_parameters(each.get("part"))',
        "pass",
        _GUARD,
    ),
    (
        "a body whose answer is empty",
        "check_body(asked.body, self.record, get_letters(asked.name))",
        "pass",
        _GUARD,
    ),
    (
        "the subjects of a list, such as Appointment.participant.actor",
        'elif "[]" not in path or _is_to_patient(told, reference):',
        'elif "[]" not in path:',
        _RULES,
    ),
    # What a script sends
    (
        "a parameter in another case",
        "    found = _read_table().get(resource_type, {})\n",
        "    known = _read_table().get(resource_type, {})\n"
        "    found = {key.lower(): kind for key, kind in known.items()}\n"
        "    name = name.lower()\n",
        _FUZZ,
    ),
    (
        "a modifier that is not listed",
        'bool(known) and modifier in {"", *_MODIFIERS[known]}',
        "bool(known)",
        _FUZZ,
    ),
    (
        "a modifier of a reference",
        "if modifier and not is_shared(modifier):",
        "if False:",
        _RULES,
    ),
    (
        "another patient, by a parameter that the view lists",
        "kinds & _PERSONS or _PATIENT.search(value)",
        "False",
        _RULES,
    ),
    (
        "the search of a conditional change",
        "for parameter, value in pairs if len(asked.parts) == 1 else ():",
        "for parameter, value in ():",
        _RULES,
    ),
    (
        "a patch that copies",
        "if not self.record.is_for_script:\n            # By",
        "if True:\n            # By",
        _PROXY,
    ),
    (
        "a step that servers read in different ways",
        "not step.keys() <= members",
        "False",
        _PROXY,
    ),
    (
        "a path of a patch in capitals",
        'pointer.split("/")[1].lower() in kept',
        'pointer.split("/")[1] in kept',
        _PROXY,
    ),
    (
        "the page of another launch",
        'f"{_SALT}.{key}"',
        "_SALT",
        _PROXY,
    ),
    (
        "an entry of a batch",
        "            self._check(one)\n",
        "            if one is asked:\n                self._check(one)\n",
        _PROXY,
    ),
    (
        "a response that is not what was asked for",
        "    if wanted is not None and type_ not in wanted:\n",
        "    if False:\n",
        _PROXY,
    ),
    (
        "a read that returns another resource",
        'if asked.name in {"read", "vread"}:\n            resource:',
        'if asked.name == "vread":\n            resource:',
        _PROXY,
    ),
    (
        "a Binary that a text names",
        'iter_links(resource, "reference", "url")',
        'iter_links(resource, "reference", "url", "contentString")',
        _PROXY,
    ),
    (
        "a Binary to which a body links",
        "|binary/)",
        ")",
        _RULES,
    ),
    (
        "another patient to whom a body links",
        "(?:patient[/?%\\\\]|",
        "(?:",
        _RULES,
    ),
)


def _find(text: str) -> str:
    """The only module with *text*."""
    views = (_PACKAGE / "views").glob("fhir*.py")
    modules = [*(_PACKAGE / "fhir").glob("*.py"), *views]
    found = [each for each in modules if text in each.read_text()]
    assert len(found) == 1, f"{text!r} is in {found}"
    return str(found[0].relative_to(_PACKAGE))


@pytest.mark.parametrize("hole", HOLES, ids=[hole[0] for hole in HOLES])
def test_rule_is_where_its_hole_is_made(hole: tuple[str, str, str, str]) -> None:
    _, text, _, _ = hole
    assert (_PACKAGE / _find(text)).read_text().count(text) == 1


@pytest.mark.long
@pytest.mark.parametrize("hole", HOLES, ids=[hole[0] for hole in HOLES])
def test_hole_is_found(hole: tuple[str, str, str, str], tmp_path: Path) -> None:
    name, old, new, tests = hole
    Mutant(attack=name, patches=[(_find(old), old, new)]).copy(tmp_path)
    for each in ("setup.cfg", "docs"):
        (tmp_path / each).symlink_to(_ROOT / each)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        # Without those that measure time, which fail on a busy machine.
        [*command, "-k", "not takes_no_longer", tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
