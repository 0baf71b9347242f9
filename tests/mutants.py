"""
Change a room's code at random, one place at a time, and list what no test notices.

    python -m tests.mutants --room grants --tests tests/grants --count 24 --seed 7

A seed repeats a draw.  ``--also`` is a second way to notice a change, for example
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
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

__all__ = ["find_changes"]

_ROOT = Path(__file__).parents[1]
_PAIRS = [
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq)),
    *((ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
]
_OTHER = dict(_PAIRS) | {second: first for first, second in _PAIRS}
_QUERIES = {"filter", "exclude", "update", "get_or_create", "order_by"}


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


def _draw(folder: Path, count: int, seed: int) -> list[tuple[Path, str, str]]:
    """Files, each with a change and its text with that change."""
    mutants = []
    for path in sorted(folder.rglob("*.py")):
        for index, (change, node, *_) in enumerate(find_changes(_parse(path))):
            line = getattr(node, "lineno", 0)
            mutants.append((path, index, f"{path.name}:{line} {change:.90}"))
    drawn = []
    for path, index, name in random.Random(seed).sample(mutants, count):
        tree = _parse(path)
        setattr(*list(find_changes(tree))[index][1:])
        drawn.append((path, name, ast.unparse(ast.fix_missing_locations(tree))))
    return drawn


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def main() -> None:
    """Print a line for each change, and how many were noticed by what."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--room", required=True, help="a folder of the package")
    parser.add_argument("--tests", required=True, help="arguments for pytest")
    parser.add_argument("--also", default="", help="arguments for Python")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    commands = {"tests": f"-m pytest -x -q -p no:cacheprovider {options.tests}"}
    if options.also:
        commands["also"] = options.also
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "copy")
        shutil.copytree(_ROOT, root, ignore=shutil.ignore_patterns(".*", "images"))
        if wrong := [name for name in commands if _fails(commands[name], root)]:
            parser.error(f"fails without any change: {', '.join(wrong)}")
        folder = root / "django_smart" / options.room
        for path, change, text in _draw(folder, options.count, options.seed):
            before = path.read_text("utf-8")
            path.write_text(text, "utf-8")
            found = [name for name in commands if _fails(commands[name], root)]
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
