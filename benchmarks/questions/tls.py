"""FHIR reads, pages, logins and refreshes over TLS, next to the same over plain HTTP."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness import Report, Variant, compare, measure
from benchmarks.questions import fhir_pages, fhir_read, login, refresh
from benchmarks.setting_up import LoginDriver, configured, make_registration
from benchmarks.stub import PAGE, Stub, running_stub

__all__ = ["TEXT", "run", "trusted_certificate"]

TEXT = """
The work of other questions, in the same rounds over plain HTTP and over TLS 1.3.
The ratio to the same alternative must not be higher over TLS, where opening a connection costs more.
Handshakes are counted at the server, with no connection open at first.
"""

_OVER_TLS = ", TLS"
_REQUESTS = 1000
# Each run opens up to 32 connections, which this many refreshes share.
_REFRESHES = 2000

#: Base and ours.
_Pair = tuple[Variant, Variant]


def run(report: Report) -> None:
    """Measure."""
    with (
        trusted_certificate() as certificate,
        running_stub() as plain,
        running_stub(certificate=certificate) as tls,
        refresh._own_queue(),
        configured("postgresql", stub=plain),
        ExitStack() as stack,
    ):
        registrations = {
            plain: make_registration(plain),
            tls: make_registration(
                tls,
                server__slug="tls",
                redirect_uri="http://127.0.0.1/smart/callback/tls/",
            ),
        }

        def compare(
            what: str, make: Callable[[Stub, Any], _Pair], **sizes: Any
        ) -> None:
            pairs = [make(*each) for each in registrations.items()]
            _compare(report, tls, what, *pairs, **sizes)

        compare("read", _make_reads, rounds=40, number=20)
        compare("page", _make_pages, rounds=40, number=10)
        compare("login", _make_logins, rounds=40, number=10)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        from benchmarks.worker import running_worker

        stack.enter_context(running_worker(folder, concurrency=2))
        compare(
            "refresh",
            lambda stub, registration: _make_refreshes(stub, registration, stack),
            rounds=5,
            number=report.size(_REFRESHES, smoke=40),
            connections=32,
        )


@contextmanager
def trusted_certificate() -> Iterator[str]:
    """Yield the path of a certificate that this process and its children trust."""
    import trustme

    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder:
        trusted, own = Path(folder, "ca.pem"), Path(folder, "own.pem")
        authority.cert_pem.write_to_path(trusted)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(own)
        # Of requests, and of the standard library.
        names = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
        os.environ |= dict.fromkeys(names, str(trusted))
        yield str(own)


def _make_reads(stub: Stub, registration: Any) -> _Pair:
    grant = fhir_read._make_grant(stub, registration=registration)
    readers = fhir_read._make_readers(stub, grant)
    names = (fhir_read._BASE, fhir_read._OURS)
    base, ours = (
        Variant(name=name, run=fhir_read._repeat(readers[name])) for name in names
    )
    return base, ours


def _make_pages(stub: Stub, registration: Any) -> _Pair:
    total = 10 * PAGE
    grant = fhir_read._make_grant(stub, registration=registration)
    streams = fhir_pages._make_streams(stub, grant, total)
    fhir_pages._fill(stub, total)
    names = (fhir_pages._BASE, fhir_pages._OURS)
    base, ours = (
        Variant(name=name, run=fhir_pages._take_pages(streams[name])) for name in names
    )
    return base, ours


def _make_logins(stub: Stub, registration: Any) -> _Pair:
    from benchmarks import settings

    def use(_number: int) -> None:
        settings.STUB = stub.origin

    by_hand = LoginDriver("/by-hand/login/", "/by-hand/callback/", middleware="plain")
    ours = LoginDriver(
        f"/smart/login/?server={registration.server.slug}",
        urlsplit(registration.redirect_uri).path,
        middleware="ours",
    )
    return (
        Variant(name=login._BASE, run=by_hand.run, prepare=use),
        Variant(name=login._OURS, run=ours.run),
    )


def _make_refreshes(stub: Stub, registration: Any, stack: ExitStack) -> _Pair:
    grants = refresh.Grants(registration, stub, _REFRESHES)
    grants.set_delay(5)
    pool = stack.enter_context(refresh._HTTPPool(grants.endpoint, 32))
    return (
        Variant(name=refresh._HTTP, run=pool.run),
        Variant(
            name=refresh._OURS, run=grants.refresh, prepare=grants.make_due_for_beat
        ),
    )


def _compare(
    report: Report,
    tls: Stub,
    what: str,
    plain: _Pair,
    over_tls: _Pair,
    *,
    rounds: int,
    number: int,
    connections: int = 1,
) -> None:
    base = plain[0]
    encrypted = [replace(each, name=each.name + _OVER_TLS) for each in over_tls]
    times = measure(
        [*plain, *encrypted], rounds=report.rounds(rounds), operations=number
    )
    title = f"A {what}, over plain HTTP and over TLS"
    report.add_table(what, title, times, base=base.name, operations=number, unit=what)
    ratios = [
        compare(times, way.name, other.name).median for other, way in (plain, encrypted)
    ]
    report.facts[f"{what}: ratio over plain HTTP, over TLS"] = ", ".join(
        f"{each:.2f}" for each in ratios
    )
    report.check(
        what,
        f"{what}: ratio over TLS, less the ratio over plain HTTP",
        ratios[1] - ratios[0],
        at_most=0.05,
    )
    report.check(
        f"{what}-handshakes",
        f"{what}: handshakes for 1,000 requests",
        _count_handshakes(tls, over_tls[1], report.size(_REQUESTS, smoke=40)),
        at_most=connections,
    )


def _count_handshakes(tls: Stub, way: Variant, number: int) -> float:
    from django_smart import transport

    transport.close()
    # Longer than a worker's connections are kept for token requests.
    sleep(4)
    if way.prepare is not None:
        way.prepare(number)
    tls.take_counts()
    way.run(number)
    counts = tls.take_counts()
    handshakes = counts.pop("connections", 0)
    return 1000 * handshakes / sum(counts.values())
