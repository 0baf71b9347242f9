"""Render RESULTS.rst from results.json, without measuring anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from benchmarks.harness import compare, count
from benchmarks.notes import NOTES, REACHES

__all__ = ["passes", "render", "render_summary"]

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def passes(check: dict[str, Any]) -> bool | None:
    """The verdict on a check; ``None`` if it is only reported."""
    if check["at_most"] is not None:
        return bool(check["value"] <= check["at_most"])
    if check["at_least"] is not None:
        return bool(check["value"] >= check["at_least"])
    return None


def render(results: dict[str, Any]) -> str:
    """The whole page, as reStructuredText."""
    environment = results["environment"]
    parts = [
        ".. Written by make bench from results.json; do not edit.",
        "",
        f"Measured at commit {environment['commit']} on {environment['cores']} cores of "
        f"{environment['processor']} ({environment['system']}), "
        f"with seed {environment['seed']}.",
        "",
        "A ratio is the median over all rounds, next to its lower and upper quartile; "
        "lower is faster.",
        "",
    ]
    parts += _heading("Summary", "-")
    parts += _table(
        ("Question", "What", "Measured", "Target", "Verdict"),
        (
            (_title(answer), check["what"], *_judge(check))
            for answer in results["answers"]
            for check in answer["checks"]
        ),
    )
    parts += [
        "Every alternative, relative to the first one of its table:",
        "",
        ".. image:: ../docs/images/bench-ratios.svg",
        "   :alt: Ratios of all alternatives, as bars",
        "",
    ]
    for answer in results["answers"]:
        parts += _render_answer(answer, environment)
    parts += _heading("Versions", "-")
    parts += _table(("What", "Version"), environment["versions"].items())
    return "\n".join(parts).rstrip() + "\n"


def render_summary(results: dict[str, Any]) -> str:
    """For a terminal."""
    lines = []
    for answer in results["answers"]:
        for table in answer["tables"]:
            lines.append(f"{answer['question']}: {table['title']}")
            lines += ["    " + "  ".join(row) for row in _rows(table)]
        for check in answer["checks"]:
            value, reach, verdict = _judge(check)
            lines.append(
                f"{answer['question']}: {check['what']}: {value} {reach} {verdict}"
            )
    versions = results["environment"]["versions"].items()
    lines.append(", ".join(f"{name} {number}" for name, number in versions))
    return "\n".join(lines)


def _title(answer: dict[str, Any]) -> str:
    return REACHES[answer["question"]]


def _render_answer(
    answer: dict[str, Any], environment: dict[str, Any]
) -> Iterable[str]:
    module = import_module(f"benchmarks.questions.{answer['question']}")
    parts = _heading(_title(answer), "-")
    parts += [module.TEXT.strip(), ""]
    if answer["commit"] != environment["commit"]:
        parts += [f"Measured at commit {answer['commit']}.", ""]
    for table in answer["tables"]:
        parts += [
            f"{table['title']}, {table['operations']} per round:",
            "",
            *_table(
                ("Alternative", f"One {table['unit']}", "Ratio", "Quartiles", "Rounds"),
                _rows(table),
            ),
        ]
    if answer["facts"]:
        parts += _table(("Also", ""), answer["facts"].items())
    for plot in answer["plots"]:
        parts += [
            f".. image:: ../docs/images/bench-{plot['key']}.svg",
            f"   :alt: {plot['title']}",
            "",
        ]
    for check in answer["checks"]:
        if passes(check) is False:
            note = NOTES.get((answer["question"], check["key"]))
            value, reach, verdict = _judge(check)
            parts += [
                f"**{check['what']}: {value}, {verdict} of {reach}.**",
                note or "No reason is known yet.",
                "",
            ]
    return parts


def _rows(table: dict[str, Any]) -> list[tuple[str, ...]]:
    times, base = table["times"], table["base"]
    rows: list[tuple[str, ...]] = []
    for name, values in times.items():
        known = sorted(each for each in values if each is not None)
        ratio = compare(times, name, base)
        rows.append(
            (
                name,
                _duration(known[len(known) // 2]),
                f"{ratio.median:.2f}",
                f"{ratio.low:.2f} – {ratio.high:.2f}" if name != base else "",
                str(count(values)),
            )
        )
    return rows


def _judge(check: dict[str, Any]) -> tuple[str, str, str]:
    """Measured value, reach, and verdict."""
    unit = f" {check['unit']}" if check["unit"] else ""
    if check["at_most"] is not None:
        reach = f"≤ {check['at_most']:g}{unit}"
    elif check["at_least"] is not None:
        reach = f"≥ {check['at_least']:g}{unit}"
    else:
        reach = "reported"
    verdict = {True: "pass", False: "short", None: ""}[passes(check)]
    return f"{check['value']:g}{unit}", reach, verdict


def _duration(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _heading(text: str, mark: str) -> list[str]:
    return [text, mark * len(text), ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        for number, cell in enumerate(row):
            lines.append(f"   {' ' if number else '*'} - {cell}".rstrip())
    return [*lines, ""]
