"""What the package adds to the start of a project, and to its first request."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Report, Variant, measure

__all__ = ["TEXT", "run"]

TEXT = """
A process sets Django up, as each command does; a web process then also loads middleware and URLs.
Python's own start is part of both.
The first request to a process is compared with the second one for the same page: a page of the site that uses ``request.user`` and, with the package, ``request.smart``; and the package's sign-in page.
"""

_WITHOUT = "without the package"
_WITH = "with the package"
_SIGN_IN = "with the package, its sign-in page"
_APPS = ["auth", "contenttypes", "messages", "sessions"]
_MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
_SETUP = """
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS={apps!r},
    MIDDLEWARE={middleware!r},
    ROOT_URLCONF={urls!r},
    SECRET_KEY="x" * 50,
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}}}}},
    TEMPLATES=[
        {{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}}
    ],
)
django.setup()
"""
_LOAD = """
from django.core.handlers.wsgi import WSGIHandler
from django.urls import get_resolver

WSGIHandler()
get_resolver().url_patterns
"""
_MIGRATE = """
from django.core.management import call_command

call_command("migrate", verbosity=0)
"""
# Its URLconf is the program itself.
_ASK = """
import sys
from time import perf_counter
from wsgiref.util import setup_testing_defaults

from django.apps import apps
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import include, path


def page(request):
    is_launched = bool(getattr(request, "smart", None))
    return HttpResponse(f"{request.user} {is_launched}")


urlpatterns = [path("", page)]
if apps.is_installed("django_smart"):
    urlpatterns.append(path("smart/", include("django_smart.urls")))
handler = WSGIHandler()


def ask(url):
    environ = {"PATH_INFO": url}
    setup_testing_defaults(environ)
    started = perf_counter()
    answer = handler(environ, lambda status, headers: None)
    body = b"".join(answer)
    assert answer.status_code == 200, body
    answer.close()
    return perf_counter() - started


print(ask(sys.argv[1]) - ask(sys.argv[1]))
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
    setups = {name: _write_setup(name) for name in (_WITHOUT, _WITH)}
    for key, title, further, limit in (
        ("setup", "django.setup()", "", 1.6),
        ("start", "Start of a web process", _LOAD, 2.3),
    ):
        times = measure(
            [
                Variant(name=name, run=_start(setup + further))
                for name, setup in setups.items()
            ],
            rounds=report.rounds(20),
            operations=1,
        )
        report.add_table(key, title, times, base=_WITHOUT, operations=1, unit="start")
        report.check_ratio(
            key,
            f"{title}, of without the package",
            name=_WITH,
            base=_WITHOUT,
            at_most=limit,
        )
    _look_at_first_requests(report)
    _look_at_imports(report, setups[_WITH] + _LOAD)


def _write_setup(name: str, *, urls: str = "", database: str = ":memory:") -> str:
    apps = [f"django.contrib.{app}" for app in _APPS]
    if name == _WITHOUT:
        middleware = _MIDDLEWARE
        urls = urls or "django.contrib.auth.urls"
    else:
        apps.append("django_smart")
        middleware = ["django_smart.middleware.SMARTMiddleware", *_MIDDLEWARE]
        urls = urls or "django_smart.urls"
    return _SETUP.format(apps=apps, middleware=middleware, urls=urls, database=database)


def _start(program: str) -> Callable[[int], None]:
    def run_it(number: int) -> None:
        for _ in range(number):
            _run(program)

    return run_it


def _run(program: str, *arguments: str) -> str:
    # Modules are compiled once, as those of an installed package are.
    kept = {
        key: value
        for key, value in os.environ.items()
        if key != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env=kept,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def _look_at_first_requests(report: Report) -> None:
    """How much longer a process takes for its first request than for its second."""
    further: dict[str, list[float]] = {_WITHOUT: [], _WITH: [], _SIGN_IN: []}
    with tempfile.TemporaryDirectory() as folder:
        setups = {}
        for name in further:
            database = str(Path(folder, name))
            setups[name] = _write_setup(name, urls="__main__", database=database)
            _run(setups[name] + _MIGRATE)
        for _ in range(report.rounds(15)):
            for name, found in further.items():
                url = "/smart/login/" if name == _SIGN_IN else "/"
                found.append(float(_run(setups[name] + _ASK, url)))
    medians = {name: statistics.median(found) * 1000 for name, found in further.items()}
    for key, what, name in (
        ("first-page", "the first request for a page, over the second", _WITH),
        ("first-sign-in", "the same, for the sign-in page", _SIGN_IN),
    ):
        report.check(key, what, medians[name], at_most=50, unit="ms")
    report.facts["first request over the second, without the package (ms)"] = (
        f"{medians[_WITHOUT]:.1f}"
    )


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
