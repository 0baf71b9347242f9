"""The code of a page of the documentation, as its reader finds it."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.management.running import Ran, run

__all__ = ["DOCS", "Block", "apply", "do", "execute", "read_blocks", "read_section"]

DOCS = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One ``code-block``."""

    language: str
    code: str
    #: The sentence right before it; empty behind another block.
    before: str

    @property
    def commands(self) -> list[list[str]]:
        """Commands of a block of the shell, split into words."""
        joined = re.sub(r"\\\n\s*", "", self.code)
        lines = joined.splitlines()
        assert all(line.startswith("$ ") for line in lines), self.code
        return [shlex.split(line.removeprefix("$ ")) for line in lines]


def read_section(page: str, section: str) -> str:
    """
    The text below the heading *section*, up to the next heading of its level.

    Args:
        page: a path from ``docs`` on.
        section: the heading, as the page writes it.

    Raises:
        ValueError: the page has no such heading.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    heading = re.search(rf"^{re.escape(section)}\n([-~^])\1+\n", text, re.MULTILINE)
    if heading is None:
        raise ValueError(f"{page} has no section {section!r}")
    below = text[heading.end() :]
    # Levels are drawn with -, ~ and ^, from the highest to the lowest.
    marks = "-~^"[: "-~^".index(heading[1]) + 1].replace("-", r"\-").replace("^", r"\^")
    return re.split(rf"^\S.*\n([{marks}])\1{{2,}}\n", below, flags=re.MULTILINE)[0]


def read_blocks(page: str, section: str = "") -> list[Block]:
    """Every ``code-block`` of *page*, or of one *section* of it, in its order."""
    if section:
        text = read_section(page, section)
    else:
        text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(
        r"(?:(?P<before>[^\n]*)\n\n)?"
        r"^\.\. code-block:: (?P<language>[\w+]+)\n(?:    :\w+:.*\n)*\n"
        r"(?P<code>(?:(?: {4}.*)?\n)+)",
        text,
        re.MULTILINE,
    )
    return [
        Block(
            language=match["language"],
            code=textwrap.dedent(match["code"]).strip("\n") + "\n",
            before=match["before"] or "",
        )
        for match in found
    ]


def execute(*blocks: Block, **names: Any) -> dict[str, Any]:
    """What the code of *blocks* defines, one behind the other."""
    names.setdefault("__name__", __name__)
    for block in blocks:
        exec(block.code, names)
    return names


def apply(settings: Any, *blocks: Block) -> None:
    """Take over the settings that *blocks* show."""
    for name, value in execute(*blocks).items():
        if name.isupper():
            setattr(settings, name, value)


def do(words: list[str]) -> Ran:
    """Run the management command that a page has its reader type."""
    assert words[:2] == ["python", "manage.py"]
    return run(*words[2:])
