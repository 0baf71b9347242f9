"""The conformance page: the list of requirements, the marks, and what joins them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance import (
    MOST_NOT_SUPPORTED,
    REQUIREMENTS,
    Requirement,
    find_faults,
    get_shown_by,
    read_claims,
    read_requirements,
)

_ROOT = Path(__file__).resolve().parents[2]
_LEVELS = {
    "SHALL": 50,
    "SHALL*": 82,
    "SHOULD": 9,
    "SHOULD*": 23,
    "MAY": 26,
    "FACT": 27,
    "ADVICE": 20,
    "SRV-SHALL": 7,
}


def _row(each: str = "TOK-01", level: str = "SHALL", reason: str = "") -> Requirement:
    return Requirement(
        id=each,
        level=level,
        summary="The request is a POST.",
        source="app-launch",
        not_supported=reason,
        note="",
    )


def _claims(folder: Path, source: str, name: str = "test_it.py"):
    """The claims in a file *name* that holds *source*."""
    path = folder / "tests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return read_claims(folder / "tests")


_MARKED = '@pytest.mark.compliance("TOK-01")\n'
_GOOD = _MARKED + "def test_it_is_a_post():\n    pass\n"


# The list


def test_list_is_whole():
    rows = read_requirements()
    assert len(rows) == 244
    assert Counter(row.level for row in rows.values()) == _LEVELS


def test_every_row_says_what_is_asked_in_one_line_and_where():
    for row in read_requirements().values():
        assert row.summary.endswith(".")
        assert "\n" not in row.summary
        assert row.source


def test_an_id_stands_in_one_row(tmp_path):
    path = tmp_path / "requirements.csv"
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[1]]), encoding="utf-8")
    with pytest.raises(ValueError, match="two rows"):
        read_requirements(path)


def test_every_requirement_has_a_test_or_a_reason():
    faults = find_faults(read_requirements(), read_claims())
    assert not faults, "\n".join(faults)


def test_every_group_of_known_answers_is_used_by_a_test():
    tests = _ROOT / "tests"
    groups = json.loads((tests / "vectors" / "known-answers.json").read_text("utf-8"))
    # Their key is not published, so nothing about them can be computed.
    unknowable = {"_about", "opaque_server_tokens"}
    sources = "".join(path.read_text(encoding="utf-8") for path in tests.rglob("*.py"))
    unused = {name for name in groups if f'["{name}"]' not in sources}
    assert unused == unknowable


# What is found


def test_test_that_is_marked_shows_its_requirement(tmp_path):
    claims = _claims(tmp_path, _GOOD)
    assert find_faults({"TOK-01": _row()}, claims) == []
    (claim,) = get_shown_by(claims)["TOK-01"]
    assert (claim.path, claim.sentence) == ("tests/test_it.py", "it is a post")


def test_mark_of_one_case_counts_for_the_test(tmp_path):
    case = 'pytest.param(1, marks=pytest.mark.compliance("TOK-01"))'
    claims = _claims(
        tmp_path,
        f'@pytest.mark.parametrize("n", [{case}])\ndef test_it(n):\n    pass\n',
    )
    assert find_faults({"TOK-01": _row()}, claims) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("", "no test is marked with it"),
        (_GOOD.replace("TOK-01", "TOK-99"), "TOK-99 is no requirement"),
        (_GOOD.replace("test_it", "shows_it"), "does not collect it"),
        (_MARKED + "class TestIt:\n    pass\n", "stands on no test"),
        ('pytestmark = pytest.mark.compliance("TOK-01")\n', "stands on no test"),
        ("@pytest.mark.skip\n" + _GOOD, "marked with skip"),
        ("@pytest.mark.skipif(WIN, reason='')\n" + _GOOD, "marked with skipif"),
        ("@pytest.mark.xfail\n" + _GOOD, "marked with xfail"),
        (_GOOD.replace("pass", "pytest.skip('no')"), "leave without a result"),
        (_GOOD.replace('"TOK-01"', "ID"), "ids as they are written"),
        (_GOOD.replace('("TOK-01")', ""), "ids as they are written"),
        ("@pytest.mark.browser\n" + _GOOD, "needs a service"),
        ("@pytest.mark.long\n" + _GOOD, "needs a service"),
    ],
)
def test_claim_that_shows_nothing_is_a_fault(tmp_path, source, fault):
    faults = find_faults({"TOK-01": _row()}, _claims(tmp_path, source))
    assert fault in "\n".join(faults)


def test_test_of_another_file_is_none(tmp_path):
    faults = find_faults({"TOK-01": _row()}, _claims(tmp_path, _GOOD, "helpers.py"))
    assert "does not collect it" in faults[0]


@pytest.mark.parametrize(
    ("level", "fault"),
    [("SHALL", ["TOK-01: shown of the simulator"]), ("SRV-SHALL", [])],
)
def test_the_simulator_shows_what_a_server_does_and_no_more(tmp_path, level, fault):
    claims = _claims(tmp_path, _GOOD, "testing/test_it.py")
    faults = find_faults({"TOK-01": _row(level=level)}, claims)
    assert [each.partition(",")[0] for each in faults] == fault


def test_reason_stands_in_for_a_test_and_not_beside_one(tmp_path):
    rows = {"TOK-01": _row(reason="It makes no sense here.")}
    assert find_faults(rows, []) == []
    (fault,) = find_faults(rows, _claims(tmp_path, _GOOD))
    assert "yet shown by a test" in fault


def test_reasons_are_few():
    rows = {
        each: _row(each, reason="No.")
        for each in (f"TOK-{number:02}" for number in range(MOST_NOT_SUPPORTED + 1))
    }
    assert "are not supported" in find_faults(rows, [])[0]
    rows.popitem()
    assert find_faults(rows, []) == []


# The page


def _build(folder: Path, rows: list[dict[str, str]]) -> subprocess.CompletedProcess:
    """Build a page with all parts, from *rows* and one test, in *folder*."""
    _claims(folder, _GOOD)
    requirements = folder / "requirements.csv"
    with requirements.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    source = folder / "docs"
    source.mkdir()
    source.joinpath("conf.py").write_text(
        f"import sys\nsys.path[:0] = [{str(_ROOT)!r}, {str(_ROOT / 'docs/_ext')!r}]\n"
        "extensions = ['conformance_matrix']\ndefault_role = 'code'\n"
        f"conformance_requirements = {str(requirements)!r}\n"
        f"conformance_tests = {str(folder / 'tests')!r}\n",
        encoding="utf-8",
    )
    parts = ("summary", "not-supported", "notes", "topics")
    source.joinpath("index.rst").write_text(
        "Page\n====\n\n" + "".join(f".. conformance:: {part}\n\n" for part in parts),
        encoding="utf-8",
    )
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "text", "docs", "out"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


_ROW = {
    "id": "TOK-01",
    "level": "SHALL*",
    "requirement": "It is a `POST`.",
    "source": "app-launch",
    "not_supported": "",
    "note": "Of a form, too.",
}
_REASON = _ROW | {"id": "SEC-08", "not_supported": "There is no body to promise it."}


@pytest.mark.process
def test_page_is_built_from_rows_and_tests(tmp_path):
    done = _build(tmp_path, [_ROW, _REASON | {"note": ""}])
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.txt").read_text(encoding="utf-8")
    text = " ".join(page.replace("|", " ").split())
    for part in (
        "Of the 2 requirements",
        'SEC-08: It is a "POST". There is no body to promise it.',
        'TOK-01: It is a "POST". Of a form, too.',
        'SHALL* It is a "POST". *app-launch*',
        '"tests/test_it.py": it is a post',
    ):
        assert part in text


@pytest.mark.process
def test_page_with_a_gap_is_not_built(tmp_path):
    done = _build(tmp_path, [_ROW, _REASON | {"not_supported": ""}])
    assert done.returncode != 0
    assert "SEC-08: no test is marked with it, and no reason given" in done.stderr
    assert not (tmp_path / "out" / "index.txt").exists()
