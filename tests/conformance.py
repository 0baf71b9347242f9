"""
Which test shows which requirement of SMART App Launch 2.2.

The requirements are rows of ``docs/reference/requirements.csv``; a test names those it
shows with ``@pytest.mark.compliance("TOK-07")``.  The marks are read from the sources,
so that the documentation can be built without running, or importing, a test.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.services import SERVICES

__all__ = [
    "MOST_NOT_SUPPORTED",
    "Claim",
    "Requirement",
    "find_faults",
    "get_shown_by",
    "read_claims",
    "read_requirements",
]

_ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = _ROOT / "docs" / "reference" / "requirements.csv"
TESTS = _ROOT / "tests"

#: So many rows at most may stand without a test and with a reason.
MOST_NOT_SUPPORTED = 12
#: A test with one of these may not have run.
_MAYBE_NOT_RUN = {"skip", "skipif", "xfail"}
#: A test with one of these runs only where a service is, or when it is asked for.
_NOT_EVERYWHERE = {*SERVICES, "long"}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One row of the list."""

    id: str
    #: ``SHALL``, ``SHALL*`` and so on; docs/reference/conformance.rst explains them.
    level: str
    summary: str
    #: Pages of the specification, with commas between.
    source: str
    #: Why the package does not do it; empty where it does.
    not_supported: str
    #: Where the package differs from the row, or what has to be said of it.
    note: str

    @property
    def is_about_the_server(self) -> bool:
        """Whether it binds the server, so that an app can only rely on it."""
        return self.level == "SRV-SHALL"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A test that is marked with requirements."""

    ids: tuple[str, ...]
    #: From the folder of the project, such as ``tests/protocol/test_pkce.py``.
    path: str
    name: str
    line: int
    #: Names of the test's marks.
    marks: frozenset[str]
    #: What is wrong with the mark itself.
    faults: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The test's name as it is meant to be read."""
        return self.name.removeprefix("test_").replace("_", " ")

    @property
    def where(self) -> str:
        """Place in the sources, for messages."""
        return f"{self.path}:{self.line}: {self.name}"

    @property
    def is_of_the_simulator(self) -> bool:
        """Whether it tests the simulated EHR: that shows what a server does."""
        return self.path.startswith("tests/testing/")

    @property
    def runs_everywhere(self) -> bool:
        """Whether it needs nothing but Python."""
        return not self.marks & _NOT_EVERYWHERE


def read_requirements(path: Path = REQUIREMENTS) -> dict[str, Requirement]:
    """The rows by their id, in the order of the list."""
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [
            Requirement(
                id=row["id"],
                level=row["level"],
                summary=row["requirement"],
                source=row["source"],
                not_supported=row["not_supported"],
                note=row["note"],
            )
            for row in csv.DictReader(lines, strict=True)
        ]
    by_id = {row.id: row for row in rows}
    if len(by_id) != len(rows):
        raise ValueError(f"{path.name}: an id stands in two rows")
    return by_id


def read_claims(folder: Path = TESTS) -> list[Claim]:
    """Every use of the mark in the tests below *folder*, in the order of the files."""
    return [
        claim
        for path in sorted(folder.rglob("*.py"))
        for claim in _claims_of(
            path.read_text(encoding="utf-8"),
            f"{folder.name}/{path.relative_to(folder).as_posix()}",
        )
    ]


def get_shown_by(claims: Iterable[Claim]) -> dict[str, list[Claim]]:
    """The tests of each requirement that has one."""
    shown_by: dict[str, list[Claim]] = {}
    for claim in claims:
        for each in claim.ids:
            shown_by.setdefault(each, []).append(claim)
    return shown_by


