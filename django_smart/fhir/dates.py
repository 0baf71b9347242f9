"""FHIR's dates: as precise as they were written, and no more."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

__all__ = ["PartialDate", "parse_date"]

# date, dateTime and instant: a year, a month, a day, or a day and a time.
_DATE = re.compile(
    r"(?P<year>\d{4})(?:-(?P<month>\d{2})(?:-(?P<day>\d{2})(?P<time>T.+)?)?)?", re.ASCII
)


@dataclass(frozen=True, slots=True, repr=False)
class PartialDate:
    """
    A date as precise as it was written: a year, a month, a day, or a moment.

    Attributes:
        year, month, day: as written, in the time zone it was written in; ``None`` where
            it says nothing.
        moment: day and time, if there is a time; aware if it was written with its zone.

    ``repr`` does not show the date, which may be a patient's.
    """

    year: int
    month: int | None = None
    day: int | None = None
    moment: datetime.datetime | None = None

    def __str__(self) -> str:
        return self.iso

    @property
    def iso(self) -> str:
        """For ``<time datetime>``: ``2021-03-04``, ``2021-03`` or ``2021``."""
        parts = [f"{self.year:04}"]
        parts += [f"{part:02}" for part in (self.month, self.day) if part is not None]
        return "-".join(parts)

    @property
    def first_day(self) -> datetime.date:
        """The first day it can mean, to sort and reckon by."""
        month = 1 if self.month is None else self.month
        return datetime.date(self.year, month, 1 if self.day is None else self.day)

    @property
    def is_day(self) -> bool:
        """Whether the day is known."""
        return self.day is not None

    def is_before(self, day: datetime.date) -> bool:
        """Whether all that it can mean is before *day*: 2021 is not before 2021-03."""
        return self.iso < day.isoformat()[: len(self.iso)]


def parse_date(value: object) -> PartialDate | None:
    """
    Read a FHIR ``date``, ``dateTime`` or ``instant``; ``None`` if it is none.

    The day is the one written: when a sample was taken does not move with the reader.

    Args:
        value: text, or a ``date`` or ``datetime`` that a library made of it.
    """
    if isinstance(value, datetime.datetime):
        return PartialDate(value.year, value.month, value.day, value)
    if isinstance(value, datetime.date):
        return PartialDate(value.year, value.month, value.day)
    match = _DATE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    year, month, day = (
        None if part is None else int(part)
        for part in match.group("year", "month", "day")
    )
    date = PartialDate(year or 0, month, day, _read_moment(match))
    try:
        _ = date.first_day
    except ValueError:
        return None
    return date


def _read_moment(match: re.Match[str]) -> datetime.datetime | None:
    if not match["time"]:
        return None
    try:
        return datetime.datetime.fromisoformat(match[0])
    except ValueError:
        return None
