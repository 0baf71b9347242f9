"""
A site that keeps many launches: rows that the database makes from those of one launch.

Each launch has a grant, and each user a hundred launches.  The last hundred are open,
and their grants have tokens; a hundred failed; all others ended within thirty days.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.setting_up import (
    LoginDriver,
    configure,
    drop_database,
    make_database,
    make_registration,
    make_tables,
)
from benchmarks.stub import Stub

__all__ = ["History", "histories"]

_TOKEN = "t" * 1000
_LAUNCHES_OF_A_USER = 100
_OPEN = _FAILED = 100
# The first rows are those that the others are copies of.
_FIRST = 1001


@contextmanager
def histories(
    stub: Stub, sizes: Sequence[int], *, oldest: int, in_bulk: bool = False
) -> Iterator[list[History]]:
    """
    A history of each size, in a PostgreSQL database of its own.

    Args:
        oldest: further launches, for the purge.
        in_bulk: make the indexes after the rows, which is faster; they are then
            smaller than those of a site where the rows came one by one.
    """
    with ExitStack() as stack:
        places = {}
        for size in sizes:
            name = make_database("postgresql")
            stack.callback(drop_database, "postgresql", name)
            places[f"history_{size}"] = ("postgresql", name)
        os.environ["BENCH_DATABASES"] = json.dumps(places)
        configure(stub=stub, ADMIN="yes")
        from django.db import connections

        stack.callback(connections.close_all)
        yield [
            History(stub, alias, size, oldest=oldest, in_bulk=in_bulk)
            for alias, size in zip(places, sizes, strict=True)
        ]


class History:
    """
    One database with its launches.

    Attributes:
        driver: launches as somebody who was here before.
        landing: URL of a page below the prefix of an open launch.
        browser: the browser of that launch.
        staff: another browser, with a superuser signed in.
    """

    def __init__(
        self, stub: Stub, alias: str, size: int, *, oldest: int, in_bulk: bool
    ) -> None:
        self.alias, self.size = alias, size
        make_tables(alias)
        self.use()
        make_registration(stub)
        self.driver = LoginDriver(
            f"/smart/launch/?iss={stub.base_url}&launch=x",
            "/smart/callback/",
            middleware="ours",
        )
        self.browser = self.driver.browser()
        self.landing = self.driver.sign_in(self.browser)["Location"]
        self.staff = self._sign_in_staff()
        _fill(size + oldest, in_bulk=in_bulk)

    def use(self) -> None:
        """Make it the default database, which all code uses."""
        from django.db import connections

        connections["default"] = connections[self.alias]

    def _sign_in_staff(self) -> Any:
        from django.contrib.auth import get_user_model

        user_model: Any = get_user_model()
        browser = self.driver.browser()
        browser.force_login(
            user_model.objects.create_superuser("staff"),
            "django.contrib.auth.backends.ModelBackend",
        )
        return browser


def _fill(number: int, *, in_bulk: bool) -> None:
    """Add *number* launches, the oldest first, with their grants, users, identities."""
    from django.contrib.auth import get_user_model
    from django.db import connection

    from django_smart.models import Identity, Launch, TokenGrant

    grant = TokenGrant.objects.get()
    grant.set_tokens(access_token=_TOKEN, refresh_token=_TOKEN)
    grant.save()
    age = f"(29 * (1 - n::float / {number}))"
    is_open, is_failed = f"n > {number - _OPEN}", f"n > {number - _OPEN - _FAILED}"
    is_offline = f"n % {_LAUNCHES_OF_A_USER} = 0"
    begun = f"now() - interval '1 day' * {age}"
    ended = f"CASE WHEN {is_open} THEN NULL ELSE {begun} + interval '8 hours' END"
    user = f"{_FIRST} + n / {_LAUNCHES_OF_A_USER}"
    of_ended = f"CASE WHEN {is_open} THEN {{}} ELSE '' END"
    with connection.cursor() as cursor:
        # All rows refer to rows that exist: checking a million costs a minute.
        cursor.execute("SET session_replication_role = replica")
        later = _drop_indexes(cursor, Launch, TokenGrant) if in_bulk else []
        users = number // _LAUNCHES_OF_A_USER
        _copy(cursor, get_user_model(), users, username="'user-' || n")
        _copy(
            cursor,
            Identity,
            users,
            subject="'subject-' || n",
            digest=_digest("subject"),
            user_id=f"{_FIRST} + n",
        )
        _copy(
            cursor,
            TokenGrant,
            number,
            status=f"CASE WHEN {is_open} THEN 'active' ELSE 'revoked' END",
            access_token=of_ended.format("access_token"),
            refresh_token=of_ended.format("refresh_token"),
            refresh_token_digest=of_ended.format(_digest("token")),
            is_offline=is_offline,
            received_at=begun,
            expires_at=f"{begun} + interval '1 hour'",
            refresh_due_at=f"CASE WHEN {is_offline} THEN now() + interval '9 hours' END",
            created_at=begun,
            ended_at=ended,
            user_id=user,
            identity_id=user,
        )
        _copy(
            cursor,
            Launch,
            number,
            key="'key-' || n",
            key_digest=_digest("key"),
            state_digest=_digest("state"),
            browser_digest=_digest("browser"),
            status=(
                f"CASE WHEN {is_open} THEN 'open' WHEN {is_failed} THEN 'failed' "
                "ELSE 'ended' END"
            ),
            error_code=(
                f"CASE WHEN {is_open} THEN '' WHEN {is_failed} THEN 'access_denied' "
                "ELSE 'signed_out' END"
            ),
            created_at=begun,
            expires_at=f"{begun} + interval '15 minutes'",
            completed_at=f"CASE WHEN {is_open} THEN now() ELSE {begun} END",
            last_used_at="now()",
            ended_at=ended,
            user_id=user,
            identity_id=user,
            grant_id=f"{_FIRST} + n",
        )
        for statement in later:
            cursor.execute(statement)
        cursor.execute("RESET session_replication_role")
        cursor.execute("VACUUM ANALYZE")


def _drop_indexes(cursor: Any, *models: Any) -> list[str]:
    """Drop all but the primary keys; returns the statements that make them again."""
    statements = []
    for model in models:
        table = model._meta.db_table
        cursor.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = %s::regclass AND contype = 'u'",
            [table],
        )
        for name, definition in cursor.fetchall():
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
            statements.append(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes "
            "WHERE tablename = %s AND indexname != %s",
            [table, f"{table}_pkey"],
        )
        for name, definition in cursor.fetchall():
            cursor.execute(f"DROP INDEX {name}")
            statements.append(definition)
    return statements


def _digest(word: str) -> str:
    return f"encode(sha256(('{word}-' || n)::bytea), 'hex')"


def _copy(cursor: Any, model: Any, number: int, **values: str) -> None:
    """Insert *number* copies of the first row, with other *values* as SQL."""
    table = model._meta.db_table
    columns = [field.column for field in model._meta.concrete_fields]
    chosen = {"id": f"{_FIRST} + n", **values}
    expressions = ", ".join(chosen.get(each, each) for each in columns)
    cursor.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {expressions} FROM {table} "
        f"CROSS JOIN generate_series(0, {number}) AS n "
        f"WHERE id = (SELECT min(id) FROM {table})"
    )
    cursor.execute(
        f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
    )
