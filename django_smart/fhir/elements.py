"""What every reader of a resource does: take what has the right type, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["iter_mappings", "read_text"]


def iter_mappings(value: object) -> Iterator[Mapping[str, Any]]:
    """The objects of a list; nothing of anything else."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))


def read_text(value: object) -> str:
    """A string with single spaces; empty for anything else."""
    return " ".join(value.split()) if isinstance(value, str) else ""
