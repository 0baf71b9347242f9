"""What is read among many grants: those that are due, and hardly any others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from django_smart.grants.turn import _MOST_READ
from django_smart.models import ClientRegistration, TokenGrant
from tests.grants.working import tick

# MariaDB commits with ANALYZE TABLE, so what is filled in has to be taken out again.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        connection.vendor == "sqlite", reason="SQLite is not for so many grants"
    ),
]

_DUE = 100
_POSTGRESQL = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="as PostgreSQL explains"
)


def _fill(registration: ClientRegistration, number: int, *, are_due: bool) -> None:
    """*number* grants, of which a hundred or all are due, by one INSERT."""
    now = timezone.now()
    TokenGrant.objects.bulk_create(
        TokenGrant(
            registration=registration,
            is_offline=True,
            received_at=now,
            expires_at=now + timedelta(hours=1, seconds=offset),
            refresh_due_at=now + timedelta(minutes=-offset if are_due else offset + 45),
        )
        for offset in range(1000)
    )
    columns = ", ".join(
        connection.ops.quote_name(str(field.column))
        for field in TokenGrant._meta.concrete_fields
        if not field.primary_key
    )
    table = connection.ops.quote_name(TokenGrant._meta.db_table)
    numbers = {
        "postgresql": "SELECT generate_series(1, {0})",
        "mysql": "SELECT seq FROM seq_1_to_{0}",
    }[connection.vendor].format(number // 1000 - 1)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table}"
            f" CROSS JOIN ({numbers}) AS many"
        )
        if not are_due:
            due = TokenGrant.objects.order_by("pk").values_list("pk", flat=True)[:_DUE]
            TokenGrant.objects.filter(pk__in=list(due)).update(refresh_due_at=now)
        cursor.execute(
            {
                "postgresql": f"ANALYZE {table}",
                "mysql": f"ANALYZE TABLE {table}",
            }[connection.vendor]
        )
    assert TokenGrant.objects.count() == number


def _find(registration: ClientRegistration, number: int) -> list[str]:
    """Find *number* due grants; returns the SELECTs that were needed."""
    with CaptureQueriesContext(connection) as captured:
        assert tick() == [registration.server_id]
        found = TokenGrant.objects.read_due(registration, limit=_MOST_READ)
    assert len(found) == number
    table = connection.ops.quote_name(TokenGrant._meta.db_table)
    return [
        each["sql"]
        for each in captured
        if each["sql"].startswith("SELECT") and f"FROM {table}" in each["sql"]
    ]


def _explain(sql: str) -> Any:
    explain = {
        "postgresql": "EXPLAIN (ANALYZE, FORMAT JSON) ",
        "mysql": "ANALYZE FORMAT=JSON ",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(explain + sql)
        plan: Any = cursor.fetchall()
    return plan


def _check_plan(sql: str) -> None:
    plan = _explain(sql)
    text = str(plan)
    grant_table = TokenGrant._meta.db_table
    if connection.vendor == "postgresql":
        steps = [
            step
            for step in _walk(plan[0][0][0]["Plan"])
            if step.get("Relation Name") == grant_table
            or step["Node Type"].startswith("Bitmap")
        ]
        assert steps, text
        for step in steps:
            assert step["Node Type"] != "Seq Scan", text
            read = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
            assert read <= 3 * _DUE, text
    else:
        for part in text.split('"table_name": "')[1:]:
            if part.startswith((f'{grant_table}"', 'U0"')):
                assert '"access_type": "ALL"' not in part[:200], text
        assert "django_smart_grant_due" in text or "PRIMARY" in text, text


def _walk(step: dict[str, Any]) -> list[dict[str, Any]]:
    return [step, *(low for each in step.get("Plans", ()) for low in _walk(each))]


def _check_few(registration: ClientRegistration, number: int) -> None:
    _fill(registration, number, are_due=False)
    selects = _find(registration, _DUE)
    assert len(selects) >= 1
    for sql in selects:
        _check_plan(sql)


def test_turn_among_many_grants_reads_those_that_are_due(
    registration: ClientRegistration,
) -> None:
    _check_few(registration, 20_000)


def _check_backlog(registration: ClientRegistration, number: int) -> None:
    _fill(registration, number, are_due=True)
    for sql in _find(registration, _MOST_READ):
        (plan,) = _explain(sql)[0][0]
        for step in _walk(plan["Plan"]):
            read = step["Actual Rows"] + step.get("Rows Removed by Filter", 0)
            # One registration is put in order, and no grants.
            most = 1 if "Sort" in step["Node Type"] else _MOST_READ
            assert read <= most, plan


@_POSTGRESQL
def test_turn_among_many_due_grants_sorts_nothing(
    registration: ClientRegistration,
) -> None:
    _check_backlog(registration, 100_000)
