"""FHIR data types as text: ``{% load fhir %}``."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from django import template
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, pgettext

from ..fhir.dates import PartialDate, parse_date
from ..fhir.names import get_name, iter_mappings, read_text

__all__ = [
    "address",
    "age",
    "codeable_concept",
    "contact_point",
    "fhir_date",
    "fhir_datetime",
    "fhir_status",
    "fhir_value",
    "format_age",
    "human_name",
    "period",
    "quantity",
    "read_death",
    "register",
]

register = template.Library()

# Display forms of a Quantity's comparator.
_COMPARATORS = {"<=": "≤", ">=": "≥"}
# A number of a few characters, written without its exponent, can fill the memory.
_MAX_EXPONENT = 50


@register.filter
def human_name(value: object) -> str:
    """
    Return the name to show: ``{{ patient.name|human_name }}``.

    From a list, it chooses a current name: official names first, then usual ones.

    Args:
        value: a ``HumanName``, a list of them, or a ``Patient`` or another resource
            with names.

    Spec: FHIR R4, "HumanName".
    """
    return get_name({"name": _list(value, "name")}, today=timezone.localdate())


@register.filter
def codeable_concept(value: object) -> str:
    """
    Return the text of a concept: ``{{ condition.code|codeable_concept }}``.

    This is ``text``, or else the ``display`` of a coding (preferring one that a person
    selected), or else a code.

    Args:
        value: a ``CodeableConcept``, a ``Coding``, or a list of them, which are joined
            with commas.

    Spec: FHIR R4, "CodeableConcept".
    """
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
    Return a number with its unit: ``{{ observation.valueQuantity|quantity }}``.

    The number has the format of the active language, with all its digits.

    Args:
        value: a ``Quantity``, or a similar type such as ``Age`` and ``Money``.  Without
            a number, the reason for its absence is shown, if present.

    Spec: FHIR R4, "Quantity".
    """
    if not isinstance(value, Mapping):
        return ""
    text = _tell_number(value.get("value")) or read_text(value.get("value"))
    if not text:
        return _tell_absence(value.get("_value")) or _tell_absence(value)
    comparator = read_text(value.get("comparator"))
    units = (read_text(value.get(name)) for name in ("unit", "code", "currency"))
    unit = next(filter(None, units), "")
    comparator = _COMPARATORS.get(comparator, comparator)
    return " ".join(filter(None, (comparator, text, unit)))


def _tell_number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return ""
    try:
        number = Decimal(str(value))
    except InvalidOperation:  # an exponent that no Decimal has
        return str(value)
    if not number.is_finite():
        return ""
    exponent = int(number.as_tuple().exponent)
    if abs(exponent) > _MAX_EXPONENT:
        return str(value)
    return number_format(number, decimal_pos=max(0, -exponent))


