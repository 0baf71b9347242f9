"""Where and with what was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["describe"]

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = (
    "Django",
    "requests",
    "urllib3",
    "PyJWT",
    "cryptography",
    "celery",
    "psycopg",
    "mysqlclient",
    "gunicorn",
    "uvicorn",
    "httpx",
    "orjson",
    "Authlib",
    "django-allauth",
    "mozilla-django-oidc",
    "fhirclient",
    "fhirpy",
    "playwright",
    "matplotlib",
)


def describe(seed: int) -> dict[str, Any]:
    """Commit, machine, versions of all that took part, and the seed."""
    return {
        "commit": _get_commit(),
        "processor": _get_processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "seed": seed,
        "versions": {
            "Python": platform.python_version(),
            **{name: _get_version(name) for name in _PACKAGES},
            **_get_servers(),
        },
    }


def _get_commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    # What a run writes is no change of what it measures.
    changed = git("status", "--porcelain", "--", "django_smart", "benchmarks/*.py")
    return f"{commit}, with changes" if changed else commit


def _get_processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _get_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _get_servers() -> dict[str, str]:
    found = {}
    try:
        import psycopg

        with psycopg.connect(host="127.0.0.1", user="postgres") as connection:
            number = connection.info.server_version
        found["PostgreSQL"] = f"{number // 10000}.{number % 10000}"
    except Exception:  # noqa: BLE001 (a report says so, whatever the reason)
        found["PostgreSQL"] = "not there"
    try:
        import MySQLdb

        maria = MySQLdb.connect(host="127.0.0.1", user="root")
        found["MariaDB"] = maria.get_server_info().partition("-")[0]
        maria.close()
    except Exception:  # noqa: BLE001 (the report has a line for what is absent)
        found["MariaDB"] = "not there"
    import sqlite3

    found["SQLite"] = sqlite3.sqlite_version
    return found
