"""
Change a room's code at random, one place at a time, and list what no test notices.

    python -m tests.mutants --room grants --tests tests/grants --count 24 --seed 7

A seed repeats a draw.  The tests run once without any change to see which of them
executes which line: a change then meets only the tests of its line, fastest first.
``--also`` is a second way to notice a change, for example
``-m tests.simulation.run --seeds 2 --hours 0.15 --grants 60``.  Everything runs in a
copy, so you can go on working.
"""

from __future__ import annotations

import argparse
import ast
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import coverage

__all__ = ["find_changes"]

_ROOT = Path(__file__).parents[1]
_PAIRS = [
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq)),
    *((ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
]
_OTHER = dict(_PAIRS) | {second: first for first, second in _PAIRS}
_QUERIES = {"filter", "exclude", "update", "get_or_create", "order_by"}
_PYTEST = "-m pytest -q -p no:randomly -p no:cacheprovider"


def find_changes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, str, object]]:
    """What each possible change does, the node, its attribute, and the new value."""
    for node in ast.walk(tree):
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                opposite = ast.UnaryOp(ast.Not(), test)
                yield f"negate {ast.unparse(test)}", node, "test", opposite
            case ast.BoolOp(values=parts):
                for part in parts:
                    rest = [each for each in parts if each is not part]
                    yield f"without {ast.unparse(part)}", node, "values", rest
            case ast.Compare(ops=[operator, *_]):
                others = [_OTHER[type(operator)](), *node.ops[1:]]
                yield f"opposite of {ast.unparse(node)}", node, "ops", others
            case ast.Call(func=ast.Attribute(attr=name), keywords=words):
                for word in words if name in _QUERIES else ():
                    left = [each for each in words if each is not word]
                    text = f"{name}() without {ast.unparse(word)}"
                    yield text, node, "keywords", left
            case ast.Expr(value=ast.Call() as call) if "logger" not in ast.dump(call):
                yield f"without {ast.unparse(call)}", node, "value", ast.Constant(None)


def _draw(
    folder: Path, count: int, seed: int
) -> Iterator[tuple[Path, range, str, str]]:
    """Files, each with a change, its lines, and the text with that change."""
    mutants = []
    for path in sorted(folder.rglob("*.py")):
        mutants += [(path, index) for index, _ in enumerate(find_changes(_parse(path)))]
    for path, index in random.Random(seed).sample(mutants, count):
        tree = _parse(path)
        change, node, attribute, value = list(find_changes(tree))[index]
        place: Any = node.test if isinstance(node, ast.If | ast.While) else node
        lines = range(place.lineno, place.end_lineno + 1)
        setattr(node, attribute, value)
        text = ast.unparse(ast.fix_missing_locations(tree))
        yield path, lines, f"{path.name}:{lines[0]} {change:.90}", text


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _find_tests(root: Path, folder: Path) -> dict[tuple[Path, int], list[str]]:
    """The tests that execute each line, fastest first; all for a line of an import."""
    cases = ElementTree.parse(root / "times.xml").iter("testcase")
    seconds = {
        f"{case.get('file')}::{case.get('name')}": float(case.get("time", 0))
        for case in cases
    }
    fastest_first = sorted(seconds, key=lambda test: seconds[test])
    data = coverage.CoverageData(str(root / ".coverage"))
    data.read()
    tests_of: dict[tuple[Path, int], list[str]] = defaultdict(list)
    for path in folder.rglob("*.py"):
        for line, contexts in data.contexts_by_lineno(str(path)).items():
            tests = {context.rpartition("|")[0] for context in contexts}
            tests_of[path, line] = [
                test for test in fastest_first if test in tests or "" in contexts
            ]
    return tests_of


def main() -> None:
    """Print a line for each change, and how many were noticed by what."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--room", required=True, help="a folder of the package")
    parser.add_argument("--tests", required=True, help="arguments for pytest")
    parser.add_argument("--also", default="", help="arguments for Python")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "copy")
        shutil.copytree(_ROOT, root, ignore=shutil.ignore_patterns(".*", "images"))
        folder = root / "django_smart" / options.room
        seen = f"--cov={folder} --cov-context=test --cov-report= --junitxml=times.xml"
        if _fails(f"{_PYTEST} -o junit_family=xunit1 {seen} {options.tests}", root):
            parser.error("the tests fail without any change")
        if options.also and _fails(options.also, root):
            parser.error("the second way fails without any change")
        tests_of = _find_tests(root, folder)
        for path, lines, change, text in _draw(folder, options.count, options.seed):
            tests = dict.fromkeys(
                test for line in lines for test in tests_of[path, line]
            )
            (root / "selected").write_text("\n".join(tests), "utf-8")
            before = path.read_text("utf-8")
            path.write_text(text, "utf-8")
            found = []
            if tests and _fails(f"{_PYTEST} -x @selected", root):
                found.append("tests")
            if options.also and _fails(options.also, root):
                found.append("also")
            path.write_text(before, "utf-8")
            total.update([noticed_by := " + ".join(found) or "none"])
            print(f"{noticed_by:14} {change}", flush=True)  # noqa: T201
    print(dict(total))  # noqa: T201


def _fails(words: str, root: Path) -> bool:
    command = [sys.executable, *shlex.split(words)]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, check=False, timeout=900
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


if __name__ == "__main__":
    main()
