"""A whole record, read into the site's database."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from urllib.parse import urlsplit

from benchmarks.harness import Report, Variant, measure
from benchmarks.questions.fhir_pages import _get_peak
from benchmarks.questions.fhir_read import _make_grant
from benchmarks.setting_up import configured
from benchmarks.stub import Stub, running_stub

__all__ = ["TEXT", "measure_record", "run"]

TEXT = """
A record of 10,000 Observations of 2 KB is read for the first time into ``StoredResource`` in PostgreSQL, in pages of 100.
*A bare loop* requests the same pages, one after the other, and stores each with the same sink in a transaction.
``sync_record()`` also checks whose each resource is, and stores versions and progress.
Memory is the peak of a process that reads the record once.
"""

_BASE = "a bare loop"
_OURS = "django_smart"


def run(report: Report) -> None:
    """Measure."""
    measure_record(report, report.size(10_000, smoke=300), rounds=report.rounds(6))


def measure_record(report: Report, total: int, *, rounds: int) -> None:
    """Compare for a record of *total* resources."""
    with running_stub() as stub, configured("postgresql", stub=stub):
        record = _Record(stub, total)
        times = measure(
            [
                Variant(name=_BASE, run=record.loop, prepare=record.forget),
                Variant(name=_OURS, run=record.sync, prepare=record.forget),
            ],
            rounds=rounds,
            operations=total,
        )
        report.add_table(
            "record",
            f"A record of {total:,} resources",
            times,
            base=_BASE,
            operations=total,
            unit="resource",
        )
        report.check_ratio(
            "of-loop",
            "resources a second, of a bare loop",
            name=_OURS,
            base=_BASE,
            at_least=0.8,
            inverse=True,
        )
        stub.take_counts()
        record.forget(total)
        record.sync(total)
        requests = sum(stub.take_counts().values())
        report.check("requests", f"requests for {total // 100:,} pages", requests)
        record.forget(total)
        printed = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__, stub.origin, str(total)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        report.check(
            "memory", "peak memory", int(printed) / 1024, at_most=150, unit="MB"
        )


class _Record:
    """One patient's, and two ways to read it."""

    def __init__(self, stub: Stub, total: int) -> None:
        from django.contrib.auth.models import User

        from django_smart.contrib.records.sinks import ModelSink
        from django_smart.models import TokenGrant

        self._url = f"{stub.base_url}/Observation?total={total}&page=0"
        self._sink = ModelSink()
        self._total = total
        # The stub takes the total from the query, which comes from the scope.
        scope = f"patient/Observation.rs?total={total}"
        grant = TokenGrant.objects.select_related("registration__server").first()
        self._grant = grant or _make_grant(stub, scope=scope)
        self._grant.user = User.objects.get_or_create(username="patient")[0]
        self._grant.save()

    def forget(self, _number: int) -> None:
        """Delete what was read."""
        from django.db import connection

        from django_smart.contrib.records.models import SyncRun

        SyncRun.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")

    def sync(self, _number: int) -> None:
        """As a site reads it."""
        from django_smart.contrib.records import sync_record

        run = sync_record(self._grant, self._sink)
        assert run.count() == {"Observation": self._total}, run.states

    def loop(self, _number: int) -> None:
        """As little as it takes."""
        import requests
        from django.db import transaction

        from django_smart.contrib.records.models import SyncRun

        run = SyncRun.get_for(self._grant, self._sink.get_name())
        self._sink.begin(run)
        url: str | None = self._url
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {'a' * 43}"
            while url:
                bundle = session.get(url, timeout=20).json(parse_float=Decimal)
                with transaction.atomic():
                    self._sink.put([each["resource"] for each in bundle["entry"]])
                links = {each["relation"]: each["url"] for each in bundle["link"]}
                url = links.get("next")
        assert run.copies.count() == self._total


def _read(origin: str, total: int) -> None:
    import django

    django.setup()
    _Record(Stub(urlsplit(origin).port or 0), total).sync(total)
    print(_get_peak())


if __name__ == "__main__":
    _read(sys.argv[1], int(sys.argv[2]))
