"""One run of a deployment at an EHR: its scale, its grants and the people who read."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from django_smart.fields import digest
from tests.chaos.deployment import Deployment
from tests.chaos.ehr import Ledger, give_tokens, make_ehr
from tests.chaos.nodes import Node
from tests.services import postgresql_url

__all__ = ["Run", "Scale", "deploy", "prepare", "running", "service_database"]

_ROOT = Path(__file__).resolve().parents[2]

_Node = TypeVar("_Node", bound=Node)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much, and how fast; times in seconds."""

    grants: int
    #: Of access tokens.
    lifetime: int
    #: Between two ticks of beat.
    tick: float
    #: Connect, read, whole call.
    timeout: tuple[float, float, float]
    #: Between two refreshes of a grant.
    floor: float
    #: Of the answers, while some are late.
    late_share: float
    #: How long a message may wait, if not as long as ever.
    message: float | None = None
    #: People who open pages meanwhile.
    readers: int = 2

    @property
    def environment(self) -> dict[str, str]:
        """What the processes are told of it."""
        return {
            "CHAOS_TIMEOUT": " ".join(map(str, self.timeout)),
            "CHAOS_FLOOR": str(self.floor),
            "CHAOS_TICK": str(self.tick),
            "CHAOS_MESSAGE": str(self.message or ""),
        }


@dataclass(slots=True)
class Run:
    """A deployment that is up."""

    scale: Scale
    deployment: Deployment
    ledger: Ledger
    broker: Node
    database_url: str
    #: The first refresh token of each grant.
    families: dict[int, str] = field(default_factory=dict)
    #: What came of the pages that were opened.
    read: Counter[str] = field(default_factory=Counter)

    def query(self, sql: str) -> list[Any]:
        """Ask the database, past the deployment."""
        url = self.database_url.replace("postgres:", "postgresql:", 1)
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(sql.encode()).fetchall()

    def count_overdue(self) -> int:
        """Grants whose token has ended, or that beat and workers have left waiting."""
        ticks = f"interval '{3 * self.scale.tick} s'"
        rows = self.query(
            "SELECT count(*) FROM django_smart_tokengrant WHERE status = 'active'"
            f" AND (expires_at <= now() OR refresh_due_at < now() - {ticks})"
        )
        return int(rows[0][0])

    @contextlib.contextmanager
    def readers(self) -> Iterator[None]:
        """Let people open pages until the block ends."""
        stop = threading.Event()
        grant_ids = list(self.families)

        def read() -> None:
            chance = random.Random()
            while not stop.wait(0.02):
                self.read[self.deployment.read(chance.choice(grant_ids))] += 1

        threads = [threading.Thread(target=read) for _ in range(self.scale.readers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def running(kind: type[_Node]) -> Iterator[_Node]:
    """A server of the test's own, until the block ends."""
    node = kind()
    try:
        node.start()
        yield node
    finally:
        node.remove()


@contextlib.contextmanager
def service_database() -> Iterator[str]:
    """A database of its own on the server that runs anyway; yields its URL."""
    name = f"chaos_{uuid.uuid4().hex[:12]}"
    server = postgresql_url("postgres").replace("postgres:", "postgresql:", 1)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield postgresql_url(name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def prepare(
    scale: Scale,
    folder: Path,
    broker_url: str,
    database_url: str,
    servers: dict[str, list[tuple[str, str]]],
) -> dict[str, str]:
    """
    Make tables, servers and their grants.

    Args:
        servers: by base URL, access and refresh token of each grant.

    Returns:
        The environment of the processes.
    """
    environment = os.environ | scale.environment
    environment |= {
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "DATABASE_URL": database_url,
        "CELERY_BROKER_URL": broker_url,
        "HOME": str(folder),
    }
    wanted = {"lifetime": scale.lifetime, "servers": servers}
    subprocess.run(
        [sys.executable, "-m", "tests.chaos.fill"],
        cwd=_ROOT,
        env=environment,
        input=json.dumps(wanted).encode(),
        check=True,
    )
    return environment


@contextlib.contextmanager
def deploy(scale: Scale, folder: Path, broker: Any, database_url: str) -> Iterator[Run]:
    """An EHR, and a deployment with its grants; *folder* is for logs."""
    ledger = Ledger(limit=scale.timeout[1], late_share=scale.late_share)
    ehr = make_ehr(ledger, access_token_lifetime=scale.lifetime)
    with ehr.serve("127.0.0.1"):
        tokens = give_tokens(ehr, scale.grants)
        servers = {ehr.base_url: tokens}
        environment = prepare(scale, folder, broker.url, database_url, servers)
        deployment = Deployment(folder, environment, ledger)
        run = Run(scale, deployment, ledger, broker, database_url)
        known = {digest(refresh): refresh for _, refresh in tokens}
        rows = run.query("SELECT id, refresh_token_digest FROM django_smart_tokengrant")
        run.families = {pk: known[value] for pk, value in rows}
        with deployment.running():
            yield run
