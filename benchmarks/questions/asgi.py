"""A page with five FHIR reads and fifty users: uvicorn, gunicorn and httpx."""

from __future__ import annotations

import json
import random
import tempfile
import urllib.request
from statistics import quantiles

from benchmarks.harness import SEED, Report
from benchmarks.questions.launches import _running
from benchmarks.setting_up import LoginDriver, configure, make_registration
from benchmarks.stub import running_stub
from benchmarks.visits import Visit, apply_visits

__all__ = ["TEXT", "run"]

TEXT = """
Fifty users open a page of their launch again and again; it reads five resources, and the EHR takes 50 ms for each.
One process of uvicorn and one of gunicorn with fifty threads serve it; async views read all five at once, sync views one after the other.
``httpx.AsyncClient`` sends the same token from the same view, without checks and limits.
A task on the event loop sleeps for 10 ms again and again; a stall is the time that it oversleeps.
"""

_BASE = "httpx.AsyncClient, uvicorn"
_OURS = "django_smart, async, uvicorn"
_THREADS = "django_smart, sync, gunicorn"
_PAGES = {
    _BASE: "five/httpx",
    _OURS: "five/async-client",
    "django_smart, sync, uvicorn": "five/client",
    _THREADS: "five/client",
}
_USERS = 50
_UVICORN = (
    *("uvicorn", "benchmarks.site.asgi:application", "--port", "{port}"),
    *("--lifespan", "off", "--log-level", "warning"),
)
_GUNICORN = (
    *("gunicorn", "benchmarks.site.wsgi", "--bind", "127.0.0.1:{port}"),
    *("--threads", str(_USERS), "--keep-alive", "5"),
)


def run(report: Report) -> None:
    """Measure."""
    users = report.size(_USERS, smoke=5)
    number = 3 * users
    times: dict[str, list[float | None]] = {name: [] for name in _PAGES}
    pages: dict[str, list[float]] = {name: [] for name in _PAGES}
    stalls: dict[str, list[float]] = {name: [] for name in _PAGES}
    chance = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder, running_stub() as stub:
        configure(stub=stub, name=f"{folder}/site.sqlite3")
        make_registration(stub, server__base_url=f"{stub.origin}/delay-50/fhir")
        landings = _sign_in(users)
        with (
            _running(folder, "ours", _UVICORN) as uvicorn,
            _running(folder, "ours", _GUNICORN) as gunicorn,
        ):
            for round_number in range(report.rounds(8) + 1):
                order = list(_PAGES)
                chance.shuffle(order)
                for name in order:
                    visits = [
                        (path.replace("plain", _PAGES[name]), cookies)
                        for path, cookies in landings
                    ]
                    port = gunicorn if name == _THREADS else uvicorn
                    _take_stalls(uvicorn)
                    answer = apply_visits(port, visits, pages=number)
                    late = _take_stalls(uvicorn)
                    if round_number:  # the first one is to get warm
                        taken = answer["taken"] / number
                        times[name].append(float(f"{taken:.5g}"))
                        pages[name] += answer["each"]
                        stalls[name] += late
    report.add_table(
        "page", "A page, fifty users", times, base=_BASE, operations=number, unit="page"
    )
    for name in _PAGES:
        rate = len(times[name]) / sum(each or 0 for each in times[name])
        report.facts[f"{name}: pages a second, p50, p99"] = (
            f"{rate:.0f}, {_percentile(pages[name], 50):.0f} ms, "
            f"{_percentile(pages[name], 99):.0f} ms"
        )
        if name != _THREADS:
            report.facts[f"{name}: stalls, p99"] = (
                f"{_percentile(stalls[name], 99):.0f} ms"
            )
    for key, base, least in (("of-httpx", _BASE, 1.0), ("of-threads", _THREADS, 0.9)):
        report.check_ratio(
            key,
            f"pages a second, over those of {base}",
            name=_OURS,
            base=base,
            at_least=least,
            inverse=True,
        )
    report.check(
        "p99",
        "99th percentile of a page, over that with httpx.AsyncClient",
        _percentile(pages[_OURS], 99) / _percentile(pages[_BASE], 99),
        at_most=1.1,
    )
    report.check(
        "stalls",
        "99th percentile of the event loop's stalls",
        _percentile(stalls[_OURS], 99),
        at_most=50,
        unit="ms",
    )


def _percentile(seconds: list[float], number: int) -> float:
    """In milliseconds."""
    return 1000 * quantiles(seconds, n=100)[number - 1]


def _sign_in(users: int) -> list[Visit]:
    """The first page of each user's launch, and their cookies."""
    driver = LoginDriver(
        "/smart/login/?server=stub", "/smart/callback/", middleware="ours"
    )
    visits = []
    for _ in range(users):
        browser = driver.browser()
        path = driver.sign_in(browser)["Location"]
        cookies = {name: each.value for name, each in browser.cookies.items()}
        visits.append((path, cookies))
    return visits


def _take_stalls(port: int) -> list[float]:
    """By how many seconds the event loop was late, each time since this was asked."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stalls/") as answer:
        stalls: list[float] = json.load(answer)
    return stalls
