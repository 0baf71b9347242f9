"""What grows with the tables: ten times, a hundred times as many rows."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.questions.middleware import Page
from benchmarks.setting_up import LoginDriver, configured, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
What users and workers do, while the tables that it reads grow tenfold and a hundredfold, on PostgreSQL.
A flat line means that the cost does not depend on the number of rows.
"""

_GROWTH = (1, 10, 100)


def run(report: Report) -> None:
    """Measure."""
    lines: dict[str, list[list[float]]] = {}
    with running_stub() as stub, configured("postgresql", stub=stub):
        steps = _make_steps(stub, report.size(1000, smoke=10))
        actions = _make_actions(stub)
        have = dict.fromkeys(steps, 0)
        medians: dict[str, list[float]] = {name: [] for name in actions}
        for growth in _GROWTH if not report.is_smoke else _GROWTH[:2]:
            for name, (start, fill) in steps.items():
                fill(start * growth - have[name])
                have[name] = start * growth
            _analyze()
            times = measure(
                [
                    Variant(name=name, run=action, operations=number)
                    for name, (action, number) in actions.items()
                ],
                rounds=report.rounds(30),
                operations=10,
            )
            for name, values in times.items():
                known = sorted(each for each in values if each is not None)
                median = known[len(known) // 2]
                medians[name].append(median)
                lines.setdefault(name, []).append([growth, median * 1000])
        for name, found in medians.items():
            report.check(
                name,
                f"{name}: {_GROWTH[len(found) - 1]} times the rows, of the first",
                found[-1] / found[0],
            )
        report.facts["rows at first"] = ", ".join(
            f"{start:,} {name}" for name, (start, _) in steps.items()
        )
    report.add_plot(
        "growth",
        "Time of one, while the tables grow",
        x="times as many rows",
        y="milliseconds",
        lines=lines,
    )


_Fill = Callable[[int], None]


def _make_steps(stub: Any, start: int) -> dict[str, tuple[int, _Fill]]:
    from django.contrib.sessions.models import Session
    from django.utils import timezone

    from django_smart.models import FHIRServer, Launch, SigningKey
    from django_smart.protocol.jwk import (
        generate_private_key_pem,
        load_private_key,
        public_jwk,
    )

    registration = make_registration(stub)
    now = timezone.now()
    pem = generate_private_key_pem("ES384")
    jwk = public_jwk(load_private_key(pem))

    def fill_launches(number: int) -> None:
        Launch.objects.bulk_create(
            (
                Launch(
                    registration=registration,
                    kind="ehr",
                    status="open",
                    state_digest=secrets.token_hex(32),
                    nonce="",
                    browser_digest=secrets.token_hex(32),
                    key_digest=secrets.token_hex(32),
                    expires_at=now,
                    completed_at=now,
                    last_used_at=now,
                )
                for _ in range(number)
            ),
            5000,
        )

    def fill_sessions(number: int) -> None:
        Session.objects.bulk_create(
            (
                Session(
                    session_key=secrets.token_hex(16),
                    session_data="x" * 200,
                    expire_date=now + timedelta(days=14),
                )
                for _ in range(number)
            ),
            5000,
        )

    def fill_servers(number: int) -> None:
        FHIRServer.objects.bulk_create(
            FHIRServer(
                slug=secrets.token_hex(8),
                name="Another",
                base_url=f"https://{secrets.token_hex(8)}.example/fhir",
            )
            for _ in range(number)
        )

    def fill_keys(number: int) -> None:
        SigningKey.objects.bulk_create(
            SigningKey(
                kid=secrets.token_hex(8),
                algorithm="ES384",
                private_key="",
                public_jwk=jwk,
                status="removed",
            )
            for _ in range(number)
        )

    def fill(number: int) -> None:
        if number:
            fill_grants_further(number, registration)

    return {
        "grants": (start, fill),
        "launches": (start, fill_launches),
        "sessions": (start, fill_sessions),
        "servers": (max(start // 10, 1), fill_servers),
        "keys": (max(start // 100, 1), fill_keys),
    }


def fill_grants_further(number: int, registration: Any) -> None:
    """Grants that are not due."""
    from django.utils import timezone

    from django_smart.models import TokenGrant

    now = timezone.now()
    TokenGrant.objects.bulk_create(
        (
            TokenGrant(
                registration=registration,
                is_offline=True,
                received_at=now,
                expires_at=now + timedelta(hours=10),
                refresh_due_at=now + timedelta(hours=9, seconds=offset % 3600),
            )
            for offset in range(number)
        ),
        5000,
    )


def _make_actions(stub: Any) -> dict[str, tuple[Callable[[int], None], int]]:
    from django_smart.grants.engine import run_tick
    from django_smart.models import ClientRegistration, FHIRServer
    from django_smart.servers.http import build_client_authentication
    from django_smart.servers.signing_keys import create_signing_key

    create_signing_key("ES384")
    driver = LoginDriver(
        "/smart/login/?server=stub", "/smart/callback/", middleware="ours"
    )
    browser = driver.browser()
    landing = driver.sign_in(browser)["Location"]
    page = Page(driver, landing, browser)
    registration = ClientRegistration.objects.select_related("server").get()
    registration.token_endpoint_auth_method = "private_key_jwt"
    registration.signing_algorithm = "ES384"

    def repeat(action: Callable[[], Any]) -> Callable[[int], None]:
        def run_it(number: int) -> None:
            for _ in range(number):
                action()

        return run_it

    endpoint = f"{stub.origin}/token"
    return {
        "a login": (driver.run, 2),
        "a page under a prefix": (page.run, 10),
        "a tick of the beat": (repeat(lambda: run_tick(lambda _: None)), 10),
        "finding a server": (
            repeat(lambda: FHIRServer.objects.with_base_url(stub.base_url).get()),
            10,
        ),
        "a signing key and a signature": (
            repeat(
                lambda: build_client_authentication(
                    registration, token_endpoint=endpoint
                ).apply([], {}, endpoint=endpoint)
            ),
            10,
        ),
    }


def _analyze() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
