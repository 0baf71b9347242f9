"""FHIR's data types in words: ``{% load fhir %}``."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from decimal import Decimal

from django import template
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _

from ..fhir.dates import PartialDate, parse_date
from ..fhir.names import choose_name, iter_mappings, read_text

__all__ = [
    "codeable_concept",
    "fhir_date",
    "fhir_datetime",
    "human_name",
    "period",
    "quantity",
    "register",
    "to_json",
]

register = template.Library()

# The signs of a Quantity's comparator, as people read them.
_COMPARATORS = {"<": "<", "<=": "≤", ">=": "≥", ">": ">", "ad": ""}


@register.filter
def human_name(value: object) -> str:
    """
    The name to use: ``{{ patient.name|human_name }}``.

    Of a list the one in use: official before usual before others, old ones last.

    Args:
        value: a ``HumanName``, a list of them, or a ``Patient`` or another resource
            with names.

    Spec: FHIR R4, "HumanName".
    """
    names = to_json(value)
    if isinstance(names, Mapping):
        names = names["name"] if isinstance(names.get("name"), list) else [names]
    return choose_name(names, today=timezone.localdate())


@register.filter
def codeable_concept(value: object) -> str:
    """
    What is meant: ``{{ condition.code|codeable_concept }}``.

    Its text; without one, what a coding displays, that which a person chose first; and
    without that, a code.

    Args:
        value: a ``CodeableConcept``, a ``Coding``, or a list of them, which is written
            with commas.

    Spec: FHIR R4, "CodeableConcept".
    """
    value = to_json(value)
    if isinstance(value, list):
        return ", ".join(filter(None, map(_tell_concept, value)))
    return _tell_concept(value)


def _tell_concept(value: object) -> str:
    if not isinstance(value, Mapping):
        return ""
    text = read_text(value.get("text"))
    if text:
        return text
    codings = [value, *iter_mappings(value.get("coding"))]
    codings.sort(key=lambda coding: coding.get("userSelected") is not True)
    for member in ("display", "code"):
        for coding in codings:
            if text := read_text(coding.get(member)):
                return text
    return ""


@register.filter
def quantity(value: object) -> str:
    """
    A number with its unit: ``{{ observation.valueQuantity|quantity }}``.

    The number is written as the active language does it, with all its digits.

    Args:
        value: a ``Quantity``, or one of its kinds such as ``Age``.

    Spec: FHIR R4, "Quantity".
    """
    value = to_json(value)
    if not isinstance(value, Mapping):
        return ""
    number = _read_number(value.get("value"))
    if number is None:
        return ""
    comparator = _COMPARATORS.get(read_text(value.get("comparator")), "")
    unit = read_text(value.get("unit")) or read_text(value.get("code"))
    exponent = number.as_tuple().exponent
    text = number_format(number, decimal_pos=max(0, -int(exponent)))
    return " ".join(filter(None, (comparator, text, unit)))


def _read_number(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    number = Decimal(str(value))
    # Of 1e400 in JSON Python makes an infinity.
    return number if number.is_finite() else None


@register.filter
def fhir_date(value: object) -> str:
    """
    A date, as precise as it was written: ``{{ patient.birthDate|fhir_date }}``.

    ``March 4, 2021``, ``March 2021`` or ``2021``, as the active language writes them
    (Django's ``DATE_FORMAT`` and ``YEAR_MONTH_FORMAT``); never with a time.

    Args:
        value: a ``date``, ``dateTime`` or ``instant``.
    """
    date = value if isinstance(value, PartialDate) else parse_date(value)
    if date is None:
        return ""
    if date.day is not None:
        return date_format(date.first_day, "DATE_FORMAT")
    if date.month is not None:
        return date_format(date.first_day, "YEAR_MONTH_FORMAT")
    return str(date.year)


@register.filter
def fhir_datetime(value: object) -> str:
    """
    :func:`fhir_date` with the time, if there is one: ``{{ when|fhir_datetime }}``.

    The time is the one written.  Where that zone differs from the active one, it is
    told along: ``March 4, 2021, 2:30 p.m. (UTC-05:00)``.
    """
    date = value if isinstance(value, PartialDate) else parse_date(value)
    if date is None:
        return ""
    day = fhir_date(date)
    return f"{day}, {_tell_time(date.moment)}" if date.moment else day


def _tell_time(moment: datetime.datetime) -> str:
    time = date_format(moment, "TIME_FORMAT")
    offset = moment.utcoffset()
    if offset is None or offset == _get_local_offset(moment):
        return time
    return f"{time} ({moment.tzinfo})"


def _get_local_offset(moment: datetime.datetime) -> datetime.timedelta | None:
    try:
        return timezone.localtime(moment).utcoffset()
    except (OverflowError, ValueError):
        # At the end of time, or before its beginning: "for ever" is written so.
        return None


@register.filter
def period(value: object) -> str:
    """
    From when until when: ``{{ encounter.period|period }}``.

    Args:
        value: a ``Period``; without a start or an end it says "since" or "until".

    Spec: FHIR R4, "Period".
    """
    value = to_json(value)
    if not isinstance(value, Mapping):
        return ""
    start, end = parse_date(value.get("start")), parse_date(value.get("end"))
    if start is None or end is None:
        if start is not None:
            return _("since %(date)s") % {"date": fhir_datetime(start)}
        return _("until %(date)s") % {"date": fhir_datetime(end)} if end else ""
    first, last = fhir_datetime(start), fhir_datetime(end)
    if first == last:
        return first
    if start.moment and end.moment and start.iso == end.iso:
        last = _tell_time(end.moment)
    return f"{first} – {last}"


def to_json(value: object) -> object:
    """Make JSON again of what a library such as ``fhir.resources`` made of it."""
    if isinstance(value, list):
        return [to_json(item) for item in value]
    dump = getattr(value, "model_dump", None)
    return dump(mode="json", by_alias=True) if callable(dump) else value
