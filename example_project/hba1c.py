"""
HbA1c results: from FHIR Observations to what the chart and the table show.

The request is the one of the example in SMART App Launch 2.2: LOINC 4548-4, newest
first, ten to a page.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.utils.formats import number_format
from django.utils.translation import gettext as _

from django_smart.fhir.dates import PartialDate, parse_date
from django_smart.templatetags.fhir import (
    codeable_concept,
    fhir_date,
    fhir_status,
    fhir_value,
)
from example_project.fhirtext import objects

__all__ = ["LOINC_CODE", "Result", "Series", "build_series", "search_parameters"]

LOINC_CODE = "4548-4"  # Hemoglobin A1c/Hemoglobin.total in Blood
# Observations that were wrong or never made are no results.
_NOT_RESULTS = ("entered-in-error", "cancelled", "registered", "unknown")
# No percentage and no concentration comes near; a larger number is a fault.
_LARGEST = 1_000_000
_COMPARATORS = ("<", "<=", ">=", ">")
_EPOCH = datetime.date(1970, 1, 1)


def search_parameters(patient_id: str) -> list[tuple[str, str]]:
    """Return the parameters of the search, in the order of the example."""
    return [
        ("code", LOINC_CODE),
        ("_sort:desc", "date"),
        ("_count", "10"),
        ("patient", patient_id),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """
    One measurement.

    Attributes:
        date: when it was taken, as precise as it was written; ``None`` if nowhere said.
        value: the number, in *unit*; ``None`` if there is none.
        comparator: ``<``, ``<=``, ``>=`` or ``>`` before the value, mostly empty.
        note: why there is no value, or that the result is not final.
        text: the value as it is shown, with its unit.
    """

    date: PartialDate | None
    value: float | None
    unit: str = ""
    comparator: str = ""
    note: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """
    Results, newest first, and what the chart draws of them.

    Attributes:
        results: all, also those without a number or with another unit.
        unit: of the newest number; the chart shows results in this unit.
        low, high: reference range of the newest result that names one in this unit.
        left_out: number of results that are not drawn.
        withdrawn: number of Observations that were entered in error or not made.
        is_complete: ``False`` if there were more results than were loaded.
        is_withheld: whether the EHR says that it does not show all results.
    """

    results: list[Result] = field(default_factory=list)
    unit: str = ""
    low: float | None = None
    high: float | None = None
    withdrawn: int = 0
    is_complete: bool = True
    is_withheld: bool = False

    @property
    def drawn(self) -> list[Result]:
        """Results with a date and a number in the unit of the chart, oldest first."""
        return [
            result
            for result in reversed(self.results)
            if result.date and result.value is not None and result.unit == self.unit
        ]

    @property
    def left_out(self) -> int:
        """Return how many results the chart does not show."""
        return len(self.results) - len(self.drawn)

    @property
    def latest(self) -> Result | None:
        """The newest result that is drawn."""
        return self.drawn[-1] if self.drawn else None

    @property
    def lowest(self) -> Result | None:
        """The lowest result that is drawn."""
        return min(self.drawn, key=_number) if self.drawn else None

    @property
    def highest(self) -> Result | None:
        """The highest result that is drawn."""
        return max(self.drawn, key=_number) if self.drawn else None

    @property
    def change(self) -> str:
        """The step from the result before to the newest one, in words."""
        if len(self.drawn) < 2:
            return ""
        before, latest = self.drawn[-2:]
        step = round(_number(latest) - _number(before), 6)
        if step == 0:
            return _("unchanged")
        direction = _("up") if step > 0 else _("down")
        amount = _format(abs(step), _decimals([abs(step)]))
        # A difference of percentages is one of points.
        unit = _("points") if self.unit == "%" else self.unit
        return f"{direction} {amount} {unit}".strip()

    @property
    def range_text(self) -> str:
        """The reference range in words; empty if the EHR names none."""
        limits = [value for value in (self.low, self.high) if value is not None]
        if not limits:
            return ""
        decimals = _decimals(limits)
        texts = [_format(value, decimals) for value in limits]
        if self.low is None:
            text = _("up to %(high)s") % {"high": texts[0]}
        elif self.high is None:
            text = _("from %(low)s") % {"low": texts[0]}
        else:
            text = _("%(low)s to %(high)s") % {"low": texts[0], "high": texts[1]}
        return f"{text} {self.unit}".strip()

    def chart_data(self) -> dict[str, Any]:
        """Return what the page's script draws: JSON, times in ms since the epoch."""
        return {
            "unit": self.unit,
            "low": self.low,
            "high": self.high,
            "points": [
                {
                    "x": (result.date.first_day - _EPOCH).days * 86_400_000,
                    "y": result.value,
                    "date": fhir_date(result.date),
                    "text": result.text,
                }
                for result in self.drawn
                if result.date is not None
            ],
        }


