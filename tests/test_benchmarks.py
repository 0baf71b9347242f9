"""The benchmarks: what they wrote down is what they measured, and they still run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.harness import Report, Variant, compare, measure
from benchmarks.notes import NOTES, REACHES
from benchmarks.questions import QUESTIONS
from benchmarks.render import passes, render

_ROOT = Path(__file__).resolve().parent.parent
_FOLDER = _ROOT / "benchmarks"
_RESULTS = json.loads((_FOLDER / "results.json").read_text(encoding="utf-8"))
_PAGE = (_FOLDER / "RESULTS.rst").read_text(encoding="utf-8")


def test_results_are_rendered_from_the_numbers_beside_them():
    assert render(_RESULTS) == _PAGE


def test_every_question_was_answered_and_has_its_own_module():
    answered = [each["question"] for each in _RESULTS["answers"]]
    assert answered == list(QUESTIONS)
    assert list(REACHES) == list(QUESTIONS)
    modules = {path.stem for path in (_FOLDER / "questions").glob("[!_]*.py")}
    assert modules == set(QUESTIONS)


def test_row_behind_its_reach_says_why():
    behind = {
        (answer["question"], check["key"])
        for answer in _RESULTS["answers"]
        for check in answer["checks"]
        if passes(check) is False
    }
    assert behind <= set(NOTES)


def test_verdict_is_the_only_use_of_its_word():
    lines = [line for line in _PAGE.splitlines() if re.search("short", line, re.I)]
    others = [
        line for line in lines if not re.search(r"^ +- short$|, short of [≤≥] ", line)
    ]
    assert not others


def test_pictures_of_the_page_are_there():
    names = re.findall(r"image:: \.\./docs/images/(\S+)", _PAGE)
    assert names
    for name in names:
        assert (_ROOT / "docs" / "images" / name).is_file()


def test_versions_and_commit_are_written_down():
    environment = _RESULTS["environment"]
    assert re.match(r"[0-9a-f]{12}\b", environment["commit"])
    versions = environment["versions"]
    for name in ("Python", "Django", "Authlib", "django-allauth", "fhirclient"):
        assert re.match(r"\d+\.\d+", versions[name])


@pytest.mark.parametrize("path", sorted(_FOLDER.rglob("*.py")), ids=lambda p: p.stem)
def test_module_can_be_read_in_one_sitting(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 400, "split it"


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_says_what_is_measured(question):
    module = import_module(f"benchmarks.questions.{question}")
    assert module.TEXT.strip().endswith(".")
    assert callable(module.run)


def test_ways_are_timed_in_every_round_and_compared_round_by_round():
    done = {"one": 0, "two": 0}

    def count(name):
        def add(number):
            done[name] += number

        return add

    variants = [
        Variant(name="one", run=count("one")),
        Variant(name="two", run=count("two"), every=2, operations=3),
    ]
    times = measure(variants, rounds=4, operations=5)
    assert done == {"one": 5 + 4 * 5, "two": 3 + 2 * 3}
    assert None not in times["one"]
    assert [each is None for each in times["two"]] == [False, True, False, True]
    known: dict[str, list[float | None]] = {
        "base": [1.0, 2.0, 4.0],
        "way": [2.0, None, 4.0],
    }
    ratio = compare(known, "way", "base")
    assert (ratio.low, ratio.median, ratio.high) == (1.25, 1.5, 1.75)
    assert compare(known, "way", "base", inverse=True).median == 0.75


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"at_most": 1.2}, True),
        ({"at_most": 1.1}, False),
        ({"at_least": 1.2}, True),
        ({"at_least": 1.3}, False),
        ({}, None),
    ],
)
def test_verdict_is_that_of_the_limit(limits, expected):
    report = Report(question="any")
    report.check("key", "what", 1.2, **limits)
    assert passes(report.checks[0]) is expected


def _run(*questions: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--smoke", *questions],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.process
def test_benchmarks_run():
    done = _run("login")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.process
@pytest.mark.postgresql
@pytest.mark.redis
@pytest.mark.timeout(900)
def test_every_benchmark_runs():
    done = _run()
    assert done.returncode == 0, done.stdout + done.stderr


def test_unknown_question_is_refused():
    done = _run("everything")
    assert done.returncode == 2
    assert "choose from fhir_read" in done.stderr
