"""The code of a page of the documentation, as its reader finds it."""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCS", "Block", "read_blocks"]

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


def read_blocks(page: str) -> list[Block]:
    """Every ``code-block`` of *page*, a path from ``docs`` on, in its order."""
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
