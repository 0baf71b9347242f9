"""Read records, as the tasks do, without Celery."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    OutputWrapper,
)

from django_smart.contrib.records.due import (
    EVERY,
    build_sink,
    find_due_grants,
    forget_ended_records,
)
from django_smart.contrib.records.models import SyncedType, SyncRun
from django_smart.contrib.records.sync import Sync
from django_smart.exceptions import SMARTError
from django_smart.models import TokenGrant

__all__ = ["Command"]

_WIDTH = 20


class Command(BaseCommand):
    """``smart_sync``: for a site without a worker, call it every few minutes."""

    help = (
        "Read the records that patients have connected into the sink of "
        "SMART_RECORDS_SINK: those that are due, or that of one grant. Copies of "
        "records whose connections have ended are deleted. Safe to run alongside "
        "workers."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--grant", type=int, metavar="ID", help="Read the record of this grant now."
        )
        parser.add_argument(
            "--hours",
            type=float,
            default=EVERY / timedelta(hours=1),
            help="How long after a run the next one is due (default: %(default)s).",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Read one record after the other."""
        try:
            sink = build_sink()
        except ImproperlyConfigured as exc:
            raise CommandError(str(exc)) from None
        if options["grant"]:
            grant_ids = [options["grant"]]
        else:
            forget_ended_records(sink)
            every = timedelta(hours=options["hours"])
            grant_ids = find_due_grants(sink, every=every)
        grants = TokenGrant.objects.select_related("registration__server")
        failed = 0
        for number, grant_id in enumerate(grant_ids, 1):
            progress = f"[{number}/{len(grant_ids)}] grant {grant_id}"
            bar = _Bar(self.stdout, progress) if self.stdout.isatty() else None
            try:
                run = Sync(grants.get(pk=grant_id), sink, on_progress=bar).run()
            except SMARTError as exc:
                failed += 1
                self.stderr.write(f"{progress}: {exc} ({exc.code})")
                continue
            except Exception as exc:  # noqa: BLE001 (one record stops no other)
                failed += 1
                self.stderr.write(f"{progress}: {type(exc).__name__}")
                continue
            finally:
                if bar is not None:
                    self.stdout.write()
            failed += not run.is_finished
            self.stdout.write(f"{progress}: {_describe(run)}")
        if failed:
            raise CommandError(f"{failed} of {len(grant_ids)} records were not read.")


class _Bar:
    """How far a run is, on one line of a terminal."""

    def __init__(self, stdout: OutputWrapper, progress: str) -> None:
        self._stdout, self._progress = stdout, progress
        self._delivered = 0

    def __call__(self, run: SyncRun, delivered: int) -> None:
        self._delivered += delivered
        states = list(run.states.values())
        read = len(states) - states.count(SyncedType.State.WAITING)
        # A run may have only references left to read.
        bar = "#" * (_WIDTH * read // max(len(states), 1))
        self._stdout.write(
            f"\r{self._progress} [{bar:{_WIDTH}}] {read} of {len(states)} types, "
            f"{self._delivered} resources",
            ending="",
        )
        self._stdout.flush()


def _describe(run: SyncRun) -> str:
    states = run.states
    lacking = [
        f"{name} {state}" for name, state in states.items() if state != "complete"
    ]
    parts = [
        f"{len(states) - len(lacking)} of {len(states)} types complete",
        f"{sum(run.count().values())} resources",
        *lacking,
    ]
    if run.last_error:
        parts.append(f"waits ({run.last_error})")
    return ", ".join(parts)
