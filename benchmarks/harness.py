"""
Rounds: every way to do a thing is timed a few operations at a time, in turn.

A machine is not equally fast from one second to the next.  Within one round all ways
meet the same weather, so ratios are taken round by round; their median and quartiles
are what is reported.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

__all__ = ["Ratio", "Report", "Variant", "compare", "count", "measure", "slope"]

SEED = 20250601


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """
    One way to do it.

    Attributes:
        run: does it as often as it is told.
        every: it is part of every so-many-th round; for those that take long.
        operations: in a round, if others than those of the other ways.
        prepare: is told as well, before; it is not timed.
    """

    name: str
    run: Callable[[int], Any]
    prepare: Callable[[int], Any] | None = None
    every: int = 1
    operations: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """Quartiles of one way's time over another's, round by round."""

    low: float
    median: float
    high: float


def measure(
    variants: Sequence[Variant], *, rounds: int, operations: int, warm_up: int = 1
) -> dict[str, list[float | None]]:
    """
    Time each of *variants* in each round, in an order that changes.

    Returns:
        Seconds of one operation, a number for each round; ``None`` where a way had no
        part in it.
    """
    chance = random.Random(SEED)
    for variant in variants:
        for _ in range(warm_up):
            _run(variant, variant.operations or operations)
    times: dict[str, list[float | None]] = {each.name: [] for each in variants}
    for number in range(rounds):
        order = list(variants)
        chance.shuffle(order)
        for variant in order:
            if number % variant.every:
                times[variant.name].append(None)
                continue
            repeat = variant.operations or operations
            taken = _run(variant, repeat)
            times[variant.name].append(float(f"{taken / repeat:.5g}"))
    return times


def _run(variant: Variant, repeat: int) -> float:
    if variant.prepare is not None:
        variant.prepare(repeat)
    gc.collect()
    started = perf_counter()
    variant.run(repeat)
    return perf_counter() - started


def compare(
    times: dict[str, list[float | None]], name: str, base: str, *, inverse: bool = False
) -> Ratio:
    """*name*'s time over *base*'s; *inverse* for how many times as fast it is."""
    ratios = [
        one / other
        for one, other in zip(times[name], times[base], strict=True)
        if one is not None and other
    ]
    if inverse:
        ratios = [1 / each for each in ratios]
    if len(ratios) < 2:
        return Ratio(low=ratios[0], median=ratios[0], high=ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(low=low, median=median, high=high)


def count(times: list[float | None]) -> int:
    """Rounds that a way had a part in."""
    return sum(each is not None for each in times)


def slope(points: Sequence[Sequence[float]]) -> float:
    """
    The power of x that y grows with, by least squares over the logarithms.

    0 is flat, 1 is proportional; ten times x is ten to this power times y.
    """
    fitted = statistics.linear_regression(
        [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    )
    return fitted.slope


@dataclass(kw_only=True)
class Report:
    """
    What one question found: JSON all through.

    Attributes:
        is_smoke: only to see that it runs; few rounds, small sizes.
        most_rounds: while something is being worked at.
    """

    question: str
    is_smoke: bool = False
    most_rounds: int = 1000
    tables: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    plots: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def rounds(self, number: int) -> int:
        """*number* rounds, or two to see that it runs."""
        return 2 if self.is_smoke else min(number, self.most_rounds)

    def size(self, number: int, *, smoke: int) -> int:
        """*number* rows or the like; *smoke* to see that it runs."""
        return smoke if self.is_smoke else number

    def add_table(
        self,
        key: str,
        title: str,
        times: dict[str, list[float | None]],
        *,
        base: str,
        operations: int,
        unit: str = "operation",
    ) -> None:
        """Keep the times of a comparison; *unit* is what one of them is for."""
        self.tables.append(
            {
                "key": key,
                "title": title,
                "base": base,
                "operations": operations,
                "unit": unit,
                "times": times,
            }
        )

    def check_ratio(
        self,
        key: str,
        what: str,
        *,
        name: str,
        base: str,
        at_most: float | None = None,
        at_least: float | None = None,
        inverse: bool = False,
    ) -> None:
        """Hold the median ratio of two ways of the last table against a limit."""
        ratio = compare(self.tables[-1]["times"], name, base, inverse=inverse)
        self.check(key, what, ratio.median, at_most=at_most, at_least=at_least)

    def check(
        self,
        key: str,
        what: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        unit: str = "",
    ) -> None:
        """Hold *value* against a limit; with none it is reported without a verdict."""
        self.checks.append(
            {
                "key": key,
                "what": what,
                "value": float(f"{value:.4g}"),
                "at_most": at_most,
                "at_least": at_least,
                "unit": unit,
            }
        )

    def add_plot(
        self, key: str, title: str, *, x: str, y: str, lines: dict[str, list[Any]]
    ) -> None:
        """Keep a plot: pairs of numbers for each line."""
        self.plots.append({"key": key, "title": title, "x": x, "y": y, "lines": lines})

    def as_json(self) -> dict[str, Any]:
        """What is written to the results."""
        return {
            "question": self.question,
            "tables": self.tables,
            "checks": self.checks,
            "plots": self.plots,
            "facts": self.facts,
        }
