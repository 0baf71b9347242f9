"""
FHIR data types in words, beside those of ``{% load fhir %}``: addresses, telephones.

Every function takes JSON as it came from a server and gives text that is safe to show,
an empty one if there is nothing to say; odd values are left out, never an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["address_lines", "objects", "telecom"]


def address_lines(addresses: object) -> list[str]:
    """Return the lines of the first address that is not old."""
    candidates = list(objects(addresses))
    candidates.sort(key=lambda address: address.get("use") == "old")
    for address in candidates:
        town = " ".join(
            filter(None, (_text(address.get(key)) for key in ("postalCode", "city")))
        )
        lines = [
            *_texts(address.get("line")),
            town,
            _text(address.get("state")),
            _text(address.get("country")),
        ]
        lines = [line for line in lines if line]
        if lines:
            return lines
        if _text(address.get("text")):
            return _text(address["text"]).splitlines()
    return []


def telecom(points: object) -> list[tuple[str, str]]:
    """Return ``(kind, value)`` of telephone numbers and e-mail addresses in use."""
    kinds = {"phone": "Telephone", "email": "E-mail", "sms": "Text message"}
    found = []
    for point in objects(points):
        kind = kinds.get(_text(point.get("system")))
        value = _text(point.get("value"))
        if not kind or not value or point.get("use") == "old":
            continue
        use = {"home": "home", "work": "work", "mobile": "mobile"}.get(
            _text(point.get("use"))
        )
        found.append((f"{kind}, {use}" if use else kind, value))
    return found


def objects(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSON array, and nothing of anything else."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))


def _texts(value: object) -> list[str]:
    """Return the texts of a JSON array that are not empty."""
    return list(filter(None, map(_text, value))) if isinstance(value, list) else []


def _text(value: object) -> str:
    """Return a JSON string without surrounding space, an empty one for other values."""
    return value.strip() if isinstance(value, str) else ""
