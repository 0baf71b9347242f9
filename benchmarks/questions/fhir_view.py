"""A page that uses ``request.smart.fhir``."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.questions.middleware import _make_pages
from benchmarks.setting_up import configure, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
A user opens a page under the prefix of their launch, and the page creates a client that is ready to send; nothing is sent.
It is compared with the same page using only ``request.user``, without the package's middleware and without a launch.
"""

_BASE = "request.user"
_OURS = "request.smart.fhir"


def run(report: Report) -> None:
    """Measure."""
    with running_stub() as stub:
        configure(stub=stub, PEERS="all")
        make_registration(stub)
        pages = _make_pages()
        base, ours = pages["plain-user"], pages["prefixed-fhir"]
        times = measure(
            [Variant(name=_BASE, run=base.run), Variant(name=_OURS, run=ours.run)],
            rounds=report.rounds(80),
            operations=50,
        )
        report.add_table(
            "view", "The page", times, base=_BASE, operations=50, unit="page"
        )
        report.check_ratio(
            "view", "of request.user", name=_OURS, base=_BASE, at_most=2.0
        )
        report.check(
            "queries",
            "queries more",
            ours.count_queries() - base.count_queries(),
            at_most=1,
        )
        report.check(
            "decryptions",
            "decryptions of one secret in a request that reads",
            _count_decryptions(ours),
            at_most=1,
        )


def _count_decryptions(page: Any) -> int:
    """The most that any one ciphertext is decrypted in one request that reads twice."""
    from collections import Counter

    from cryptography import fernet

    from benchmarks.site import views

    counts: Counter[bytes | str] = Counter()
    cipher: Any = fernet.MultiFernet
    decrypt = cipher.decrypt

    def count(self: Any, token: bytes | str, ttl: int | None = None) -> Any:
        counts[token] += 1
        return decrypt(self, token, ttl)

    views.READS = 2
    cipher.decrypt = count
    try:
        page.get()
    finally:
        cipher.decrypt = decrypt
        views.READS = 0
    assert counts
    return max(counts.values())
