"""
FHIR data types in words, beside those of ``{% load fhir %}``: telephones.

Every function takes JSON as it came from a server and gives text that is safe to show,
an empty one if there is nothing to say; odd values are left out, never an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django.utils.translation import gettext as _

__all__ = ["objects", "telecom"]


def telecom(points: object) -> list[tuple[str, str]]:
    """Return ``(kind, value)`` of telephone numbers and email addresses in use."""
    kinds = {"phone": _("Telephone"), "email": _("Email"), "sms": _("Text message")}
    found = []
    for point in objects(points):
        kind = kinds.get(_text(point.get("system")))
        value = _text(point.get("value"))
        if not kind or not value or point.get("use") == "old":
            continue
        use = {"home": _("home"), "work": _("work"), "mobile": _("mobile")}.get(
            _text(point.get("use"))
        )
        found.append((f"{kind}, {use}" if use else kind, value))
    return found


def objects(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a JSON array, and nothing of anything else."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))


def _text(value: object) -> str:
    """Return a JSON string without surrounding space, an empty one for other values."""
    return value.strip() if isinstance(value, str) else ""
