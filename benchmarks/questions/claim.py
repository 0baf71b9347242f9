"""Finding the grants that are due, among few and among many."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.setting_up import (
    configure,
    drop_database,
    make_database,
    make_tables,
)
from benchmarks.site.routing import use
from benchmarks.stub import Stub

__all__ = ["TEXT", "fill_grants", "run"]

TEXT = """
A hundred grants are due, among a growing number that are not; one tick of beat finds their server, and a worker finds the grants.
Each size has its own database.
"""

_DUE = 100
_INDEX = "django_smart_grant_due"
_TITLES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "sqlite": "SQLite"}


def run(report: Report) -> None:
    """Measure."""
    sizes = [10_000, 100_000, 1_000_000]
    if report.is_smoke:
        sizes = [1_000, 2_000]
    kinds = [
        kind
        for kind in _TITLES
        if kind != "mariadb" or find_spec("MySQLdb") is not None
    ]
    if report.is_smoke:
        kinds = ["sqlite"]
    lines = {}
    with _databases(kinds, sizes) as aliases:
        for kind in kinds:
            lines[_TITLES[kind]] = _measure(report, kind, sizes, aliases)
    if "mariadb" not in kinds:
        report.facts["MariaDB"] = "not measured: its driver is not installed"
    report.add_plot(
        "claim",
        "Claim of 100 due grants",
        x="grants",
        y="milliseconds",
        lines=lines,
    )


@contextmanager
def _databases(kinds: list[str], sizes: list[int]) -> Iterator[dict[Any, str]]:
    """A database for each kind and size, with all tables; their aliases."""
    aliases, places = {}, {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for kind in kinds:
            for size in sizes:
                alias = aliases[kind, size] = f"{kind}_{size}"
                if kind == "sqlite":
                    places[alias] = (kind, f"{folder}/{size}.sqlite3")
                    continue
                name = make_database(kind)
                stack.callback(drop_database, kind, name)
                places[alias] = (kind, name)
        os.environ["BENCH_DATABASES"] = json.dumps(places)
        configure()
        from django.db import connections

        for alias in places:
            use(alias)
            make_tables(alias)
        stack.callback(connections.close_all)
        yield aliases


def _measure(
    report: Report, kind: str, sizes: list[int], aliases: dict[Any, str]
) -> list[list[float]]:
    from django_smart.models import ServerState

    def let_go(alias: str, _number: int = 0) -> None:
        use(alias)
        ServerState.objects.update(turn_until=None)

    def claim(_number: int) -> None:
        _find()

    variants = []
    for size in sizes:
        alias = aliases[kind, size]
        use(alias)
        fill_grants(size)
        variants.append(
            Variant(
                name=f"{size:,} grants",
                run=claim,
                prepare=partial(let_go, alias),
                operations=1,
            )
        )
    times = measure(variants, rounds=report.rounds(60), operations=1, warm_up=5)
    base, last = f"{sizes[0]:,} grants", f"{sizes[-1]:,} grants"
    report.add_table(kind, _TITLES[kind], times, base=base, operations=1, unit="claim")
    report.check_ratio(
        kind,
        f"{_TITLES[kind]}: {sizes[-1]:,} grants, of {sizes[0]:,}",
        name=last,
        base=base,
        at_most=1.3,
    )
    _look_at_plan(report, kind, aliases[kind, sizes[-1]], let_go)
    _count_idle_tick(report, kind)
    middle = [
        sorted(each for each in times[f"{size:,} grants"] if each is not None)
        for size in sizes
    ]
    return [
        [size, each[len(each) // 2] * 1000]
        for size, each in zip(sizes, middle, strict=True)
    ]


def _look_at_plan(report: Report, kind: str, alias: str, let_go: Any) -> None:
    """Whether the statement that finds them reads the index."""
    from django.db import connections
    from django.test.utils import CaptureQueriesContext

    from django_smart.models import TokenGrant

    let_go(alias)
    connection = connections[alias]
    with CaptureQueriesContext(connection) as captured:
        _find()
    let_go(alias)
    table = connection.ops.quote_name(TokenGrant._meta.db_table)
    finds = [
        each["sql"]
        for each in captured
        if each["sql"].startswith("SELECT") and f"FROM {table}" in each["sql"]
    ]
    plans = []
    with connection.cursor() as cursor:
        for sql in finds:
            words = "EXPLAIN QUERY PLAN" if kind == "sqlite" else "EXPLAIN"
            cursor.execute(f"{words} {sql}")
            plans.append(str(cursor.fetchall()))
    # SQLite finds the rows that it joins by "INTEGER PRIMARY KEY", which shows nothing.
    by_key = "pkey" if kind == "postgresql" else "'PRIMARY'"
    shown = sum(_INDEX in plan or by_key in plan for plan in plans)
    report.check(
        f"{kind}-plan",
        f"{_TITLES[kind]}: statements whose EXPLAIN shows no index",
        len(plans) - shown,
        at_most=0,
    )
    if not any(_INDEX in plan for plan in plans):
        report.facts[f"{_TITLES[kind]}: index of what is due"] = "not in any plan"


def _count_idle_tick(report: Report, kind: str) -> None:
    from django.db import connections, router
    from django.test.utils import CaptureQueriesContext

    from django_smart.grants.engine import run_tick
    from django_smart.models import TokenGrant

    due = TokenGrant.objects.refreshable().filter(refresh_due_at__lte=_now())
    due.update(refresh_due_at=_now() + timedelta(hours=1))
    with CaptureQueriesContext(connections[router.db_for_read(TokenGrant)]) as captured:
        run_tick(lambda _: None)
    report.check(
        f"{kind}-idle",
        f"{_TITLES[kind]}: queries of an idle tick",
        len(captured),
        at_most=2,
    )


def _find() -> None:
    from django_smart.grants.engine import run_tick
    from django_smart.models import ClientRegistration, TokenGrant

    servers: list[int] = []
    run_tick(servers.append)
    registration = ClientRegistration.objects.get()
    assert servers == [registration.server_id]
    assert len(TokenGrant.objects.read_due(registration, limit=4000)) == _DUE


def _now() -> Any:
    from django.utils import timezone

    return timezone.now()


def fill_grants(number: int) -> list[int]:
    """
    Make *number* grants, of which a hundred are due; most by one INSERT.

    Args:
        number: a multiple of 1,000.

    Returns:
        Primary keys of those that are due.
    """
    from django.db import connections, router

    from benchmarks.setting_up import make_registration
    from django_smart.models import TokenGrant

    now = _now()
    registration = make_registration(Stub(1))
    TokenGrant.objects.bulk_create(
        TokenGrant(
            registration=registration,
            is_offline=True,
            access_token="a" * 43,
            refresh_token="r" * 43,
            received_at=now,
            expires_at=now + timedelta(hours=10, seconds=offset),
            refresh_due_at=now + timedelta(hours=9, minutes=offset),
        )
        for offset in range(1000)
    )
    connection = connections[router.db_for_write(TokenGrant)]
    columns = ", ".join(
        connection.ops.quote_name(str(field.column))
        for field in TokenGrant._meta.concrete_fields
        if not field.primary_key
    )
    table = connection.ops.quote_name(TokenGrant._meta.db_table)
    times = number // 1000 - 1
    many = {
        "postgresql": f"SELECT generate_series(1, {times})",
        "mysql": f"SELECT seq FROM seq_1_to_{times}",
        "sqlite": (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            f"WHERE i < {times}) SELECT i FROM n"
        ),
    }[connection.vendor]
    analyze = {
        "postgresql": f"VACUUM ANALYZE {table}",
        "mysql": f"ANALYZE TABLE {table}",
        "sqlite": "ANALYZE",
    }[connection.vendor]
    with connection.cursor() as cursor:
        if times > 0:
            cursor.execute(
                f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table}"
                f" CROSS JOIN ({many}) AS many"
            )
        due = list(
            TokenGrant.objects.order_by("pk").values_list("pk", flat=True)[:_DUE]
        )
        TokenGrant.objects.filter(pk__in=due).update(refresh_due_at=now)
        cursor.execute(analyze)
        if connection.vendor == "mysql":
            cursor.fetchall()
    return due
