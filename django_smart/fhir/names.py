"""Reading elements for people: what lists hold, and a person's name."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from django_smart.fhir.dates import parse_date

__all__ = ["get_name", "iter_mappings", "read_text"]


def iter_mappings(value: object) -> Iterator[Mapping[str, Any]]:
    """The objects of a list; nothing of anything else."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))


def read_text(value: object) -> str:
    """A string with single spaces; empty for anything else."""
    return " ".join(value.split()) if isinstance(value, str) else ""


# Names that are over, and names that hide who it is, come last.
_USES = ("official", "usual", "", "temp", "nickname", "anonymous")
_OVER = 100


def get_name(resource: Mapping[str, Any], *, today: datetime.date | None = None) -> str:
    """
    Return the display name of a ``Patient`` or ``Practitioner``, or "".

    Official before usual before others; old ones, and those whose period has ended by
    *today*, only if there is no other.  Odd values are left out, never an error.

    Spec: FHIR R4, "HumanName".
    """
    names = iter_mappings(resource.get("name"))
    ranked = sorted(names, key=lambda name: _rank(name, today))
    return next(filter(None, map(_in_words, ranked)), "")


def _rank(name: Mapping[str, Any], today: datetime.date | None) -> int:
    use = read_text(name.get("use"))
    rank = _USES.index(use) if use in _USES else len(_USES)
    period = name.get("period")
    end = parse_date(period.get("end")) if isinstance(period, Mapping) else None
    is_over = end is not None and today is not None and end.is_before(today)
    return rank + _OVER if is_over else rank


def _in_words(name: Mapping[str, Any]) -> str:
    text = read_text(name.get("text"))
    if text:
        return text
    parts = (
        *_texts(name.get("prefix")),
        *_texts(name.get("given")),
        read_text(name.get("family")),
        *_texts(name.get("suffix")),
    )
    return " ".join(filter(None, parts))


def _texts(values: object) -> Iterator[str]:
    if isinstance(values, list):
        yield from map(read_text, values)
