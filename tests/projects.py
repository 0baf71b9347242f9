"""Django projects that tests make and run, and a person who opens them from the EHR."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

import requests

from tests.known import PATIENT
from tests.processes import stop, wait_for

__all__ = ["build_environment", "launch_from_ehr", "run", "running", "start"]


def run(*command: str | Path, cwd: Path) -> str:
    """Run *command* to its end; returns what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=build_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def running(url: str, *command: str | Path, cwd: Path) -> Iterator[None]:
    """Run *command* until the block ends; it begins when *url* answers."""
    process = start(*command, cwd=cwd)
    try:
        wait_for(lambda: _answers(url), what=f"{url}: {(cwd / 'log').read_text()}")
        yield
    finally:
        stop(process)


def start(*command: str | Path, cwd: Path) -> subprocess.Popen[bytes]:
    """Start *command*, whose output goes to the file ``log``; end it with ``stop``."""
    with (cwd / "log").open("a") as log:
        return subprocess.Popen(
            list(map(str, command)),
            cwd=cwd,
            env=build_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def launch_from_ehr(browser: requests.Session, ehr: str) -> requests.Response:
    """From the EHR's first page to the app's, by the forms a person would use."""
    start = browser.get(ehr)
    charts = browser.post(
        urljoin(ehr, "/sign-in"),
        {
            "csrf_token": _field(start, "csrf_token"),
            "next": _field(start, "next"),
            "user": re.findall(r'value="(Practitioner/[^"]+)"', start.text)[0],
        },
    )
    assert charts.ok, charts.text
    chart = browser.get(urljoin(ehr, f"/chart/{PATIENT}"))
    consent = browser.post(
        urljoin(ehr, f"/chart/{PATIENT}/open"),
        {"csrf_token": _field(chart, "csrf_token"), "app": _field(chart, "app")},
    )
    return browser.post(
        consent.url,
        {"csrf_token": _field(consent, "csrf_token"), "decision": "approve"},
    )


def build_environment() -> dict[str, str]:
    """Nothing of this test run's own: not its settings, not its path."""
    left_out = {"DJANGO_SETTINGS_MODULE", "PYTHONPATH", "DATABASE_URL"}
    return {name: text for name, text in os.environ.items() if name not in left_out}


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code < 500
    except requests.RequestException:
        return False


def _field(page: requests.Response, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page.text)
    assert found, page.text
    return found[1].replace("&amp;", "&")
