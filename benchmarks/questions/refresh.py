"""Refreshing many grants in the background: PostgreSQL, Redis, a Celery worker."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from time import monotonic, sleep
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.setting_up import configured, make_registration
from benchmarks.stub import Stub, running_stub

__all__ = ["TEXT", "Grants", "run"]

TEXT = """
A Celery worker with two processes refreshes expiring grants, from beat's message to the last row in PostgreSQL.
*HTTP alone* requests the same number of tokens with 32 threads and stores none of them.
*A loop* and *a task for each grant* are the obvious first implementations: ``requests.post`` and ``save()``.
"""

_HTTP = "HTTP alone, 32 threads"
_OURS = "django_smart"
_LOOP = "a loop"
_TASKS = "a task for each grant"
_ONE, _TWO = "one process", "two processes"
_SERVERS = 4
_FORM = {"grant_type": "refresh_token", "refresh_token": "r" * 43}


def run(report: Report) -> None:
    """Measure."""
    number = report.size(1000, smoke=40)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_stub() as stub,
        _own_queue(),
        configured("postgresql", stub=stub),
    ):
        grants = Grants(make_registration(stub), stub, number, servers=_SERVERS)
        _measure_quick(report, stub, grants, folder)
        _count(report, stub, grants, folder)
        _measure_slow(report, grants, folder)
        _measure_processes(report, grants, folder)


def _measure_quick(report: Report, stub: Stub, grants: Grants, folder: str) -> None:
    from benchmarks.worker import running_worker

    grants.set_delay(5)
    few = report.size(100, smoke=10)
    with running_worker(folder, concurrency=2), _HTTPPool(grants.endpoint, 32) as pool:
        times = measure(
            [
                Variant(name=_HTTP, run=pool.run),
                Variant(
                    name=_OURS, run=grants.refresh, prepare=grants.make_due_for_beat
                ),
                Variant(
                    name=_LOOP,
                    run=grants.refresh_in_loop,
                    prepare=grants.make_due,
                    operations=few,
                ),
                Variant(
                    name=_TASKS,
                    run=grants.refresh_by_tasks,
                    prepare=grants.make_due,
                    operations=few,
                ),
            ],
            rounds=report.rounds(14),
            operations=grants.number,
        )
    report.add_table(
        "quick",
        "Four servers whose token endpoint takes 5 ms",
        times,
        base=_HTTP,
        operations=grants.number,
        unit="grant",
    )
    for key, base, least in (
        ("of-http", _HTTP, 0.60),
        ("of-tasks", _TASKS, 9),
        ("of-loop", _LOOP, 9),
    ):
        report.check_ratio(
            key,
            f"grants a second, over those of {base}",
            name=_OURS,
            base=base,
            at_least=least,
            inverse=True,
        )


def _count(report: Report, stub: Stub, grants: Grants, folder: str) -> None:
    from benchmarks.worker import running_worker, take_counts

    with running_worker(folder, concurrency=2, COUNT="1"):
        # Once for what a worker does at first.
        grants.make_due_for_beat(grants.number)
        grants.refresh(grants.number)
        sleep(0.5)
        take_counts()
        stub.take_counts()
        grants.make_due_for_beat(grants.number)
        grants.refresh(grants.number)
        sleep(0.5)
        counts = take_counts()
    number = grants.number
    report.check(
        "statements",
        "statements for a grant",
        counts["statements"] / number,
        at_most=1.05,
    )
    report.check(
        "connections",
        "connections to the database for a grant",
        counts["connections"] / number,
        at_most=0.02,
    )


def _measure_slow(report: Report, grants: Grants, folder: str) -> None:
    from benchmarks.worker import running_worker

    number = min(grants.number, 400)
    grants.set_delay(200)
    with running_worker(folder, concurrency=2, THREADS="8"):
        times = measure(
            [Variant(name=_OURS, run=grants.refresh, prepare=grants.make_due_for_beat)],
            rounds=report.rounds(6),
            operations=number,
        )
    base = "16 in 0.2 s (the limit)"
    times = {base: [0.2 / 16] * len(times[_OURS]), **times}
    report.add_table(
        "slow",
        "Four servers whose token endpoint takes 200 ms, 16 requests under way",
        times,
        base=base,
        operations=number,
        unit="grant",
    )
    report.check_ratio(
        "slow",
        "grants a second at 200 ms, of the limit",
        name=_OURS,
        base=base,
        at_least=0.90,
        inverse=True,
    )


def _measure_processes(report: Report, grants: Grants, folder: str) -> None:
    from benchmarks.worker import running_worker

    grants.set_delay(50)
    variants = []
    with ExitStack() as stack:
        for name, concurrency in ((_ONE, 1), (_TWO, 2)):
            queue = stack.enter_context(_queue())
            worker = running_worker(folder, concurrency=concurrency, QUEUE=queue)
            stack.enter_context(worker)
            run = partial(grants.refresh, queue=queue)
            variants.append(
                Variant(name=name, run=run, prepare=grants.make_due_for_beat)
            )
        times = measure(variants, rounds=report.rounds(6), operations=grants.number)
    report.add_table(
        "processes",
        "Four servers whose token endpoint takes 50 ms",
        times,
        base=_ONE,
        operations=grants.number,
        unit="grant",
    )
    report.check_ratio(
        "processes",
        "grants a second at 50 ms, two processes over one",
        name=_TWO,
        base=_ONE,
        at_least=1.7,
        inverse=True,
    )


class Grants:
    """Rows, and the ways to refresh them."""

    def __init__(
        self, registration: Any, stub: Stub, number: int, *, servers: int = 1
    ) -> None:
        from django.utils import timezone

        from django_smart.models import TokenGrant

        self.number = number
        self._stub = stub
        self._registrations = [registration]
        for place in range(1, servers):
            self._registrations.append(
                make_registration(
                    stub,
                    server__slug=f"stub-{place}",
                    server__base_url=f"{stub.origin}/delay-{place}/fhir",
                    redirect_uri=f"http://127.0.0.1/smart/callback/stub-{place}/",
                )
            )
        now = timezone.now()
        scope = "launch/patient patient/*.rs offline_access"
        grants = []
        for place in range(number):
            grant = TokenGrant(
                registration=self._registrations[place % servers],
                is_offline=True,
                scope=scope,
                scope_granted=scope,
                patient_id="p1",
                received_at=now,
                expires_at=now + timedelta(hours=1),
                refresh_due_at=now + timedelta(hours=1),
                last_used_at=now,
            )
            grant.set_tokens(access_token="a" * 43, refresh_token=secrets.token_hex(20))
            grants.append(grant)
        TokenGrant.objects.bulk_create(grants)
        self._ids = [grant.pk for grant in grants]
        self._due: Sequence[int] = ()
        self.endpoint = ""

    def set_delay(self, milliseconds: int) -> None:
        """Let the token endpoint take so long."""
        self.endpoint = f"{self._stub.origin}/delay-{milliseconds}/token"
        for registration in self._registrations:
            server = registration.server
            server.overrides = {"token_endpoint": self.endpoint}
            server.save()

    def make_due(self, number: int) -> None:
        """Let the first *number* be due, and no other."""
        from django.utils import timezone

        from django_smart.models import TokenGrant

        now = timezone.now()
        self._due = self._ids[:number]
        TokenGrant.objects.filter(pk__in=self._due).update(
            received_at=now - timedelta(hours=2),
            expires_at=now - timedelta(hours=1),
            refresh_due_at=now - timedelta(hours=1),
        )

    def make_due_for_beat(self, number: int) -> None:
        """The same, for a tick that comes long after the last one."""
        from django_smart.models import ServerState

        self.make_due(number)
        ServerState.objects.update(turn_token="", turn_until=None)

    def refresh(self, _number: int, **options: Any) -> None:
        """As the beat does; *options* are of its message."""
        from django_smart.tasks import refresh_due_grants

        self._wait(partial(refresh_due_grants.apply_async, **options))

    def refresh_by_tasks(self, _number: int) -> None:
        """A message for each grant."""
        from benchmarks.worker import refresh_one

        for pk in self._due:
            refresh_one.delay(pk, self.endpoint)
        self._wait()

    def refresh_in_loop(self, _number: int) -> None:
        """One after the other, here."""
        from benchmarks.worker import refresh_by_hand
        from django_smart.models import TokenGrant

        grants = TokenGrant.objects.select_related("registration__server")
        for grant in grants.filter(pk__in=self._due):
            refresh_by_hand(grant, self.endpoint)

    def _wait(self, tick: Callable[[], object] | None = None) -> None:
        """Until no grant is due; *tick* is called at once and every ten seconds."""
        from django.utils import timezone

        from django_smart.models import TokenGrant

        due = TokenGrant.objects.filter(
            status="active", refresh_due_at__lte=timezone.now()
        )
        ticks_at, deadline = monotonic(), monotonic() + 60
        while left := due.count():
            if monotonic() > deadline:
                raise TimeoutError(f"{left} grants are still due")
            if tick is not None and monotonic() >= ticks_at:
                tick()
                ticks_at += 10
            # Each look takes from the cores that the workers share; the last ones tell
            # the time.
            sleep(0.02 if left > 40 else 0.002)


class _HTTPPool:
    """Threads that ask for tokens and do nothing else."""

    def __init__(self, endpoint: str, threads: int) -> None:
        self._endpoint = endpoint
        self._pool = ThreadPoolExecutor(threads)
        self._local = threading.local()

    def __enter__(self) -> _HTTPPool:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()

    def run(self, number: int) -> None:
        """Ask for *number* answers."""
        ask: Callable[[int], Any] = self._ask
        for tokens in self._pool.map(ask, range(number)):
            assert tokens["access_token"]

    def _ask(self, _number: int) -> Any:
        import requests

        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.auth = ("bench", "a secret of the benchmark's")
        return session.post(self._endpoint, _FORM, timeout=20).json()


@contextmanager
def _own_queue() -> Iterator[None]:
    """Let this process, and the workers it starts, have a queue of their own."""
    os.environ["BENCH_BROKER"] = "redis://127.0.0.1:6379/15"
    with _queue() as os.environ["BENCH_QUEUE"]:
        yield


@contextmanager
def _queue() -> Iterator[str]:
    """The name of a new queue, which is deleted afterwards."""
    name = f"bench-{secrets.token_hex(4)}"
    try:
        yield name
    finally:
        from benchmarks.worker import app

        with app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            channel.queue_delete(name)
