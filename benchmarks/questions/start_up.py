"""What the package adds to the start of a project."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Report, Variant, measure

__all__ = ["TEXT", "run"]

TEXT = """
A process of its own sets Django up and loads the URLs, as each command, worker and web process does: with the package and without.
"""

_WITHOUT = "without the package"
_WITH = "with the package"
_APPS = ["auth", "contenttypes", "messages", "sessions"]
_PROGRAM = """
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS={apps!r},
    MIDDLEWARE={middleware!r},
    ROOT_URLCONF={urls!r},
    SECRET_KEY="x" * 50,
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
)
django.setup()
from django.core.handlers.wsgi import WSGIHandler
from django.urls import get_resolver

WSGIHandler()
get_resolver().url_patterns
"""
_PACKAGES = (
    "celery",
    "cryptography",
    "jwt",
    "mozilla_django_oidc",
    "requests",
    "urllib3",
)
_TOP = 8


def run(report: Report) -> None:
    """Measure."""
    apps = [f"django.contrib.{name}" for name in _APPS]
    middleware = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    urls = "django.contrib.auth.urls"
    programs = {
        _WITHOUT: _PROGRAM.format(apps=apps, middleware=middleware, urls=urls),
        _WITH: _PROGRAM.format(
            apps=[*apps, "django_smart"],
            middleware=["django_smart.middleware.SMARTMiddleware", *middleware],
            urls="django_smart.urls",
        ),
    }
    times = measure(
        [Variant(name=name, run=_start(program)) for name, program in programs.items()],
        rounds=report.rounds(30),
        operations=1,
    )
    report.add_table(
        "start", "Start-up", times, base=_WITHOUT, operations=1, unit="start"
    )
    report.check_ratio(
        "start", "of without the package", name=_WITH, base=_WITHOUT, at_most=2.3
    )
    _look_at_imports(report, programs[_WITH])


def _start(program: str) -> Callable[[int], None]:
    def run_it(number: int) -> None:
        for _ in range(number):
            subprocess.run(
                [sys.executable, "-W", "ignore", "-c", program],
                cwd=Path(__file__).resolve().parents[2],
                check=True,
            )

    return run_it


def _look_at_imports(report: Report, program: str) -> None:
    """What takes longest by itself, of what is imported beside Django."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    own: dict[str, int] = {}
    for spent, name in re.findall(
        r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)", done.stderr
    ):
        top = name.partition(".")[0]
        own[top] = own.get(top, 0) + int(spent)
    longest = sorted(own.items(), key=lambda item: -item[1])[:_TOP]
    report.facts["imports of all, by library (ms)"] = ", ".join(
        f"{name} {spent / 1000:.0f}" for name, spent in longest
    )
    report.facts["imported"] = ", ".join(name for name in _PACKAGES if name in own)
