"""What a web process loads at its start, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django_smart",
    ],
    MIDDLEWARE=["django_smart.middleware.SMARTMiddleware"],
    ROOT_URLCONF="django_smart.urls",
    SECRET_KEY="x" * 50,
)
django.setup()
from django.core.handlers.wsgi import WSGIHandler
from django.urls import get_resolver

WSGIHandler()
assert get_resolver().url_patterns
print(*sorted(sys.modules))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Modules of a web process that has answered nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name",
    [
        "celery",
        "django.contrib.admin",
        "django_smart.checks.structure",
        "django_smart.tasks",
        "django_smart.testing",
        "fhirclient",
        "fhirpy",
        "ijson",
        "pytest",
        "rest_framework",
    ],
)
def test_web_process_loads_nothing_it_has_no_use_for_yet(loaded, name):
    assert "django_smart.views.launches" in loaded
    assert name not in loaded
