"""Real workers: slow and silent EHRs beside others, and a backlog of a million."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from benchmarks.stub import Stub, running_stub
from tests.chaos.deployment import Deployment
from tests.chaos.ehr import Ledger
from tests.chaos.nodes import RabbitMQNode, RedisNode
from tests.chaos.run import Scale, prepare, running, service_database

pytestmark = [
    pytest.mark.process,
    pytest.mark.postgresql,
    pytest.mark.long,
    pytest.mark.timeout(1800),
]

_SCALE = Scale(
    grants=100, lifetime=3600, tick=10, timeout=(5, 10, 20), floor=30, late_share=0
)
_LATEST = 15.0  # seconds

_SMALL = 10_000
_LARGE = int(os.environ.get("BACKLOG_GRANTS", "1_000_000"))
_MEASURED = float(os.environ.get("BACKLOG_SECONDS", "90"))


@contextmanager
def _deployed(
    folder: Path,
    broker_url: str,
    database_url: str,
    servers: dict[str, list[tuple[str, str]]],
    *statements: str,
) -> Iterator[psycopg.Connection[Any]]:
    """
    Two workers with a process each; yields a connection to their database.

    Args:
        statements: executed before the workers start.
    """
    environment = prepare(_SCALE, folder, broker_url, database_url, servers)
    ledger = Ledger(limit=10, late_share=0)
    url = database_url.replace("postgres:", "postgresql:", 1)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        with Deployment(folder, environment, ledger).running():
            yield connection


def _delay(stub: Stub, milliseconds: int, *, where: str = "") -> str:
    """The statement that lets the token endpoint of *stub* take so long."""
    where = where or f"base_url = '{stub.base_url}'"
    endpoint = f"{stub.origin}/delay-{milliseconds}/token"
    overrides = json.dumps({"token_endpoint": endpoint})
    return f"UPDATE django_smart_fhirserver SET overrides = '{overrides}' WHERE {where}"


# One slow server


_LATENESS = """
SELECT coalesce(extract(epoch FROM now() - min(refresh_due_at)), 0)
FROM django_smart_tokengrant
JOIN django_smart_clientregistration AS own ON own.id = registration_id
JOIN django_smart_fhirserver AS server ON server.id = server_id
WHERE status = 'active' AND refresh_due_at <= now()
AND split_part(slug, '-', 2)::int > %s
"""
# Those of the first servers at once, the others within two minutes.
_COME_DUE = """
UPDATE django_smart_tokengrant AS own SET refresh_due_at = now()
+ CASE WHEN split_part(slug, '-', 2)::int <= %s THEN interval '0'
ELSE random() * interval '120 s' END FROM django_smart_clientregistration AS r
JOIN django_smart_fhirserver AS s ON s.id = server_id WHERE r.id = registration_id
"""


def _watch(connection: psycopg.Connection[Any], sick: int, what: str) -> None:
    """Let grants come due; those of servers after the first *sick* are not late."""
    connection.execute((_COME_DUE % sick).encode())
    late = []
    for _ in range(120):
        time.sleep(1)
        (seconds,) = connection.execute((_LATENESS % sick).encode()).fetchone() or (0,)
        late.append(float(seconds))
    late.sort()
    sys.stdout.write(
        f"{what}: oldest healthy grant {late[-1]:.1f} s late, usually "
        f"{late[len(late) // 2]:.1f} s\n"
    )
    assert late[-1] <= _LATEST


@pytest.mark.parametrize("kind", [RedisNode, RabbitMQNode])
def test_grants_of_nine_servers_do_not_wait_for_a_slow_one(
    kind: type[Any], tmp_path: Path
) -> None:
    tokens = [("a" * 43, "r" * 43)] * _SCALE.grants
    with ExitStack() as stack:
        broker = stack.enter_context(running(kind))
        url = stack.enter_context(service_database())
        stubs = [stack.enter_context(running_stub()) for _ in range(10)]
        connection = stack.enter_context(
            _deployed(
                tmp_path,
                broker.url,
                url,
                {stub.base_url: tokens for stub in stubs},
                *map(_delay, stubs, [9_000, *[50] * 9]),
                "UPDATE django_smart_tokengrant SET patient_id = 'p1'",
            )
        )
        _watch(connection, 1, kind.name)
        sent = [stub.take_counts().get("/token", 0) for stub in stubs]
    sys.stdout.write(f"requests to each server: {sent}\n")
    assert all(sent)


def test_grants_of_five_servers_do_not_wait_for_fifty_silent_ones(
    tmp_path: Path,
) -> None:
    tokens = [("a" * 43, "r" * 43)] * _SCALE.grants
    with ExitStack() as stack:
        broker = stack.enter_context(running(RedisNode))
        url = stack.enter_context(service_database())
        stub = stack.enter_context(running_stub())
        delays = [*range(60_000, 60_050), *range(5)]
        connection = stack.enter_context(
            _deployed(
                tmp_path,
                broker.url,
                url,
                {f"{stub.origin}/delay-{each}/fhir": tokens for each in delays},
                "UPDATE django_smart_tokengrant SET patient_id = 'p1'",
                # They have been silent for a while.
                "UPDATE django_smart_serverstate SET paused_until = now(),"
                " last_error = 'server_timeout' FROM django_smart_fhirserver"
                " WHERE id = server_id AND base_url LIKE '%/delay-60%'",
            )
        )
        _watch(connection, 50, "50 silent servers")
        left = connection.execute(
            b"SELECT count(*) FROM django_smart_tokengrant AS own"
            b" JOIN django_smart_clientregistration AS r ON r.id = registration_id"
            b" JOIN django_smart_fhirserver AS s ON s.id = server_id"
            b" WHERE received_at < now() - interval '120 s'"
            b" AND base_url LIKE '%/delay-60%'"
        ).fetchone()
    assert left == (50 * _SCALE.grants,)


# Several turns


def test_two_processes_share_the_turn_of_a_server(tmp_path: Path) -> None:
    number = 1200
    with ExitStack() as stack:
        broker = stack.enter_context(running(RedisNode))
        url = stack.enter_context(service_database())
        stub = stack.enter_context(running_stub())
        connection = stack.enter_context(
            _deployed(
                tmp_path,
                broker.url,
                url,
                {stub.base_url: [("a" * 43, "r" * 43)] * number},
                _delay(stub, 200),
                "UPDATE django_smart_tokengrant SET patient_id = 'p1'",
                "UPDATE django_smart_fhirserver SET turns = 2",
                "UPDATE django_smart_tokengrant SET refresh_due_at = now()",
            )
        )
        holders, deadline, left = 0, time.monotonic() + 120, number
        started = time.monotonic()
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            owners, left = connection.execute(
                b"SELECT count(DISTINCT lease_owner) FILTER (WHERE lease_owner <> ''),"
                b" count(*) FILTER (WHERE refresh_due_at <= now())"
                b" FROM django_smart_tokengrant"
            ).fetchone() or (0, 0)
            holders = max(holders, owners)
        sent = stub.take_counts()["/token"]
    sys.stdout.write(
        f"{sent} requests by {holders} processes at a time, in "
        f"{time.monotonic() - started:.0f} s\n"
    )
    assert (left, sent, holders) == (0, number, 2)


# A backlog

_NOTE_LEASES = """
CREATE UNLOGGED TABLE leases (grant_id bigint);
CREATE FUNCTION note_lease() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO leases VALUES (NEW.id); RETURN NEW; END $$;
CREATE TRIGGER lease BEFORE UPDATE ON django_smart_tokengrant FOR EACH ROW
WHEN (NEW.lease_expires_at IS NOT NULL
      AND NEW.lease_expires_at IS DISTINCT FROM OLD.lease_expires_at)
EXECUTE FUNCTION note_lease()
"""
# What was refreshed, or is being refreshed, was not leased in vain.
_COUNT_LEASES = """
SELECT (SELECT count(*) FROM leases), count(*) FROM django_smart_tokengrant
WHERE received_at > now() - interval '1 hour' OR lease_expires_at > now()
"""


def _make_due(connection: psycopg.Connection[Any], number: int, servers: int) -> None:
    """*number* grants whose tokens ended within the last two hours, and no others."""
    table = "django_smart_tokengrant"
    columns = [
        str(row[0])
        for row in connection.execute(
            "SELECT column_name FROM information_schema.columns"
            f" WHERE table_name = '{table}' AND column_name <> 'id'".encode()
        )
    ]
    connection.execute(
        "CREATE TEMPORARY TABLE pattern AS"
        f" SELECT DISTINCT ON (registration_id) * FROM {table}".encode()
    )
    connection.execute(
        "UPDATE pattern SET refresh_due_at = now(),"
        " lease_owner = '', lease_expires_at = NULL"
    )
    values = ", ".join(
        {
            "received_at": "now() - interval '3 hours'",
            "expires_at": "now() - random() * interval '2 hours'",
            "refresh_due_at": "now() - interval '2 hours' * random()",
        }.get(name, name)
        for name in columns
    )
    with connection.transaction():
        connection.execute(f"DELETE FROM {table}; DELETE FROM leases".encode())
        connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM pattern"
            f" CROSS JOIN generate_series(1, {number // servers})".encode()
        )
    connection.execute("DROP TABLE pattern")
    connection.execute(f"VACUUM ANALYZE {table}".encode())


def _drain(stub: Stub, number: int) -> tuple[int, float, float]:
    """Watch refreshes; returns how many, in how many seconds, and the longest pause."""
    stub.take_counts()
    done = 0
    started = last = 0.0
    pause = 0.0
    waiting_since = time.monotonic()
    while done < number * 0.95:
        time.sleep(0.1)
        count = stub.take_counts().get("/token", 0)
        now = time.monotonic()
        assert now - (last or waiting_since) < 60, "nothing is refreshed"
        if count:
            started = started or now
            pause = max(pause, now - (last or now))
            last = now
            done += count
        if started and now - started > _MEASURED:
            pause = max(pause, now - last)
            break
    return done, last - started, pause


@pytest.mark.parametrize("servers", [1, 10])
def test_million_grants_drain_as_fast_as_ten_thousand(
    servers: int, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(running(RedisNode))
        url = stack.enter_context(service_database())
        stub = stack.enter_context(running_stub())
        connection = stack.enter_context(
            _deployed(
                tmp_path,
                broker.url,
                url,
                {
                    f"{stub.origin}/delay-{20 + number}/fhir": [("a" * 43, "r" * 43)]
                    for number in range(servers)
                },
                _delay(stub, 20, where="true"),
                "UPDATE django_smart_tokengrant SET patient_id = 'p1'",
                _NOTE_LEASES,
            )
        )
        rates = {}
        for number in (_SMALL, _LARGE):
            _make_due(connection, number, servers)
            done, seconds, pause = _drain(stub, number)
            leases, good = connection.execute(_COUNT_LEASES).fetchone() or (0, 0)
            vain = max(0, leases - good) / leases
            rates[number] = done / seconds
            sys.stdout.write(
                f"{number:,} due: {done:,} refreshed in {seconds:.0f} s "
                f"({rates[number]:.0f} a second), longest pause {pause:.1f} s, "
                f"leases in vain {vain:.2%} of {leases:,}\n"
            )
            assert pause <= 5
            # Each turn ends with some, and ten servers have many turns.
            assert vain <= 0.01 * servers
        assert rates[_LARGE] >= 0.8 * rates[_SMALL]
