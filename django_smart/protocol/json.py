"""Strict and bounded JSON parsing for the protocol."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from django_smart.exceptions import SMARTError

__all__ = ["MAX_DEPTH", "parse_json", "parse_json_object"]

#: Maximum nesting depth of objects and lists.
MAX_DEPTH = 32

# 2**64 has 20 digits; no number in the protocol is that large.
_MAX_DIGITS = 20
# What cannot be stored as UTF-8 in every database.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def parse_json_object(
    body: bytes,
    *,
    error: Callable[[str], SMARTError],
    what: str,
    max_depth: int = MAX_DEPTH,
    replace_unstorable: bool = False,
) -> dict[str, Any]:
    """
    Read *body* as one JSON object, like :func:`parse_json`.

    Raises:
        SMARTError: *error*, also for a value other than an object.
    """
    value = parse_json(
        body,
        error=error,
        what=what,
        max_depth=max_depth,
        replace_unstorable=replace_unstorable,
    )
    if not isinstance(value, dict):
        raise error(f"The {what} is not a JSON object.")
    return value


def parse_json(
    body: bytes,
    *,
    error: Callable[[str], SMARTError],
    what: str,
    max_depth: int = MAX_DEPTH,
    replace_unstorable: bool = False,
) -> Any:
    """
    Read *body* as one JSON value.

    Besides invalid JSON, refuses text that is not UTF-8, duplicate members (two parsers
    could see different values), ``NaN`` and infinities, integers of more than 20
    digits, nesting deeper than *max_depth*, and text that no database column accepts
    (NUL, lone surrogates).

    Args:
        body: bytes as received; a byte order mark is skipped.
        error: class of the error to raise, called only with the message.
        what: name of the document for the message, such as ``"token response"``.
        replace_unstorable: replace characters that no database column accepts with
            U+FFFD, instead of refusing the document.

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
        if replace_unstorable:
            value = _make_storable(value)
    except UnicodeDecodeError:
        raise error(f"The {what} is not UTF-8.") from None
    except json.JSONDecodeError as exc:
        # The exception contains the document, which may contain tokens: do not chain
        # it.
        raise error(
            f"The {what} is not valid JSON: {exc.msg} at line {exc.lineno}, "
            f"column {exc.colno}."
        ) from None
    except _RefusedError as exc:
        raise error(f"The {what} contains {exc}.") from None
    except RecursionError:
        raise error(f"The {what} is nested deeper than {max_depth} levels.") from None
    fault = _find_fault(value, max_depth)
    if fault:
        raise error(f"The {what} {fault}.")
    return value


class _RefusedError(Exception):
    """Well-formed JSON that is refused anyway."""


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict; refuse duplicate names."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _RefusedError("a duplicate member")
    return result


def _refuse_constant(name: str) -> None:
    raise _RefusedError(f"the number {name}")


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError("a number that is too large")
    return value


def _parse_int(text: str) -> int:
    # int() itself raises ValueError for thousands of digits.
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise _RefusedError("a number that is too large")
    return int(text)


def _find_fault(root: Any, max_depth: int) -> str:
    """Return what is wrong with depth or text below *root*; empty if nothing."""
    depth, level = 0, [root]
    while level:
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                if _UNSTORABLE.search(value):
                    return "contains text with NUL or an unpaired surrogate"
            elif isinstance(value, dict | list):
                if depth == max_depth:
                    return f"is nested deeper than {max_depth} levels"
                below.extend(value)
                if isinstance(value, dict):
                    below.extend(value.values())
        depth, level = depth + 1, below
    return ""


def _make_storable(value: Any) -> Any:
    """Return *value* with U+FFFD for each character that cannot be stored."""
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case list():
            return [_make_storable(each) for each in value]
        case dict():
            return {_make_storable(k): _make_storable(v) for k, v in value.items()}
    return value
