"""Values of search parameters: tokens, references, quantities and alternatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.messages import validate_id, validate_resource_type

__all__ = ["AnyOf", "Quantity", "Reference", "Token", "escape", "format_value"]


def escape(text: str) -> str:
    r"""Escape ``\``, ``,``, ``|`` and ``$``, so that *text* is searched literally."""
    for letter in "\\,|$":
        text = text.replace(letter, f"\\{letter}")
    return text


@dataclass(frozen=True, slots=True)
class Token:
    """
    A code or identifier, with its system: ``Token("4548-4", "http://loinc.org")``.

    Args:
        code: the value; empty for any code of the system.
        system: URI; ``None`` for any system, empty for a code that has none.

    Spec: FHIR R4, Search, "token".
    """

    # An identifier may be a patient's.
    code: str = field(repr=False)
    system: str | None = None

    def __str__(self) -> str:
        if self.system is None:
            return escape(self.code)
        if not self.system and not self.code:
            return ""
        return f"{escape(self.system)}|{escape(self.code)}"


@dataclass(frozen=True, slots=True)
class Reference:
    """
    Another resource: ``Reference("Practitioner", "12")``.

    Raises:
        FHIRRequestError: the resource type or id is invalid.
    """

    resource_type: str
    id: str = field(repr=False)

    def __post_init__(self) -> None:
        validate_resource_type(self.resource_type)
        validate_id(self.id)

    def __str__(self) -> str:
        return f"{self.resource_type}/{self.id}"


@dataclass(frozen=True, slots=True)
class Quantity:
    """
    A number with its unit, as a search value: ``Quantity(7, "%")``.

    Args:
        value: number; a ``Decimal`` keeps trailing zeros.
        unit: UCUM code, or a code of *system*; empty for any unit.
        system: URI of the unit's code system; UCUM by default.

    Spec: FHIR R4, Search, "quantity".
    """

    value: int | float | Decimal = field(repr=False)
    unit: str = ""
    system: str = "http://unitsofmeasure.org"

    def __str__(self) -> str:
        number = format_value(self.value)
        if not self.unit:
            return number
        return f"{number}|{escape(self.system)}|{escape(self.unit)}"


class AnyOf(tuple[object, ...]):
    """
    Alternatives: ``AnyOf("final", "amended")``; with a list, all values must match.

    A string is in FHIR's syntax, in which ``,``, ``|`` and ``$`` have a meaning; use
    ``escape`` for literal text.
    """

    __slots__ = ()

    def __new__(cls, *values: object) -> AnyOf:
        return super().__new__(cls, values)

    def __repr__(self) -> str:
        return f"<AnyOf: {len(self)} values>"


def format_value(value: object) -> str:
    """
    Write one value as FHIR does.

    Raises:
        FHIRRequestError: it is ``None``, empty, of another kind, or a datetime without
            a time zone; the text does not quote it.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime) and value.utcoffset() is None:
        raise FHIRRequestError("a datetime without a time zone")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (int, float, Decimal)):
        return _format_number(value)
    if isinstance(value, AnyOf):
        # "or" of nothing would be an empty value.
        return ",".join(format_value(item) for item in value) or _refuse(value)
    if isinstance(value, (str, Token, Reference, Quantity)):
        return str(value) or _refuse(value)
    return _refuse(value)


def _format_number(value: float | Decimal) -> str:
    number = Decimal(str(value))
    if not number.is_finite():
        raise FHIRRequestError("a number that is not finite")
    return str(value)


def _refuse(value: object) -> str:
    raise FHIRRequestError(f"no usable value ({type(value).__name__}, or empty)")