@register.filter
def fhir_date(value: object) -> str:
    """
    Return a date with its precision: ``{{ patient.birthDate|fhir_date }}``.

    ``March 4, 2021``, ``March 2021`` or ``2021``, in the format of the active language
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
    Return :func:`fhir_date` with the time, if any: ``{{ when|fhir_datetime }}``.

    The time is shown as written.  If its time zone differs from the active one, the
    zone is added: ``March 4, 2021, 2:30 p.m. (UTC-05:00)``.
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
        # The end or beginning of time, which means "forever".
        return None


@register.filter
def period(value: object) -> str:
    """
    Return the start and end of a period: ``{{ encounter.period|period }}``.

    Args:
        value: a ``Period``; with only one of them, the text is "since" or "until".

    Spec: FHIR R4, "Period".
    """
    if not isinstance(value, Mapping):
        return ""
    start, end = parse_date(value.get("start")), parse_date(value.get("end"))
    if start is None or end is None:
        return _tell_half(start, end)
    first, last = fhir_datetime(start), fhir_datetime(end)
    if first == last:
        return first
    if start.moment and end.moment and start.iso == end.iso:
        last = _tell_time(end.moment)
    return f"{first} – {last}"


def _tell_half(start: PartialDate | None, end: PartialDate | None) -> str:
    date = start or end
    if date is None:
        return ""
    # Other languages have an article before a day, but not before a month or year.
    if date.is_day:
        text = _("since %(date)s") if start else _("until %(date)s")
    elif start:
        text = pgettext("month or year", "since %(date)s")
    else:
        text = pgettext("month or year", "until %(date)s")
    return text % {"date": fhir_datetime(date)}


_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
# Code systems of FHIR itself; those before R4 were below the second.
_FHIR_SYSTEMS = ("http://terminology.hl7.org/CodeSystem/", "http://hl7.org/fhir/")
_NEVER_HIDDEN = frozenset({"entered-in-error", "refuted"})
# "final" is the same in all of them.
_STATUSES = {
    "aborted": gettext_lazy("aborted"),
    "accepted": gettext_lazy("accepted"),
    "active": gettext_lazy("active"),
    "amended": gettext_lazy("amended"),
    "appended": gettext_lazy("appended"),
    "arrived": gettext_lazy("arrived"),
    "booked": gettext_lazy("booked"),
    "cancelled": gettext_lazy("cancelled"),
    "completed": gettext_lazy("completed"),
    "confirmed": gettext_lazy("confirmed"),
    "corrected": gettext_lazy("corrected"),
    "declined": gettext_lazy("declined"),
    "draft": gettext_lazy("draft"),
    "ended": gettext_lazy("ended"),
    "entered-in-error": gettext_lazy("entered in error"),
    "finished": gettext_lazy("finished"),
    "fulfilled": gettext_lazy("fulfilled"),
    "in-progress": gettext_lazy("in progress"),
    "inactive": gettext_lazy("inactive"),
    "intended": gettext_lazy("intended"),
    "noshow": gettext_lazy("no show"),
    "not-done": gettext_lazy("not done"),
    "not-taken": gettext_lazy("not taken"),
    "on-hold": gettext_lazy("on hold"),
    "partial": gettext_lazy("partial"),
    "pending": gettext_lazy("pending"),
    "planned": gettext_lazy("planned"),
    "preliminary": gettext_lazy("preliminary"),
    "proposed": gettext_lazy("proposed"),
    "provisional": gettext_lazy("provisional"),
    "received": gettext_lazy("received"),
    "recurrence": gettext_lazy("recurrence"),
    "refuted": gettext_lazy("refuted"),
    "registered": gettext_lazy("registered"),
    "rejected": gettext_lazy("rejected"),
    "relapse": gettext_lazy("relapse"),
    "remission": gettext_lazy("remission"),
    "requested": gettext_lazy("requested"),
    "resolved": gettext_lazy("resolved"),
    "revoked": gettext_lazy("revoked"),
    "stopped": gettext_lazy("stopped"),
    "superseded": gettext_lazy("superseded"),
    "suspended": gettext_lazy("suspended"),
    "unconfirmed": gettext_lazy("unconfirmed"),
    "unknown": gettext_lazy("unknown"),
}


@register.filter
def fhir_value(value: object) -> str:
    """
    Return a result with everything a reader must know to interpret it.

    ``{{ observation|fhir_value }}`` is ``< 7.0 %``, ``Systolic: 120 mmHg; Diastolic:
    80 mmHg``, ``unknown`` (why a value is absent) or ``7.1 % (entered in error)``:
    every status except ``final`` is shown, as by :func:`fhir_status`.

    Args:
        value: an ``Observation``, a component or anything else with a ``value[x]``, or
            the value itself.
    """
    if not isinstance(value, Mapping):
        return _tell_value("", value)
    texts = list(filter(None, [_find_value(value) or _tell_absence(value)]))
    for component in iter_mappings(value.get("component")):
        name = codeable_concept(component.get("code"))
        text = fhir_value(component)
        texts.append(f"{name}: {text}" if name else text)
    if not texts and "resourceType" not in value:
        return _tell_value("", value)
    notes = [note for note in _iter_statuses(value) if note != "final"]
    if notes:
        texts = [f"{'; '.join(texts)} ({', '.join(notes)})".strip()]
    return "; ".join(texts)


@register.filter
def fhir_status(value: object) -> str:
    """
    Return the status of a resource: ``{{ condition|fhir_status }}``.

    This includes its status, clinical status and verification status, separated by
    commas; whether an order is *not* to do something; and whether it has a modifier
    extension, which changes its meaning in a way that these filters cannot know.

    Args:
        value: any resource, or a part of one.
    """
    return ", ".join(_iter_statuses(value)) if isinstance(value, Mapping) else ""


def _iter_statuses(value: Mapping[str, Any]) -> Iterator[str]:
    if status := read_text(value.get("status")):
        yield str(_STATUSES.get(status, status.replace("-", " ")))
    for name in ("clinicalStatus", "verificationStatus"):
        concept = value.get(name)
        if isinstance(concept, str):  # as in DSTU2
            concept = {"code": concept}
        codings = [concept, *iter_mappings(_get(concept, "coding"))]
        code = _find_status(codings)
        if code in _STATUSES:
            yield str(_STATUSES[code])
        elif text := code.replace("-", " ") or codeable_concept(concept):
            yield text
    if value.get("doNotPerform") is True:
        yield _("do not perform")
    if value.get("modifierExtension"):
        yield _("meaning modified by an extension not shown here")


def _find_status(codings: list[object]) -> str:
    """
    Return a status code: one of FHIR's own before a local one.

    Entered in error and refuted come first, whichever coding or text says so.
    """
    for coding in codings:
        for name in ("code", "display", "text"):
            code = read_text(_get(coding, name)).lower().replace(" ", "-")
            if code in _NEVER_HIDDEN:
                return code
    codings.sort(key=lambda coding: not _is_of_fhir(coding))
    coding = next((each for each in codings if read_text(_get(each, "code"))), None)
    code = read_text(_get(coding, "code"))
    return code if _is_of_fhir(coding) or code in _STATUSES else ""


def _is_of_fhir(coding: object) -> bool:
    return read_text(_get(coding, "system")).startswith(_FHIR_SYSTEMS)


def _get(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else None


def _find_value(value: Mapping[str, Any]) -> str:
    """Return ``value[x]``, or why it is absent."""
    for name in value:
        if re.match("_?value[A-Z]", name):
            bare = name.removeprefix("_")
            text = _tell_value(bare.removeprefix("value"), value.get(bare))
            if text := text or _tell_absence(value.get(f"_{bare}")):
                return text
    return ""


def _tell_absence(value: object) -> str:
    """Return why something is absent, from an element or an extension."""
    if reason := codeable_concept(_get(value, "dataAbsentReason")):
        return reason
    for extension in iter_mappings(_get(value, "extension")):
        if extension.get("url") == _ABSENT:
            return read_text(extension.get("valueCode")).replace("-", " ")
    return ""


def _tell_value(kind: str, value: object) -> str:
    """Return a value of type *kind*, or of the type that it looks like."""
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, str):
        is_date = kind in {"Date", "DateTime", "Instant"}
        return (fhir_datetime(value) if is_date else "") or read_text(value)
    if not isinstance(value, Mapping):
        return _tell_number(value)
    if kind in _TELLERS:
        text = _TELLERS[kind](value)
    else:
        tellers = (quantity, _tell_range, _tell_ratio, codeable_concept, period)
        text = next(filter(None, (tell(value) for tell in tellers)), "")
    if text:
        return text
    names = ("text", "display", "title", "reference", "value", "contentType")
    texts = (read_text(value.get(name)) for name in names)
    return (
        next(filter(None, texts), "")
        or _tell_absence(value)
        # There is a value: never show nothing.
        or (_("a value of type %(type)s") % {"type": kind} if kind and value else "")
    )


def _tell_range(value: Mapping[str, Any]) -> str:
    low, high = quantity(value.get("low")), quantity(value.get("high"))
    if low and high:
        return f"{low} – {high}"
    return f"≥ {low}" if low else high and f"≤ {high}"


def _tell_ratio(value: Mapping[str, Any]) -> str:
    parts = [quantity(value.get(name)) for name in ("numerator", "denominator")]
    # A titer has no units: 1:128.
    sign = ":" if all(part.replace(".", "").isdigit() for part in parts) else " / "
    return sign.join(filter(None, parts))


@register.filter
def age(value: object) -> str:
    """
    Return an age: ``{{ patient|age }}``, ``42 years`` or, under two, ``5 months``.

    Args:
        value: a ``Patient``, whose age stops at death, or a date of birth.
    """
    died: bool | PartialDate = False
    if isinstance(value, Mapping):
        died = read_death(value)
        value = value.get("birthDate")
    return format_age(parse_date(value), died or parse_date(timezone.localdate()))


def read_death(patient: Mapping[str, Any]) -> bool | PartialDate:
    """Return when *patient* died; ``True`` if that is unknown."""
    # Also if the date cannot be read, or an extension only says why it is unknown.
    has_died = any(
        value.strip() if isinstance(value, str) else value
        for value in map(patient.get, ("deceasedDateTime", "_deceasedDateTime"))
    )
    date = parse_date(patient.get("deceasedDateTime"))
    return date or has_died or patient.get("deceasedBoolean") is True


def format_age(birth_date: PartialDate | None, until: PartialDate | bool | None) -> str:
    """Return an age, with "about" if one of the days is unknown."""
    # Without the date of death, every age would be wrong.
    if birth_date is None or not isinstance(until, PartialDate):
        return ""
    born, today = birth_date.first_day, until.first_day
    months = (today.year - born.year) * 12 + today.month - born.month
    if today.day < born.day:
        months -= 1
    if months < 0:
        return ""
    years = months // 12
    if not (birth_date.is_day and until.is_day):
        text = ngettext("about %(n)s year", "about %(n)s years", years)
        return text % {"n": years}
    if months < 24:
        return ngettext("%(n)s month", "%(n)s months", months) % {"n": months}
    return ngettext("%(n)s year", "%(n)s years", years) % {"n": years}


# Countries with the postal code after the city.
_CODE_LAST = re.compile(
    "us|usa|united states.*|ca|can|canada|au|aus|australia|gb|gbr|uk|united kingdom"
    "|ie|irl|ireland|nz|nzl|new zealand|in|ind|india",
    re.IGNORECASE,
)
_ZIP_CODE = re.compile(r"\d{5}(-\d{4})?", re.ASCII)


@register.filter
def address(value: object) -> str:
    """
    Return an address on one line: ``{{ patient|address }}``.

    From a list, it chooses the first current one.  City, state and postal code have the
    country's order.  Without a country, an address with a ZIP code and a state is taken
    as one in the United States: ``49 Meadow St, Mounds, OK 74047``.

    Args:
        value: an ``Address``, a list of them, or a resource with addresses.
    """
    return next(filter(None, map(_tell_address, _rank(value, "address"))), "")


def _tell_address(value: Mapping[str, Any]) -> str:
    names = ("city", "state", "postalCode", "country")
    city, state, code, country = (read_text(value.get(name)) for name in names)
    lines = value.get("line")
    parts = list(map(read_text, lines if isinstance(lines, list) else ()))
    is_zip_code = not country and state and _ZIP_CODE.fullmatch(code)
    if is_zip_code or _CODE_LAST.fullmatch(country):
        parts += [city, f"{state} {code}".strip(), country]
    else:
        parts += [f"{code} {city}".strip(), state, country]
    return ", ".join(filter(None, parts)) or read_text(value.get("text"))


@register.filter
def contact_point(value: object, system: str = "") -> str:
    """
    Return a phone number or e-mail address: ``{{ patient|contact_point:"phone" }}``.

    From a list, it chooses the first current one, by ``rank``.

    Args:
        value: a ``ContactPoint``, a list of them, or a resource with contact points.
        system: ``phone``, ``email``, ``sms``, …; empty for any.
    """
    points = [
        point
        for point in _rank(value, "telecom")
        if not system or point.get("system") == system
    ]
    points.sort(key=_get_rank)
    return next(filter(None, (read_text(each.get("value")) for each in points)), "")


def _get_rank(point: Mapping[str, Any]) -> int:
    rank = point.get("rank")
    is_over = 1_000 if _is_over(point) else 0
    return is_over + (rank if isinstance(rank, int) and 0 < rank < 1_000 else 999)


def _rank(value: object, name: str) -> list[Mapping[str, Any]]:
    """Return the elements *name* of a resource or of a list; old ones last."""
    return sorted(iter_mappings(_list(value, name)), key=_is_over)


def _list(value: object, name: str) -> list[Any]:
    held = value.get(name, value) if isinstance(value, Mapping) else value
    return held if isinstance(held, list) else [held]


def _is_over(value: Mapping[str, Any]) -> bool:
    end = parse_date(_get(value.get("period"), "end"))
    is_past = end is not None and end.is_before(timezone.localdate())
    return is_past or value.get("use") == "old"


_TELLERS: dict[str, Callable[[Any], str]] = {
    "Address": address,
    "Attachment": lambda value: read_text(value.get("title")),
    "CodeableConcept": codeable_concept,
    "CodeableReference": lambda value: (
        codeable_concept(value.get("concept"))
        or _tell_value("Reference", value.get("reference"))
    ),
    "Coding": codeable_concept,
    "ContactPoint": contact_point,
    "HumanName": human_name,
    "Period": period,
    "Quantity": quantity,
    "Range": _tell_range,
    "Ratio": _tell_ratio,
    "Reference": lambda value: read_text(value.get("display")),
}
