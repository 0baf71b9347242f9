"""What a command and a web process load at their start, in a process of its own."""

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
print(*sorted(sys.modules))
from django.core.handlers.wsgi import WSGIHandler
from django.urls import get_resolver

WSGIHandler()
assert get_resolver().url_patterns
print(*sorted(sys.modules))
"""


@pytest.fixture(scope="module")
def outputs() -> list[set[str]]:
    """Modules after Django's setup, and of a web process that has answered nothing."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def set_up(outputs: list[set[str]]) -> set[str]:
    return outputs[0]


@pytest.fixture(scope="module")
def loaded(outputs: list[set[str]]) -> set[str]:
    return outputs[1]


@pytest.mark.parametrize(
    "name",
    [
        "django_smart.fhir",
        "django_smart.grants",
        "django_smart.launches",
        "django_smart.servers",
        "django_smart.transport",
        "jwt",
        "mozilla_django_oidc",
        "requests",
        "urllib3",
    ],
)
def test_command_loads_no_flow_and_no_http_client(set_up, loaded, name):
    assert name not in set_up
    # A web process loads it before the first request, which would have to wait.
    assert name in loaded


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
