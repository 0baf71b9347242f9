"""The page on testing an app, run as a site's own tests in a project of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import read_blocks

_ROOT = Path(__file__).resolve().parents[2]
_SETTINGS = """
SECRET_KEY = "only for this test"
ROOT_URLCONF = "clinic"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django_smart",
]
MIDDLEWARE = [
    "django_smart.middleware.SMARTMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
AUTHENTICATION_BACKENDS = ["django_smart.backends.SMARTAuthenticationBackend"]
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
]
SMART_SITE_URL = "https://app.example.org"
CELERY_TASK_ALWAYS_EAGER = True
"""


@pytest.mark.process
def test_tests_of_the_page_pass(tmp_path: Path) -> None:
    views, plugin, *tests = [
        block.code
        for block in read_blocks("how-to/test-your-app.rst")
        if block.language == "python"
    ]
    (tmp_path / "clinic_settings.py").write_text(_SETTINGS)
    (tmp_path / "clinic.py").write_text(views)
    (tmp_path / "conftest.py").write_text(plugin)
    (tmp_path / "test_clinic.py").write_text(
        "import pytest\n\npytestmark = pytest.mark.django_db\n\n" + "\n\n".join(tests)
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "COV_", "COVERAGE_", "DATABASE_URL"))
    }
    done = subprocess.run(
        [*(sys.executable, "-W", "error", "-m", "pytest"), "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment
        | {"DJANGO_SETTINGS_MODULE": "clinic_settings", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout
