"""JSON whose numbers keep their digits, as FHIR requires of servers."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

__all__ = ["dump", "load"]

_MARK = secrets.token_hex(8)


class _Digits(float):
    def __init__(self, text: str) -> None:
        self.text = text


def load(body: str | bytes) -> Any:
    """Read JSON."""
    return json.loads(body, parse_float=_Digits)


def dump(value: Any, **options: Any) -> str:
    """Write JSON with the digits as read."""
    text = json.dumps(_mark(value), **options)
    return re.sub(f'"{_MARK}([^"]*)"', r"\1", text)


def _mark(value: Any) -> Any:
    """Turn digits into text, which the encoder does not shorten."""
    if isinstance(value, dict):
        return {name: _mark(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark(item) for item in value]
    return f"{_MARK}{value.text}" if isinstance(value, _Digits) else value
