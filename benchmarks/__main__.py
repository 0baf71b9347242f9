"""
Measure.

    python -m benchmarks                   the questions; writes the results
    python -m benchmarks fhir_read login   some; the others' results stay
    python -m benchmarks --large           those that take long, left out above
    python -m benchmarks --smoke           whether it still runs; writes nothing
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.environment import describe
from benchmarks.harness import SEED, Report
from benchmarks.questions import QUESTIONS, choose, is_large
from benchmarks.render import render, render_summary

_FOLDER = Path(__file__).resolve().parent
_RESULTS = _FOLDER / "results.json"
_PAGE = _FOLDER / "RESULTS.rst"
# Seconds for one question.
_LIMIT, _LARGE_LIMIT = 600, 3600


def main() -> int:
    """Run what is asked for; the exit code tells whether all of it ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument(
        "--rounds", type=int, default=1000, help="at most so many, while developing"
    )
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.questions).difference(QUESTIONS)
    if unknown:
        parser.error(f"choose from {', '.join(QUESTIONS)}")
    if arguments.answer:
        _answer(arguments)
        return 0
    asked = choose(arguments.questions, large=arguments.large, smoke=arguments.smoke)
    failed = []
    for question in asked:
        answer = _ask(question, arguments)
        if answer is None:
            failed.append(question)
        elif not arguments.smoke:
            # At once: what was measured is kept, whatever comes of the others.
            _write(answer)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if not arguments.smoke:
        _finish()
    return 1 if failed else 0


def _ask(question: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Answer *question* in a process of its own: settings and memory are its own."""
    started = monotonic()
    limit = _LARGE_LIMIT if is_large(question) else _LIMIT
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer.json"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks", question]
        command += ["--answer", str(path), "--rounds", str(arguments.rounds)]
        command += ["--smoke"] if arguments.smoke else []
        print(f"{question} …", end=" ", flush=True)
        try:
            done = subprocess.run(command, cwd=_FOLDER.parent, timeout=limit)
            is_there = done.returncode == 0
        except subprocess.TimeoutExpired:
            is_there = False
        taken = monotonic() - started
        print(f"{taken:.0f} s" if is_there else f"failed after {taken:.0f} s")
        if not is_there:
            return None
        answer: dict[str, Any] = json.loads(path.read_text())
    answer["seconds"] = round(taken)
    return answer


def _answer(arguments: argparse.Namespace) -> None:
    (question,) = arguments.questions
    report = Report(
        question=question,
        is_smoke=arguments.smoke,
        most_rounds=arguments.rounds,
    )
    import_module(f"benchmarks.questions.{question}").run(report)
    Path(arguments.answer).write_text(json.dumps(report.as_json()))


def _write(answer: dict[str, Any]) -> None:
    environment = describe(SEED)
    answer["commit"] = environment["commit"]
    known = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {"answers": []}
    by_question = {each["question"]: each for each in [*known["answers"], answer]}
    results = {
        "environment": environment,
        "answers": [by_question[each] for each in QUESTIONS if each in by_question],
    }
    # A line for each row of numbers: a repository keeps differences of lines.
    text = json.dumps(results, indent=1, ensure_ascii=False)
    _RESULTS.write_text(_join_numbers(text) + "\n", encoding="utf-8")
    _PAGE.write_text(render(results), encoding="utf-8")


def _finish() -> None:
    """Draw, and print what there is."""
    from benchmarks.plots import draw

    results = json.loads(_RESULTS.read_text(encoding="utf-8"))
    draw(results)
    print(render_summary(results))


def _join_numbers(text: str) -> str:
    """Lists of numbers on one line each."""
    import re

    def join(found: re.Match[str]) -> str:
        return re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]")

    return re.sub(r"\[\s+(?:(?:[-+\d.e]+|null),?\s+)+\]", join, text)


if __name__ == "__main__":
    sys.exit(main())
