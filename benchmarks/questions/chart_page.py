"""What a browser loads: the example's chart, and the package's own pages."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import Report

__all__ = ["TEXT", "run"]

TEXT = """
The example under gunicorn, in Chromium with an empty cache.
The EHR answers each request after 50 ms.
The chart page is opened by a user who launched the app before; the time is from the navigation to the drawn chart.
"""

_ROOT = Path(__file__).resolve().parents[2]
_NEEDED = ("environ", "gunicorn", "playwright", "whitenoise")
_DELAY = 0.05
_SCOPE = "openid fhirUser offline_access patient/Patient.rs patient/Observation.rs"
_CLIENT = {"client_id": "example", "client_secret": "a secret of the benchmark's"}
_CHART = "figure.plot:not([hidden]) canvas"
_PAGES = {
    "sign-in": "smart/login/",
    "refused launch": "smart/launch/?iss=https://unknown.example",
    "connections": "smart/connections/",
}
_BLOCKING = """
performance.getEntriesByType("resource").filter(
    (each) => each.initiatorType === "script" && each.renderBlockingStatus === "blocking"
).length
"""


def run(report: Report) -> None:
    """Measure."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if chromium is None or missing:
        report.facts["not measured"] = ", ".join(missing) or "there is no Chromium"
        return
    from playwright.sync_api import sync_playwright

    with _example() as (ehr, site), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking"],
        )
        state, chart = _launch(browser, ehr.origin)
        _measure_chart(report, browser, state, chart, ehr)
        _weigh_pages(report, browser, state, site)
        browser.close()


@contextmanager
def _example() -> Iterator[tuple[Any, str]]:
    """The EHR and the site, registered with each other; yields EHR and site URL."""
    from django_smart.testing import EHRSimulator

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    site = f"http://127.0.0.1:{port}/"
    ehr = EHRSimulator("https://ehr.example.org/r4/fhir")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(ehr.serve())
        ehr.register_client(
            _CLIENT["client_id"],
            client_secret=_CLIENT["client_secret"],
            redirect_uris=[f"{site}smart/callback/"],
            launch_url=f"{site}smart/launch/",
        )
        environment = os.environ | {
            "ALLOWED_HOSTS": "127.0.0.1",
            "CACHE_URL": "locmemcache://",
            "CELERY_BROKER_URL": "memory://",
            "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
            "DJANGO_SETTINGS_MODULE": "example_project.settings",
            "LOG_LEVEL": "ERROR",
            "SECRET_KEY": "for measuring alone: 0123456789 0123456789 0123456789",
            "SMART_INSECURE_HTTP_HOSTS": "127.0.0.1,localhost",
            "SMART_SITE_URL": site,
        }

        def python(*arguments: str) -> list[str]:
            return [sys.executable, "-W", "ignore", *arguments]

        for arguments in (
            ["migrate", "--verbosity", "0"],
            [
                "smart_register",
                *("--base-url", ehr.base_url, "--name", "EHR", "--slug", "ehr"),
                *("--client-id", _CLIENT["client_id"]),
                *("--client-secret", _CLIENT["client_secret"]),
                *("--ehr-scope", f"launch {_SCOPE}"),
                *("--standalone-scope", f"launch/patient {_SCOPE}"),
                *("--site-url", site),
            ],
        ):
            subprocess.run(
                python("manage.py", *arguments),
                cwd=_ROOT,
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        server = subprocess.Popen(
            python(
                *("-m", "gunicorn", "example_project.wsgi", "--threads", "4"),
                *("--bind", f"127.0.0.1:{port}", "--log-level", "error"),
            ),
            cwd=_ROOT,
            env=environment,
        )
        stack.callback(server.wait, 30)
        stack.callback(server.terminate)
        _wait_for(port)
        ehr.interceptors.append(_answer_late)
        yield ehr, site


def _answer_late(respond: Callable[[Any], Any], request: Any) -> Any:
    time.sleep(_DELAY)
    return respond(request)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _launch(browser: Any, ehr: str) -> tuple[Any, str]:
    """Open the app from the EHR; returns the browser's cookies and the chart's URL."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(ehr)
    page.get_by_role("button", name="Dr. Helena Brandvold").click()
    page.get_by_role("link", name="Marisol Jean Quillfeather").click()
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Open in new tab").click()
    app = opened.value
    app.get_by_role("button", name="Approve").click()
    app.wait_for_url("**/~*/patient/")
    app.wait_for_selector(_CHART)
    state, url = context.storage_state(), app.url
    context.close()
    return state, url


class _Visit:
    """A page in a context of its own, so that nothing is cached."""

    def __init__(self, browser: Any, state: Any, url: str, *, until: str = "") -> None:
        finished: list[Any] = []
        context = browser.new_context(storage_state=state)
        page = context.new_page()
        page.on("requestfinished", lambda request: finished.append(request))
        started = time.perf_counter()
        page.goto(url)
        if until:
            page.wait_for_selector(until)
        self.seconds = time.perf_counter() - started
        page.wait_for_load_state("networkidle")
        sizes = [each.sizes() for each in finished]
        self.requests = len(sizes)
        self.bytes = sum(
            each["responseHeadersSize"] + each["responseBodySize"] for each in sizes
        )
        self.blocking_scripts = page.evaluate(_BLOCKING)
        context.close()


def _measure_chart(
    report: Report, browser: Any, state: Any, url: str, ehr: Any
) -> None:
    visits = []
    for _ in range(report.rounds(15)):
        ehr.requests.clear()
        visits.append(_Visit(browser, state, url, until=_CHART))
    last = visits[-1]
    report.check("requests", "requests of the chart page", last.requests, at_most=12)
    report.check(
        "bytes",
        "bytes of the chart page, with the library that draws it",
        last.bytes / 1000,
        at_most=400,
        unit="kB",
    )
    report.check(
        "time",
        "from the navigation to the chart",
        statistics.median(each.seconds for each in visits) * 1000,
        at_most=1000,
        unit="ms",
    )
    report.facts["requests to the EHR for the chart page"] = len(ehr.requests)


def _weigh_pages(report: Report, browser: Any, state: Any, site: str) -> None:
    visits = {
        name: _Visit(browser, state, f"{site}{path}") for name, path in _PAGES.items()
    }
    report.check(
        "own-bytes",
        "the heaviest of the package's own pages, with all it loads",
        max(each.bytes for each in visits.values()) / 1000,
        at_most=30,
        unit="kB",
    )
    report.check(
        "own-scripts",
        "scripts that block the rendering of the package's own pages",
        sum(each.blocking_scripts for each in visits.values()),
        at_most=0,
    )
    report.facts["the package's own pages (kB)"] = ", ".join(
        f"{name} {each.bytes / 1000:.1f}" for name, each in visits.items()
    )
