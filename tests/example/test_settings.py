"""The settings of the example, read from an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.processes import get_free_port, stop

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = [
    *("DEBUG", "SECRET_KEY", "ALLOWED_HOSTS", "SMART_INSECURE_HTTP_HOSTS"),
    "SMART_PRIVATE_HOSTS",
    *("SMART_SITE_URL", "SMART_ENCRYPTION_KEYS", "DATABASES", "CACHES"),
    *("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "CSRF_TRUSTED_ORIGINS"),
    "CELERY_BROKER_URL",
]
PRINT = (
    "import json, sys; from django.conf import settings; "
    "print(json.dumps({n: getattr(settings, n) for n in sys.argv[1:]}, default=str))"
)


def environment(**variables):
    """Only what a program needs to start, and *variables*."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"DJANGO_SETTINGS_MODULE": "example_project.settings"} | variables


def run(*arguments, **variables):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


def read(**variables):
    """Return the settings as they are with these environment variables."""
    result = run("-c", PRINT, *NAMES, **variables)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_without_a_secret_key_the_site_does_not_start():
    result = run("-c", PRINT, *NAMES)
    assert result.returncode != 0
    assert "Set SECRET_KEY in the environment, or DEBUG=1." in result.stderr


def test_the_defaults_are_safe():
    settings = read(SECRET_KEY="$ecret")
    assert settings["SECRET_KEY"] == "$ecret"
    assert settings["DEBUG"] is False
    assert settings["ALLOWED_HOSTS"] == []
    assert settings["SMART_INSECURE_HTTP_HOSTS"] == []
    assert settings["SESSION_COOKIE_SECURE"] is False
    assert settings["CSRF_COOKIE_SECURE"] is False
    assert settings["CELERY_BROKER_URL"] == "filesystem://"
    database = settings["DATABASES"]["default"]
    assert database["ENGINE"] == "django.db.backends.sqlite3"
    assert database["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert database["OPTIONS"]["timeout"] == 20
    assert "journal_mode=WAL" in database["OPTIONS"]["init_command"]


def test_while_developing_loopback_is_enough():
    settings = read(DEBUG="1", ALLOWED_HOSTS="dev.example.org")
    loopback = ["localhost", "127.0.0.1", "[::1]"]
    assert settings["SECRET_KEY"]
    assert settings["ALLOWED_HOSTS"] == ["dev.example.org", *loopback]
    assert settings["SMART_INSECURE_HTTP_HOSTS"] == ["localhost", "127.0.0.1", "::1"]


def test_everything_can_be_named():
    settings = read(
        SECRET_KEY="x",
        ALLOWED_HOSTS="app.example.org, www.example.org,",
        SMART_INSECURE_HTTP_HOSTS="ehr.test",
        SMART_PRIVATE_HOSTS="ehr.internal, login.internal",
        SMART_SITE_URL="https://app.example.org/",
        DATABASE_URL="postgres://app:pw@db.example.org:5432/app",
        CACHE_URL="redis://cache.example.org:6379/1",
        CELERY_BROKER_URL="redis://cache.example.org:6379/2",
        SMART_ENCRYPTION_KEYS="a,b",
    )
    assert settings["ALLOWED_HOSTS"] == ["app.example.org", "www.example.org"]
    assert settings["SMART_INSECURE_HTTP_HOSTS"] == ["ehr.test"]
    assert settings["SMART_PRIVATE_HOSTS"] == ["ehr.internal", "login.internal"]
    assert settings["SESSION_COOKIE_SECURE"] is True
    assert settings["CSRF_COOKIE_SECURE"] is True
    assert settings["CSRF_TRUSTED_ORIGINS"] == ["https://app.example.org"]
    assert settings["DATABASES"]["default"]["NAME"] == "app"
    assert "transaction_mode" not in settings["DATABASES"]["default"]["OPTIONS"]
    assert "redis" in settings["CACHES"]["default"]["BACKEND"].lower()
    assert settings["CELERY_BROKER_URL"] == "redis://cache.example.org:6379/2"
    assert settings["SMART_ENCRYPTION_KEYS"] == ["a", "b"]


def test_the_sqlite_file_of_a_url_gets_the_same_options(tmp_path):
    settings = read(SECRET_KEY="x", DATABASE_URL=f"sqlite:///{tmp_path}/a.sqlite3")
    assert settings["DATABASES"]["default"]["OPTIONS"]["timeout"] == 20


@pytest.mark.parametrize(("debug", "age"), [("0", 60), ("1", 0)])
def test_connections_are_kept_where_threads_are(debug, age):
    values = read(
        SECRET_KEY="x", DEBUG=debug, DATABASE_URL="postgres://smart@127.0.0.1/smart"
    )
    assert values["DATABASES"]["default"]["CONN_MAX_AGE"] == age


def test_the_site_passes_djangos_checks(tmp_path):
    result = run(
        "manage.py",
        "check",
        "--fail-level",
        "WARNING",
        DEBUG="1",
        DATABASE_URL=f"sqlite:///{tmp_path}/a.sqlite3",
    )
    assert result.returncode == 0, result.stderr


def fetch(url):
    """Return status, headers and body; waits for the server to start."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer")


@pytest.mark.parametrize(
    ("server", "variables"),
    [
        (["manage.py", "runserver", "--noreload", "{address}"], {"DEBUG": "1"}),
        (["manage.py", "runserver", "--noreload", "{address}"], {}),
        (["-m", "gunicorn", "-b", "{address}", "example_project.wsgi"], {"DEBUG": "1"}),
        (["-m", "gunicorn", "-b", "{address}", "example_project.wsgi"], {}),
    ],
    ids=["runserver-debug", "runserver", "gunicorn-debug", "gunicorn"],
)
def test_pages_and_static_files_come_in_every_server(server, variables, tmp_path):
    address = f"127.0.0.1:{get_free_port()}"
    process = subprocess.Popen(
        [sys.executable, *(part.format(address=address) for part in server)],
        cwd=ROOT,
        env=environment(
            SECRET_KEY="x" * 60,
            ALLOWED_HOSTS="127.0.0.1",
            DATABASE_URL=f"sqlite:///{tmp_path}/site.sqlite3",
            **variables,
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        status, headers, page = fetch(f"http://{address}/")
        assert status == 200
        assert b"/static/example/example.css" in page
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        for path in ("example/example.css", "example/hba1c.js", "admin/css/base.css"):
            assert fetch(f"http://{address}/static/{path}")[0] == 200
        assert fetch(f"http://{address}/status.json")[0] == 200
        assert fetch(f"http://{address}/no/such/page")[0] == 404
    finally:
        stop(process)
