"""One FHIR read of a Patient of 2 KB, and connections over many web requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.setting_up import configure, make_registration
from benchmarks.stub import Stub, running_stub

__all__ = ["TEXT", "run"]

TEXT = """
A Patient of 2 KB is read over a connection that is kept open, and its JSON is parsed.
The package checks the bearer boundary and the scope, assigns a request id, limits the duration of the whole call, and sends the signal and the audit record.
"""

_BASE = "requests.Session"
_OURS = "django_smart"
_CLIENTS, _THREADS = 200, 4


def run(report: Report) -> None:
    """Measure."""
    with running_stub() as stub:
        configure(stub=stub)
        grant = _make_grant(stub)
        times = measure(
            [
                Variant(name=name, run=_repeat(read))
                for name, read in _make_readers(stub, grant).items()
            ],
            rounds=report.rounds(120),
            operations=20,
            warm_up=3,
        )
        report.add_table(
            "read", "One read", times, base=_BASE, operations=20, unit="read"
        )
        report.check_ratio(
            "of-session", "of requests.Session", name=_OURS, base=_BASE, at_most=0.95
        )
        report.check_ratio(
            "of-fhirclient",
            "of fhirclient",
            name=_OURS,
            base="fhirclient",
            at_most=0.80,
        )
        _count_connections(report, stub, grant)


def _make_grant(
    stub: Stub, *, scope: str = "patient/*.rs", registration: Any = None
) -> Any:
    from datetime import timedelta

    from django.utils import timezone

    from django_smart.models import TokenGrant
    from django_smart.signals import fhir_request_finished

    fhir_request_finished.connect(_listen)
    now = timezone.now()
    grant = TokenGrant(
        registration=registration or make_registration(stub),
        received_at=now,
        expires_at=now + timedelta(hours=10),
        scope=scope,
        scope_granted=scope,
        patient_id="p1",
    )
    grant.set_tokens(access_token="a" * 43, refresh_token="")
    grant.save()
    return grant


def _listen(**_values: Any) -> None:
    """A receiver, as a site has one that watches."""


def _repeat(read: Callable[[], Any]) -> Callable[[int], None]:
    def run_it(number: int) -> None:
        for _ in range(number):
            read()

    return run_it


def _make_readers(stub: Stub, grant: Any) -> dict[str, Callable[[], Any]]:
    import requests
    import urllib3
    from fhirclient.models.patient import Patient
    from fhirclient.server import FHIRServer
    from fhirpy import SyncFHIRClient

    from django_smart.clients import build_fhir_client

    url = f"{stub.base_url}/Patient/p1"
    headers = {
        "Authorization": f"Bearer {'a' * 43}",
        "Accept": "application/fhir+json",
    }
    session = requests.Session()
    session.headers.update(headers)
    pool = urllib3.PoolManager(headers=headers)
    fhir = build_fhir_client(grant)
    fhirclient = FHIRServer(None, base_uri=f"{stub.base_url}/")
    fhirclient.session.headers.update(headers)
    fhirpy = SyncFHIRClient(stub.base_url, authorization=headers["Authorization"])
    return {
        _BASE: lambda: session.get(url, timeout=20).json(),
        "urllib3 + json (the limit)": lambda: json.loads(
            pool.request("GET", url, timeout=20).data
        ),
        _OURS: lambda: fhir.read("Patient", "p1"),
        "fhirclient": lambda: Patient.read("p1", fhirclient),
        "fhirpy": lambda: fhirpy.get("Patient", "p1"),
        "requests.get": lambda: requests.get(url, headers=headers, timeout=20).json(),
    }


def _count_connections(report: Report, stub: Stub, grant: Any) -> None:
    """As many web requests do: a client of its own in each, on a few threads."""
    from django.db import close_old_connections

    from django_smart import transport
    from django_smart.clients import build_fhir_client

    transport.close()
    stub.take_counts()
    # Loaded once: in memory, SQLite has a database for each thread.
    _ = grant.access_token, grant.registration.server.base_url

    def handle(_number: int) -> None:
        build_fhir_client(grant).read("Patient", "p1")
        close_old_connections()

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(handle, range(_CLIENTS)))
    counts = stub.take_counts()
    assert counts["/fhir/Patient/p1"] == _CLIENTS
    report.check(
        "connections",
        f"connections of {_THREADS} threads over {_CLIENTS} web requests",
        counts["connections"],
        at_most=_THREADS,
    )
