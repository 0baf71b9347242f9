"""
JSON whose numbers keep their digits.

A result of 7.10 is more precise than one of 7.1, so the digits that the server sent are
read, shown and written back unchanged (FHIR R4, data type ``decimal``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

from django_smart.exceptions import FHIRRequestError

__all__ = ["EXACT", "Number", "dump_json", "load_json"]

_LITERAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
# By default, Python parses no int of more than 4,300 digits; the limit can be lower.
_LONGEST_INT = 600


class Number(float):
    """
    A ``float`` that keeps the digits it was written with.

    ``str()``, templates and requests of this package use the digits.  Everything
    else, such as arithmetic, comparison and ``json.dumps``, uses the nearest ``float``;
    :attr:`decimal` is exact.  Numbers without a point or an exponent are read as
    ``int``, which is exact as well.

    Args:
        literal: a JSON number, such as ``"7.10"``.

    Raises:
        ValueError: *literal* is not a JSON number, such as ``NaN``.
    """

    __slots__ = ("_literal",)
    _literal: str

    def __new__(cls, literal: str) -> Number:
        if not _LITERAL.fullmatch(literal):
            raise ValueError("not a valid JSON number")
        return _build_number(literal)

    def __str__(self) -> str:
        return self._literal

    __repr__ = __str__

    def __reduce__(self) -> tuple[type[Number], tuple[str]]:
        return Number, (self._literal,)

    @property
    def decimal(self) -> Decimal:
        """The number with exactly these digits."""
        return Decimal(self._literal)


def _build_number(literal: str) -> Number:
    """Skip the check of what the decoder has read as a number."""
    number = float.__new__(Number, literal)
    number._literal = literal
    return number


def _build_int(literal: str) -> int | Number:
    # An int has no sign of zero.
    if literal == "-0" or len(literal) > _LONGEST_INT:
        return _build_number(literal)
    return int(literal)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError("NaN and infinities are not JSON")


#: For ``json.loads`` and the ``json()`` of ``requests``.
EXACT: dict[str, Any] = {
    "parse_float": _build_number,
    "parse_int": _build_int,
    "parse_constant": _refuse_constant,
}

_decode = json.JSONDecoder(**EXACT).decode


def load_json(text: str | bytes) -> Any:
    """
    Read JSON, with each number as :class:`Number` or ``int``.

    Args:
        text: a string, or UTF-8 with or without a byte order mark.

    Raises:
        ValueError: *text* is not JSON, or contains ``NaN`` or an infinity.  The message
            does not quote it, but a ``json.JSONDecodeError`` has it as an attribute.
        RecursionError: *text* is nested too deeply.
    """
    return _decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)


def dump_json(value: Any) -> bytes:
    """
    Write JSON in UTF-8, with the digits of each ``Number`` and ``Decimal``.

    Raises:
        FHIRRequestError: a value cannot be encoded, such as a ``date``, ``NaN`` or an
            infinity.
    """
    try:
        return _write(value).encode()
    except (ValueError, RecursionError):
        # Their texts would quote the value.
        raise FHIRRequestError("The resource cannot be encoded as JSON.") from None


def _write(value: Any) -> str:
    # json.dumps has no way to write a number by its digits.
    if isinstance(value, Mapping):
        members = (
            f"{_write_name(name)}:{_write(item)}" for name, item in value.items()
        )
        return f"{{{','.join(members)}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_write, value))}]"
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    return _encode(value)


def _write_name(name: object) -> str:
    return _encode(name) if isinstance(name, str) else _refuse(name)


def _refuse(value: object) -> NoReturn:
    raise FHIRRequestError(
        f"A value of type {type(value).__name__} cannot be encoded as JSON: "
        "convert it to the FHIR format."
    )


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_refuse).encode
