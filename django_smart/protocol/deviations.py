"""What a server does differently from the specification, although it is accepted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Deviation", "name_type"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviation:
    """
    One kind of deviation in one message.

    The values that functions of this package return for messages have a tuple of them,
    so that an operator can tell the server's team.

    Attributes:
        code: says what it is, and what the specification requires
            (:mod:`django_smart.diagnoses`).
        evidence: members that the specification defines, types and numbers; never a
            value or a name that the server chose.
    """

    code: str
    evidence: str = ""


def name_type(value: object) -> str:
    """Return the type of a JSON *value*, for evidence."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string" if value else "empty"
        case list():
            return "a list"
    return "an object"
