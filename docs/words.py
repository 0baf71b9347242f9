"""
How the pages read, in numbers (``make docs-words``).

For each page: its words, semicolons between two sentences, the share of sentences that
address "you", words such as "somebody", "is refused" and "is raised", and ids of
requirements outside the pages of evidence.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Figures", "count", "read_pages"]

_DOCS = Path(__file__).resolve().parent
#: What these pages are about are the requirements and their tests.
_EVIDENCE = {"reference/conformance", "reference/patient-boundary"}

_PEOPLE = re.compile(r"\b(?:some|any|every|no)body\b|\bwhoever\b", re.IGNORECASE)
_PASSIVE = re.compile(r"\b(?:is|are) (?:refused|raised)\b", re.IGNORECASE)
_REQUIREMENT = re.compile(r"\b(?!UTC)[A-Z]{3,5}-\d\d\b")
_YOU = re.compile(r"\byou(?:r|rs|rself)?\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was counted on one page."""

    words: int
    sentences: int
    semicolons: int
    you: int
    people: int
    passive: int
    requirements: int


def read_pages() -> dict[str, str]:
    """The source of every page, by its name in links."""
    paths = sorted(_DOCS.rglob("*.rst"))
    pages = (path for path in paths if "_build" not in path.parts)
    return {
        str(path.relative_to(_DOCS).with_suffix("")): path.read_text(encoding="utf-8")
        for path in pages
    }


def count(name: str, text: str) -> Figures:
    """
    Count one page.

    Args:
        name: of the page, as in ``read_pages()``.
        text: its source.
    """
    sentences = list(_split(text))
    prose = " ".join(sentences)
    return Figures(
        words=len(text.split()),
        sentences=len(sentences),
        semicolons=sum(map(_count_semicolons, sentences)),
        you=sum(bool(_YOU.search(each)) for each in sentences),
        people=len(_PEOPLE.findall(prose)),
        passive=len(_PASSIVE.findall(prose)),
        requirements=0 if name in _EVIDENCE else len(_REQUIREMENT.findall(text)),
    )


def _split(text: str) -> Iterator[str]:
    """The sentences of the prose, without code, directives and literals."""
    directive = r"^( *)\.\. [\w-]+::.*\n(?:(?:\1 +.*)?\n)*"
    text = re.sub(directive, "\n", text, flags=re.MULTILINE)
    text = re.sub(r"::\n\n(?:(?:    .*)?\n)+", ".\n\n", text)
    text = re.sub(r"^ *:[\w ]+: .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"``[^`]+``", "x", text)
    for paragraph in re.split(r"\n\s*\n|\n(?= *(?:[-#*]|\d+)\.? )", text):
        for line in re.split(r"(?<=[.?!:])\s+", paragraph.strip()):
            if len(line.split()) > 2:
                yield line


def _count_semicolons(sentence: str) -> int:
    """Those between sentences, not those in parentheses or at the end of an item."""
    return len(re.findall(r"; ", re.sub(r"\([^()]*\)", "", sentence)))


def _report() -> str:
    lines = [_row("page", "words", "; ", "you %", "-body", "passive", "ids")]
    totals = [0] * 7
    for name, text in read_pages().items():
        found = count(name, text)
        share = round(100 * found.you / max(found.sentences, 1))
        rest = (found.people, found.passive, found.requirements)
        lines.append(_row(name, found.words, found.semicolons, share, *rest))
        values = (found.words, found.semicolons, found.you, *rest, found.sentences)
        totals = [a + b for a, b in zip(totals, values, strict=True)]
    totals[2] = round(100 * totals[2] / totals.pop())
    return "\n".join([*lines, _row(f"{len(lines) - 1} pages", *totals)])


def _row(name: str, *values: object) -> str:
    return f"{name:45}" + "".join(f"{each!s:>9}" for each in values)


if __name__ == "__main__":
    sys.stdout.write(f"{_report()}\n")
