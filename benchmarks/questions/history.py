"""What grows with the launches that a site keeps: bytes, pages, the purge, the admin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.history import History, histories
from benchmarks.questions.middleware import Page
from benchmarks.stub import running_stub

__all__ = ["TEXT", "measure_history", "run"]

TEXT = """
A site keeps launches and grants for 30 days after their end: each launch has a grant, and each user a hundred launches.
A hundred launches are open, with tokens of 1,000 characters.
Each size has a PostgreSQL database of its own, and all sizes are measured in each round.
"""

_CHUNK = 1000
_PURGES = 4
_LISTS = {
    "the list of launches": "launch/",
    "the list of failed launches": "launch/?status__exact=failed",
    "the list of grants": "tokengrant/",
    "the list of active grants": "tokengrant/?status__exact=active",
    "the list of identities": "identity/",
    "the list of servers": "fhirserver/",
}
_LIMIT = 1.3  # of the smallest size
_LIST_LIMIT = 300  # milliseconds


def run(report: Report) -> None:
    """Measure."""
    sizes = [1_000, 2_000] if report.is_smoke else [10_000, 100_000]
    measure_history(report, sizes, plot="history")


def measure_history(
    report: Report, sizes: list[int], *, plot: str, in_bulk: bool = False
) -> None:
    """Hold the largest of *sizes* against the smallest."""
    purges = report.rounds(_PURGES)
    lines: dict[str, list[list[float]]] = {}
    with (
        running_stub() as stub,
        histories(stub, sizes, oldest=_CHUNK * (purges + 1), in_bulk=in_bulk) as found,
    ):
        if not in_bulk:
            _weigh(report, found[-1])
        actions = [_Launch, _SignOut, _Page, *map(_list_of, _LISTS.values()), _Purge]
        names = ["a launch", "a sign-out", "a page", *_LISTS, "a purge of 1,000"]
        for name, action in zip(names, actions, strict=True):
            rounds = purges if action is _Purge else report.rounds(20)
            lines[name] = _measure(report, name, action, found, rounds)
    report.add_plot(
        plot,
        "Time of one, while the launches grow",
        x="launches",
        y="milliseconds",
        lines=lines,
    )


def _measure(
    report: Report,
    name: str,
    action: Callable[[History], Any],
    found: list[History],
    rounds: int,
) -> list[list[float]]:
    """Time one action with each history; the line of its plot."""
    variants = []
    for history in found:
        history.use()
        done = action(history)
        variants.append(
            Variant(
                name=f"{history.size:,} launches",
                run=done.run,
                prepare=partial(_prepare, history, done),
            )
        )
    operations = 1 if action is _Purge else 3
    times = measure(variants, rounds=rounds, operations=operations)
    base, last = variants[0].name, variants[-1].name
    report.add_table(name, name, times, base=base, operations=operations)
    report.check_ratio(
        name, f"{name}: {last}, of {base}", name=last, base=base, at_most=_LIMIT
    )
    line = []
    for history, values in zip(found, times.values(), strict=True):
        known = sorted(each for each in values if each is not None)
        line.append([history.size, known[len(known) // 2] * 1000])
    if name in _LISTS:
        report.check(
            f"{name}, ms",
            f"{name}: {last}",
            line[-1][1],
            at_most=_LIST_LIMIT,
            unit="ms",
        )
    return line


def _prepare(history: History, action: Any, number: int) -> None:
    history.use()
    action.prepare(number)


class _Action:
    """Something that is done with one history, which is in use."""

    def __init__(self, history: History) -> None:
        self.history = history

    def prepare(self, number: int) -> None:
        """Before :meth:`run`, and not timed."""


class _Launch(_Action):
    """From the EHR's request to the response of the callback."""

    def run(self, number: int) -> None:
        self.history.driver.run(number)


class _SignOut(_Action):
    """With a launch open, which ends."""

    def prepare(self, number: int) -> None:
        self.browsers = [self.history.driver.browser() for _ in range(number)]
        for browser in self.browsers:
            self.history.driver.sign_in(browser)

    def run(self, _number: int) -> None:
        for browser in self.browsers:
            assert browser.post("/smart/logout/").status_code == 302


class _Page(_Action):
    """Below the prefix of a launch."""

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self.run = Page(history.driver, history.landing, history.browser).run


class _List(_Action):
    """A page of the admin."""

    def __init__(self, history: History, path: str) -> None:
        super().__init__(history)
        self.url = f"/admin/django_smart/{path}"

    def run(self, number: int) -> None:
        for _ in range(number):
            assert self.history.staff.get(self.url).status_code == 200


def _list_of(path: str) -> Callable[[History], _List]:
    return partial(_List, path=path)


class _Purge(_Action):
    """A whole one, which finds a thousand launches and grants to delete."""

    def prepare(self, _number: int) -> None:
        from django_smart.models import Launch

        ended = Launch.objects.filter(ended_at__isnull=False).order_by("pk")
        self.until: Any = ended.values_list("ended_at", flat=True)[_CHUNK - 1]

    def run(self, _number: int) -> None:
        from django.test import override_settings
        from django.utils import timezone

        from django_smart.launches.purge import purge

        age = timezone.now() - self.until
        with override_settings(SMART_PURGE_AFTER=age.total_seconds()):
            done = purge()
        assert done.launches_deleted >= _CHUNK, done


def _weigh(report: Report, history: History) -> None:
    """Bytes of rows in the database, with their share of the indexes."""
    from django.db import connection

    from django_smart.models import Identity, Launch, TokenGrant

    history.use()
    for key, what, model, where, limit in (
        ("launch", "a launch", Launch, "true", 1600),
        ("ended-grant", "a grant that ended", TokenGrant, "status = 'revoked'", 700),
        ("grant", "a grant with tokens", TokenGrant, "status = 'active'", 4000),
        ("identity", "an identity", Identity, "true", 1200),
    ):
        table = model._meta.db_table
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT avg(pg_column_size(rows.*)) + (SELECT"
                f" pg_indexes_size('{table}')::float / count(*) FROM {table})"
                f" FROM {table} AS rows WHERE {where}"
            )
            (size,) = cursor.fetchone()
        report.check(
            f"bytes-{key}", f"{what}, with indexes", size, at_most=limit, unit="bytes"
        )
