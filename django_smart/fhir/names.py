"""Reading values: what lists hold, a person's name, the outputs of an operation."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any

from django_smart.fhir.dates import parse_date

__all__ = ["get_name", "get_output", "get_outputs", "iter_mappings", "read_text"]


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


def get_output(answer: Mapping[str, Any], name: str = "return") -> Any:
    """
    Return one value that an operation has returned, or ``None`` if it has none.

    ``get_output(answer, "result")`` is the boolean of ``$validate-code``.  If the only
    value is a resource, some servers return it alone and others as ``return``;
    ``get_output(answer)`` reads both.

    Args:
        answer: the result of ``fhir.operation()``.
        name: of the output parameter.

    Spec: FHIR R4, "Operations Framework", Response; "Parameters".
    """
    return next(iter(get_outputs(answer, name)), None)


def get_outputs(answer: Mapping[str, Any], name: str = "return") -> list[Any]:
    """
    Return all values of an output parameter, which may repeat.

    A parameter with parts is returned as a ``Parameters``: read it with the same
    functions.
    """
    if answer.get("resourceType") != "Parameters":
        return [answer] if name == "return" else []
    found = iter_mappings(answer.get("parameter"))
    return [_get_value(each) for each in found if each.get("name") == name]


def _get_value(parameter: Mapping[str, Any]) -> Any:
    if "part" in parameter:
        return {"resourceType": "Parameters", "parameter": parameter["part"]}
    if "resource" in parameter:
        return parameter["resource"]
    values = (value for key, value in parameter.items() if key.startswith("value"))
    return next(values, None)
