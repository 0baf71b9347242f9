"""
The Celery worker that is measured, and the task that somebody would write by hand.

    celery -A benchmarks.worker worker --concurrency 2
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import task_postrun, worker_process_init

__all__ = ["app", "refresh_by_hand", "running_worker", "take_counts"]

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
app = Celery("benchmarks")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

_counts = {"statements": 0, "connections": 0}


def refresh_by_hand(grant: Any, token_endpoint: str) -> None:
    """What one would write: ask for new tokens, and save them."""
    from datetime import timedelta

    import requests
    from django.utils import timezone

    registration = grant.registration
    answer = requests.post(
        token_endpoint,
        {"grant_type": "refresh_token", "refresh_token": grant.refresh_token},
        auth=(registration.client_id, registration.client_secret),
        timeout=20,
    )
    answer.raise_for_status()
    tokens = answer.json()
    now = timezone.now()
    grant.set_tokens(
        access_token=tokens["access_token"], refresh_token=tokens["refresh_token"]
    )
    grant.received_at = now
    grant.expires_at = now + timedelta(seconds=tokens["expires_in"])
    grant.refresh_due_at = now + timedelta(seconds=tokens["expires_in"] * 0.75)
    grant.save()


@app.task(ignore_result=True)
def refresh_one(grant_id: int, token_endpoint: str) -> None:
    """A task for each grant."""
    from django_smart.models import TokenGrant

    grants = TokenGrant.objects.select_related("registration__server")
    refresh_by_hand(grants.get(pk=grant_id), token_endpoint)


@contextmanager
def running_worker(folder: str, *, concurrency: int, **extra: str) -> Iterator[None]:
    """Run a worker until the block ends; *extra* are variables of the settings."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "celery",
        "-A",
        "benchmarks.worker",
    ]
    command += ["worker", "--concurrency", str(concurrency), "--pool", "prefork"]
    command += ["--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
    with Path(f"{folder}/worker.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | {f"BENCH_{name}": text for name, text in extra.items()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# Counting, in a run of its own that is not timed


def take_counts() -> dict[str, int]:
    """Statements and connections of the workers since this was asked last."""
    client, key = _get_redis()
    counts = {name: int(client.hget(key, name) or 0) for name in _counts}
    client.delete(key)
    return counts


def _get_redis() -> tuple[Any, str]:
    import redis

    client = redis.Redis.from_url(os.environ["BENCH_BROKER"])
    return client, f"counts of {os.environ['BENCH_QUEUE']}"


@worker_process_init.connect
def _count(**_values: Any) -> None:
    if "BENCH_COUNT" not in os.environ:
        return
    from django.db.backends.signals import connection_created

    def count_statement(
        execute: Any, sql: str, params: Any, many: Any, context: Any
    ) -> Any:
        _counts["statements"] += 1
        return execute(sql, params, many, context)

    def note_connection(connection: Any, **_more: Any) -> None:
        _counts["connections"] += 1
        # It outlasts the connection, which may be made again.
        if count_statement not in connection.execute_wrappers:
            connection.execute_wrappers.append(count_statement)

    def write_down(**_more: Any) -> None:
        client, key = _get_redis()
        for name, number in _counts.items():
            client.hincrby(key, name, number)
            _counts[name] = 0

    connection_created.connect(note_connection, weak=False)
    task_postrun.connect(write_down, weak=False)
