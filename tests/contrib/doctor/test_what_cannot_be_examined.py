"""What keeps the doctor from looking is a finding with its reason, and no traceback."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from django_smart.contrib.doctor import examine
from django_smart.models import SigningKey
from tests.contrib.doctor.conftest import World

ROOT = Path(__file__).parents[3]
SETTINGS = """
SECRET_KEY = "x" * 50
ROOT_URLCONF = "urls"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
SMART_SITE_URL = "https://127.0.0.1:1"
INSTALLED_APPS = [
    "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions",
    "django_smart",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
MIDDLEWARE = [
    "django_smart.middleware.SMARTMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "django_smart.backends.SMARTAuthenticationBackend",
]
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
]
"""
URLS = """
from django.urls import include, path
urlpatterns = [path("smart/", include("django_smart.urls"))]
"""


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small site after ``migrate``."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "settings.py").write_text(SETTINGS)
    (folder / "urls.py").write_text(URLS)
    ran = manage(folder, "migrate")
    assert ran.returncode == 0, ran.stderr
    return folder


def manage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "django", *arguments, "--settings=settings"],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def copy(migrated: Path, folder: Path, more: str = "") -> Path:
    (folder / "settings.py").write_text(SETTINGS + more)
    (folder / "urls.py").write_text(URLS)
    (folder / "db.sqlite3").write_bytes((migrated / "db.sqlite3").read_bytes())
    return folder


def doctor(folder: Path) -> dict[str, str]:
    """What the doctor finds in a process of its own: text by code."""
    ran = manage(folder, "smart_doctor", "--json", "--launch")
    assert "Traceback" not in ran.stderr, ran.stderr
    assert ran.returncode == 1
    return {each["code"]: each["what"] for each in json.loads(ran.stdout)["findings"]}


def test_database_without_tables_is_named_and_nothing_is_registered_in_it(
    migrated: Path, tmp_path: Path
) -> None:
    copy(migrated, tmp_path)
    (tmp_path / "db.sqlite3").unlink()
    assert "django_smart.0001_initial" in doctor(tmp_path)["migrations_missing"]
    ran = manage(
        tmp_path,
        *("smart_register", "--base-url", "https://ehr.example.org", "--client-id=a"),
        *("--token-endpoint-auth-method=none", "--ehr-scope=patient/Patient.rs"),
    )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert "manage.py migrate" in ran.stderr


def test_site_that_can_store_nothing_is_not_launched(
    migrated: Path, tmp_path: Path
) -> None:
    found = doctor(
        copy(
            migrated,
            tmp_path,
            "DATABASES['default']['NAME'] = 'file:db.sqlite3?mode=ro'; "
            "DATABASES['default']['OPTIONS'] = {'uri': True}",
        )
    )
    assert "database_read_only" in found
    assert "launch" not in found.get("not_examined", "")


def test_half_of_a_migration_is_named(migrated: Path, tmp_path: Path) -> None:
    copy(migrated, tmp_path)
    with sqlite3.connect(tmp_path / "db.sqlite3") as database:
        database.execute("ALTER TABLE django_smart_fhirserver DROP COLUMN paused")
    assert "django_smart_fhirserver" in doctor(tmp_path)["migrations_missing"]


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("USE_TZ = False", "django_smart.E025"),
        ("SMART_LAUNCH_LIFETIME = '60'", "django_smart.E001"),
        ("SMART_ENCRYPTION_KEYS = 'abc'", "django_smart.E001"),
        (
            "DATABASES['default']['NAME'] = 'file:db.sqlite3?mode=ro'; "
            "DATABASES['default']['OPTIONS'] = {'uri': True}",
            "database_read_only",
        ),
        ("DATABASES['default']['NAME'] = '/nowhere/db'", "database_unusable"),
        ("SMART_SITE_URL = 'app.example.org'", "django_smart.E001"),
        ("ALLOWED_HOSTS = ['www.example.org']", "django_smart.W038"),
        ("del MIDDLEWARE[1]", "django_smart.E023"),
        ("MIDDLEWARE.reverse()", "django_smart.E023"),
        ("del INSTALLED_APPS[2]", "django_smart.E022"),
        ("MIDDLEWARE.append('no.such.middleware')", "not_examined"),
        ("ROOT_URLCONF = 'no_such_urls'", "not_examined"),
        ("TEMPLATES = []", "django_smart.E026"),
    ],
)
def test_site_that_is_broken_is_told_what_is_wrong(
    migrated: Path, tmp_path: Path, setting: str, code: str
) -> None:
    assert code in doctor(copy(migrated, tmp_path, setting))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMART_LAUNCH_LIFETIME", "60"),
        ("SMART_KEY_ROTATION", "never"),
        ("SMART_HTTP_TIMEOUT", "soon"),
        ("SMART_INSECURE_HTTP_HOSTS", 1),
        ("USE_TZ", False),
    ],
)
def test_wrong_setting_does_not_stop_the_rest(
    world: World, name: str, value: Any
) -> None:
    world.sign()
    SigningKey.objects.all().delete()
    world.site.content = b"<h1>Welcome to nginx</h1>"
    setattr(world.settings, name, value)
    findings = examine([world.server])
    codes = {each.code for each in findings}
    assert any(each.startswith("django_smart.E") for each in codes)
    assert codes & {"credentials_unusable", "not_examined"}
    assert all(each.what for each in findings)


@pytest.mark.django_db
def test_reason_names_no_secret(world: World) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("access_token=not-for-anybody")

    world.ehr.interceptors.append(fail)
    world.settings.SMART_LAUNCH_LIFETIME = "access_token=not-for-anybody"
    found = [each.to_json() for each in examine([world.server])]
    assert "not-for-anybody" not in json.dumps(
        [each for each in found if not each["code"].startswith("django_smart.")]
    )
