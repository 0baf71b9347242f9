"""A search of 10,000 Observations, read as a stream of pages, and its memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.questions.fhir_read import _make_grant
from benchmarks.setting_up import configure
from benchmarks.stub import PAGE, Stub, running_stub

__all__ = ["TEXT", "run"]

TEXT = """
10,000 Observations of 2 KB arrive in pages of 100; each is examined once, and none is kept.
A round reads the next 20 pages of each stream.
The loop and ``django_smart`` have ``user/`` scopes; under ``patient/`` scopes each resource is also compared with the patient of the launch.
Memory is measured in a separate process that reads the stream, beyond what it uses after its imports and one read.
"""

_BASE = "requests.Session + json"
_OURS = "django_smart"
_BOUNDED = "django_smart, patient/ scopes"
_TOTAL = 10_000
_PAGES = 20


def run(report: Report) -> None:
    """Measure."""
    total = report.size(_TOTAL, smoke=1_000)
    with running_stub() as stub:
        configure(stub=stub)
        grant = _make_grant(stub)
        streams = _make_streams(stub, grant, total)
        _fill(stub, total)
        operations = report.size(_PAGES, smoke=5)
        times = measure(
            [
                Variant(
                    name=name,
                    run=_take_pages(open_stream),
                    every=1 if name in (_BASE, _OURS) or "orjson" in name else 3,
                )
                for name, open_stream in streams.items()
            ],
            rounds=report.rounds(30),
            operations=operations,
        )
        report.add_table(
            "pages",
            "A page of 100 Observations",
            times,
            base=_BASE,
            operations=operations,
            unit="page",
        )
        report.check_ratio(
            "of-session", "of the loop", name=_OURS, base=_BASE, at_most=1.0
        )
        report.check_ratio(
            "boundary",
            "of the loop, with the record check",
            name=_BOUNDED,
            base=_BASE,
            at_most=1.5,
        )
        _measure_memory(report, stub, total)


def _fill(stub: Stub, total: int) -> None:
    """Let the stub make its pages before anything is timed."""
    import requests

    with requests.Session() as session:
        for _ in _loop(stub, session, total, None):
            pass


def _take_pages(open_stream: Callable[[], Iterator[Any]]) -> Callable[[int], None]:
    stream: Iterator[Any] = iter(())

    def take(number: int) -> None:
        nonlocal stream
        left = number * PAGE
        while left:
            for resource in stream:
                assert resource is not None
                left -= 1
                if not left:
                    return
            stream = open_stream()

    return take


def _loop(
    stub: Stub, session: Any, total: int, loads: Callable[[bytes], Any] | None
) -> Iterator[Any]:
    """The loop that everybody writes."""
    url: str | None = f"{stub.base_url}/Observation?total={total}&page=0"
    while url:
        answer = session.get(url, timeout=20)
        # With numbers as exact as those of the package.
        bundle = loads(answer.content) if loads else answer.json(parse_float=Decimal)
        for entry in bundle["entry"]:
            yield entry["resource"]
        url = next(
            (each["url"] for each in bundle["link"] if each["relation"] == "next"), None
        )


def _make_streams(
    stub: Stub, grant: Any, total: int
) -> dict[str, Callable[[], Iterator[Any]]]:
    import requests
    from fhirclient.models.fhirsearch import FHIRSearch
    from fhirclient.models.observation import Observation
    from fhirclient.server import FHIRServer
    from fhirpy import SyncFHIRClient

    from django_smart.clients import build_fhir_client

    headers = {
        "Authorization": f"Bearer {'a' * 43}",
        "Accept": "application/fhir+json",
    }
    session = requests.Session()
    session.headers.update(headers)
    bounded = build_fhir_client(grant)
    of_user = _make_grant(stub, scope="user/*.rs", registration=grant.registration)
    fhir = build_fhir_client(of_user)
    fhirclient = FHIRServer(None, base_uri=f"{stub.base_url}/")
    fhirclient.session.headers.update(headers)
    fhirpy = SyncFHIRClient(stub.base_url, authorization=headers["Authorization"])
    with_orjson: dict[str, Callable[[], Iterator[Any]]] = {}
    if find_spec("orjson"):
        import orjson

        with_orjson["requests.Session + orjson"] = lambda: _loop(
            stub, session, total, orjson.loads
        )
    where = {"total": str(total), "page": "0"}

    def open_fhirclient() -> Iterator[Any]:
        search = FHIRSearch(Observation, struct=where)
        return iter(search.perform_resources_iter(fhirclient))

    return {
        _BASE: lambda: _loop(stub, session, total, None),
        **with_orjson,
        _OURS: lambda: iter(fhir.iterate("Observation", where)),
        _BOUNDED: lambda: iter(bounded.iterate("Observation", where)),
        "fhirclient, iterator": open_fhirclient,
        "fhirpy, iterator": lambda: iter(
            fhirpy.resources("Observation").search(**where)
        ),
        "fhirpy, fetch_all": lambda: iter(
            fhirpy.resources("Observation").search(**where).fetch_all()
        ),
    }


def _measure_memory(report: Report, stub: Stub, total: int) -> None:
    """The same in processes of their own, which print how their peak grew."""
    peaks = []
    for number in (total // 5, total):
        printed = subprocess.run(
            [sys.executable, "-m", __name__, stub.origin, str(number)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        peaks.append(int(printed) / 1024)
    some, all_of_it = peaks
    report.check(
        "memory",
        f"peak memory over imports, {total:,} Observations",
        all_of_it,
        at_most=6,
        unit="MB",
    )
    report.check(
        "memory-flat",
        f"peak memory, {total:,} Observations over {total // 5:,}",
        all_of_it - some,
        at_most=1,
        unit="MB",
    )


def _forget_peak() -> None:
    """Let the peak be what this process has now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _get_peak() -> int:
    """Of this process, in KiB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmHWM:\s*(\d+)", status, re.MULTILINE)
    assert found
    return int(found[1])


def _read(origin: str, total: int) -> None:
    from urllib.parse import urlsplit

    from django_smart.clients import build_fhir_client

    stub = Stub(urlsplit(origin).port or 0)
    fhir = build_fhir_client(_make_grant(stub))
    # What every request needs, once: sockets, codecs, regular expressions.
    fhir.read("Patient", "p1")
    _forget_peak()
    before = _get_peak()
    for resource in fhir.iterate("Observation", {"total": total, "page": 0}):
        assert resource
    print(_get_peak() - before)


if __name__ == "__main__":
    configure()
    _read(sys.argv[1], int(sys.argv[2]))