def find_faults(
    requirements: Mapping[str, Requirement], claims: Iterable[Claim]
) -> list[str]:
    """
    What stands between the list and the tests, in words; empty when all is well.

    Each requirement has a test that runs everywhere and is not about the simulator, or
    a reason why it is not supported, and not both; each mark names requirements of the
    list and is on a test that runs.
    """
    claims = list(claims)
    faults = [f"{claim.where}: {fault}" for claim in claims for fault in claim.faults]
    for claim in claims:
        faults += [
            f"{claim.where}: {each} is no requirement of the list"
            for each in claim.ids
            if each not in requirements
        ]
    shown_by = get_shown_by(claim for claim in claims if not claim.faults)
    for row in requirements.values():
        shown = shown_by.get(row.id, [])
        if row.not_supported and shown:
            faults.append(f"{row.id}: not supported, and yet shown by a test")
        elif not (row.not_supported or shown):
            faults.append(f"{row.id}: no test is marked with it, and no reason given")
        elif shown and not any(claim.runs_everywhere for claim in shown):
            faults.append(f"{row.id}: each of its tests needs a service that may lack")
        elif (
            shown
            and not row.is_about_the_server
            and all(claim.is_of_the_simulator for claim in shown)
        ):
            faults.append(f"{row.id}: shown of the simulator, and not of the app")
    reasons = [row.id for row in requirements.values() if row.not_supported]
    if len(reasons) > MOST_NOT_SUPPORTED:
        faults.append(
            f"{len(reasons)} requirements are not supported, "
            f"and {MOST_NOT_SUPPORTED} may be"
        )
    return faults


def _claims_of(source: str, path: str) -> Iterator[Claim]:
    """Claims in one file; a mark anywhere but on a test is a claim with a fault."""
    tree = ast.parse(source)
    claimed: set[ast.AST] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        found = [
            each
            for decorator in function.decorator_list
            for each in _marks_in(decorator)
        ]
        calls = [node for mark, node in found if mark == "compliance"]
        if not calls:
            continue
        claimed.update(calls)
        marks = frozenset(mark for mark, _ in found)
        yield Claim(
            ids=tuple(text for call in calls for text in _strings_of(call)),
            path=path,
            name=function.name,
            line=function.lineno,
            marks=marks,
            faults=tuple(_faults_of(function, path, calls, marks)),
        )
    for mark, node in _marks_in(tree):
        if mark == "compliance" and node not in claimed:
            yield Claim(
                ids=(),
                path=path,
                name="compliance",
                line=getattr(node, "lineno", 0),
                marks=frozenset(),
                faults=("the mark stands on no test",),
            )


def _faults_of(
    function: ast.FunctionDef | ast.AsyncFunctionDef,
    path: str,
    calls: list[ast.AST],
    marks: frozenset[str],
) -> Iterator[str]:
    """What is wrong with the marks of *function*."""
    file = path.rpartition("/")[2]
    if not (function.name.startswith("test_") and file.startswith("test_")):
        yield "pytest does not collect it as a test"
    for mark in sorted(marks & _MAYBE_NOT_RUN):
        yield f"marked with {mark}, so it may not run"
    if any(
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"pytest.skip", "pytest.xfail"}
        for node in ast.walk(function)
    ):
        yield "it may leave without a result"
    for call in calls:
        if not isinstance(call, ast.Call) or len(_strings_of(call)) != len(call.args):
            yield "the mark takes ids as they are written, and nothing else"


def _marks_in(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Each mark in *tree* by its name, as the call or, without one, as the name."""
    called: set[ast.AST] = set()
    for node in ast.walk(tree):  # which comes to a call before what it calls
        if isinstance(node, ast.Call) and (mark := _mark_name(node.func)):
            called.add(node.func)
            yield mark, node
        elif node not in called and (mark := _mark_name(node)):
            yield mark, node


def _mark_name(node: ast.AST) -> str:
    """``skip`` for ``pytest.mark.skip``; empty for anything else."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pytest.mark":
        return node.attr
    return ""


def _strings_of(call: ast.AST) -> list[str]:
    """The string literals that *call* is called with."""
    arguments = call.args if isinstance(call, ast.Call) else []
    return [
        argument.value
        for argument in arguments
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    ]