def build_series(
    observations: Iterable[Mapping[str, Any]],
    *,
    is_complete: bool = True,
    is_withheld: bool = False,
) -> Series:
    """
    Read Observations into a ``Series``.

    Args:
        observations: FHIR resources in any order; other types are passed over.
        is_complete: whether these are all there are.
        is_withheld: whether the EHR says that it does not show all results.
    """
    resources = [o for o in observations if o.get("resourceType") == "Observation"]
    valid = [o for o in resources if o.get("status") not in _NOT_RESULTS]
    pairs = [(_result(resource), resource) for resource in valid]
    # Stable: the server's order counts where days are equal. Undated ones come last.
    pairs.sort(key=lambda pair: _day(pair[0]), reverse=True)
    results = [result for result, _ in pairs]
    unit = next((r.unit for r in results if r.value is not None), "")
    decimals = _decimals(r.value for r in results if r.value is not None)
    low, high = next(filter(any, (_range(o, unit) for _, o in pairs)), (None, None))
    return Series(
        results=[_with_text(result, decimals) for result in results],
        unit=unit,
        low=low,
        high=high,
        withdrawn=len(resources) - len(valid),
        is_complete=is_complete,
        is_withheld=is_withheld,
    )


def _result(resource: Mapping[str, Any]) -> Result:
    value, unit, comparator = _quantity(resource.get("valueQuantity"))
    note = fhir_status(resource).removeprefix("final").removeprefix(", ")
    text = ""
    if value is None:
        # Such as a string; status, reason and extensions are in the note.
        notes = {"status": "final", "dataAbsentReason": None, "modifierExtension": None}
        text = fhir_value({**resource, **notes})
        reason = codeable_concept(resource.get("dataAbsentReason"))
        if not reason and not text:
            reason = _("no value given")
        note = ", ".join(filter(None, (reason, note)))
    return Result(
        date=_date(resource),
        value=value,
        unit=unit,
        comparator=comparator,
        note=note,
        text=text,
    )


def _date(resource: Mapping[str, Any]) -> PartialDate | None:
    """Return when the sample was taken, or else when the result was given out."""
    period = resource.get("effectivePeriod")
    start = period.get("start") if isinstance(period, Mapping) else None
    for value in (
        resource.get("effectiveDateTime"),
        resource.get("effectiveInstant"),
        start,
        resource.get("issued"),
    ):
        date = parse_date(value)
        if date is not None:
            return date
    return None


def _quantity(quantity: object) -> tuple[float | None, str, str]:
    """Return number, unit and comparator of a ``Quantity``."""
    if not isinstance(quantity, Mapping):
        return None, "", ""
    value = quantity.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, "", ""
    if not -_LARGEST < value < _LARGEST:  # NaN is not, either
        return None, "", ""
    unit = quantity.get("unit") or quantity.get("code")
    comparator = quantity.get("comparator")
    return (
        float(value),
        unit if isinstance(unit, str) else "",
        comparator if comparator in _COMPARATORS else "",
    )


def _range(resource: Mapping[str, Any], unit: str) -> tuple[float | None, float | None]:
    """Return the limits of the first reference range that is in *unit*."""
    for item in objects(resource.get("referenceRange")):
        limits = [_quantity(item.get(key))[:2] for key in ("low", "high")]
        if all(value is None or limit_unit == unit for value, limit_unit in limits):
            return limits[0][0], limits[1][0]
    return None, None


def _with_text(result: Result, decimals: int) -> Result:
    """Give the result the text it is shown as, all with the same decimals."""
    if result.value is None:
        return result
    number = _format(result.value, decimals)
    # A narrow space, and no line break, between the number and its unit.
    text = f"{result.comparator}{number}\N{NARROW NO-BREAK SPACE}{result.unit}"
    return Result(
        date=result.date,
        value=result.value,
        unit=result.unit,
        comparator=result.comparator,
        note=result.note,
        text=text.strip(),
    )


def _day(result: Result) -> datetime.date:
    return result.date.first_day if result.date else datetime.date.min


def _number(result: Result) -> float:
    return result.value if result.value is not None else 0.0


def _decimals(values: Iterable[float]) -> int:
    """Return how many decimals, at most three, show every one of *values*."""
    texts = [f"{value:.3f}".rstrip("0") for value in values]
    return max((len(text.partition(".")[2]) for text in texts), default=0)


def _format(value: float, decimals: int) -> str:
    return number_format(round(value, decimals), decimal_pos=decimals)
