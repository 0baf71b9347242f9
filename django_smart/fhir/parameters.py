"""Search parameters, from Python's words and values to a query string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from urllib.parse import quote

from django_smart.exceptions import FHIRRequestError

__all__ = [
    "AnyOf",
    "Quantity",
    "SearchParams",
    "Token",
    "build_search_query",
    "escape",
]

SearchParams = Mapping[str, object] | Iterable[tuple[str, object]]

# Before a value: compared how (FHIR R4, Search, "Prefixes").
_PREFIXES = frozenset({"eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"})
# After a name: R4's modifiers and R5's, and the order of a sort, which DSTU2 wrote so.
_MODIFIERS = frozenset(
    {
        *("above", "asc", "below", "code-text", "contains", "desc", "exact"),
        *("identifier", "in", "iterate", "missing", "not", "not-in", "of-type"),
        *("ofType", "recurse", "text", "text-advanced"),
    }
)


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
        number = _format_value(self.value)
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


def build_search_query(
    params: SearchParams | None, keywords: Mapping[str, object]
) -> str:
    """
    Build a query string, in the order given.

    Args:
        params: names exactly as FHIR has them, as a mapping or pairs.
        keywords: names in Python's words, with ``_`` within a name for the hyphen
            (``_last_updated`` is ``_lastUpdated``).
            After ``__`` comes a modifier (``name__exact``), a prefix of the value
            (``birthdate__ge``), the type a reference leads to (``subject__Patient``) or
            a parameter of what it leads to (``patient__family``).

    A value is text, a number, a bool, a date, an aware datetime or one of the classes
    of this module; a list repeats the parameter, for "and".

    Raises:
        FHIRRequestError: a value is ``None``, empty or of another kind.  Leaving it out
            would search more widely than was asked: among all patients, say.

    Spec: FHIR R4, Search; RFC 3986 (``%20`` for a space).
    """
    pairs = params.items() if isinstance(params, Mapping) else params or ()
    named = [(name, "", value) for name, value in pairs]
    named += [(*_read_keyword(name), value) for name, value in keywords.items()]
    try:
        return "&".join(
            f"{quote(name, safe='')}={quote(text, safe='')}"
            for name, text in _flatten(named)
        )
    except UnicodeEncodeError:
        # Its text would quote the value.
        raise FHIRRequestError(
            "A search parameter is not valid Unicode text."
        ) from None


def _read_keyword(keyword: str) -> tuple[str, str]:
    """``code__in`` → ``"code:in", ""``; ``birthdate__ge`` → ``"birthdate", "ge"``."""
    # "class_" is the parameter that Python has another use for.
    parts = [part.removesuffix("_") for part in keyword.split("__")]
    prefix = parts.pop() if len(parts) > 1 and parts[-1] in _PREFIXES else ""
    parts = [_read_name(part) for part in parts]
    if parts[0] == "_has":
        # _has:Observation:patient:code: colons alone.
        return ":".join(parts), prefix
    name = parts[0]
    after_type = False
    for part in parts[1:]:
        # After a type comes a parameter of it, even if its name is a modifier's too.
        has_colon = not after_type and (part in _MODIFIERS or part[:1].isupper())
        name += f":{part}" if has_colon else f".{part}"
        after_type = has_colon and part[:1].isupper()
    return name, prefix


def _read_name(part: str) -> str:
    """``value_quantity`` → ``value-quantity``; ``_last_updated`` → ``_lastUpdated``."""
    if not part.startswith("_"):
        return part.replace("_", "-")
    first, *others = part[1:].split("_")
    return "_" + first + "".join(each[:1].upper() + each[1:] for each in others)


def _flatten(
    named: Iterable[tuple[str, str, object]],
) -> Iterator[tuple[str, str]]:
    """Repeat the name for each item of a list."""
    for name, prefix, value in named:
        if not name:
            raise FHIRRequestError("A search parameter has no name.")
        is_one = isinstance(value, AnyOf) or not isinstance(value, (list, tuple))
        values = [value] if is_one else list(value)  # type: ignore[call-overload]
        if not values:
            raise FHIRRequestError(f'The search parameter "{name}" has no value.')
        for item in values:
            yield name, _format(name, prefix, item)


def _format(name: str, prefix: str, value: object) -> str:
    if prefix and isinstance(value, AnyOf) and value:
        return ",".join(_format(name, prefix, item) for item in value)
    try:
        return prefix + _format_value(value)
    except FHIRRequestError as exc:
        raise FHIRRequestError(f'The search parameter "{name}" has {exc}.') from None


def _format_value(value: object) -> str:
    """Write one value as FHIR does; an error does not quote it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime) and value.utcoffset() is None:
        raise FHIRRequestError("a datetime without a time zone")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (int, float, Decimal)):
        if not Decimal(str(value)).is_finite():
            raise FHIRRequestError("a number that is not finite")
        return str(value)
    if isinstance(value, AnyOf):
        # "or" of nothing would be an empty value.
        return ",".join(_format_value(item) for item in value) or _refuse(value)
    if isinstance(value, (str, Token, Quantity)):
        return str(value) or _refuse(value)
    return _refuse(value)


def _refuse(value: object) -> str:
    raise FHIRRequestError(f"no usable value ({type(value).__name__}, or empty)")
