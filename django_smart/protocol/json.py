"""JSON as the protocol reads it: strict, bounded, and never a surprise later on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from django_smart.exceptions import SMARTError

__all__ = ["MAX_DEPTH", "parse_json_object"]

#: Objects and lists within each other; more is refused.
MAX_DEPTH = 32

# 2**64 has 20 digits; no number of the protocol is near it.
_MAX_DIGITS = 20


def parse_json_object(
    body: bytes, *, error: Callable[[str], SMARTError], what: str
) -> dict[str, Any]:
    """
    Read *body* as one JSON object.

    Refused beside broken JSON: text that is not UTF-8, another value than an object,
    a member named twice (two readers would see different values), ``NaN`` and
    infinities, integers of more than 20 digits, nesting deeper than ``MAX_DEPTH``, and
    text that no database column takes (NUL, lone surrogates).

    Args:
        body: bytes as received; a byte order mark is skipped.
        error: class of the error to raise, called with the message alone.
        what: name of the document for the message, such as ``"token response"``.

    Raises:
        SMARTError: *error*; the message does not quote the body.

    Spec: RFC 8259, RFC 7493 section 2.
    """
    try:
        value = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=_build_object,
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            parse_int=_parse_int,
        )
    except UnicodeDecodeError:
        raise error(f"The {what} is not UTF-8.") from None
    except json.JSONDecodeError as exc:
        # The exception holds the document, which may hold tokens: it is not chained.
        raise error(
            f"The {what} is not JSON: {exc.msg} at line {exc.lineno}, "
            f"column {exc.colno}."
        ) from None
    except _RefusedError as exc:
        raise error(f"The {what} has {exc}.") from None
    except RecursionError:
        raise error(f"The {what} is nested deeper than {MAX_DEPTH} levels.") from None
    if not isinstance(value, dict):
        raise error(f"The {what} is not a JSON object.")
    fault = _find_fault(value)
    if fault:
        raise error(f"The {what} {fault}.")
    return value


class _RefusedError(Exception):
    """JSON that is well-formed and refused all the same."""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict, unless a name comes twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError("a member that is named twice")
    return result


def _refuse_constant(name: str) -> None:
    raise _RefusedError(f"the number {name}")


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError("a number too large")
    return value


def _parse_int(text: str) -> int:
    # int() itself raises ValueError for thousands of digits.
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise _RefusedError("a number too large")
    return int(text)


def _find_fault(root: dict[str, Any]) -> str:
    """What is wrong with depth or text below *root*; empty if nothing is."""
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.keys())
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str) and not _is_storable(value):
                return "has text with NUL or half a surrogate pair"
        if not below:
            return ""
        level = below
    # What is left may be plain values of the deepest level allowed.
    if any(isinstance(value, dict | list) for value in level):
        return f"is nested deeper than {MAX_DEPTH} levels"
    if any(isinstance(value, str) and not _is_storable(value) for value in level):
        return "has text with NUL or half a surrogate pair"
    return ""


def _is_storable(text: str) -> bool:
    """Whether *text* can be written as UTF-8 into any database."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
