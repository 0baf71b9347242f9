"""
The faults of the doctor's table, met as an operator meets them.

The site runs in production under gunicorn with TLS, the EHR listens on another port,
and ``smart_doctor`` is a process of its own.  ``SITE_PYTHON=…`` is the Python of an
environment into which a wheel with the extras ``testing`` and ``drf`` and gunicorn are
installed, to examine that.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from cryptography.fernet import Fernet

from django_smart.testing import EHRSimulator
from tests.contrib.doctor.faults import FAULTS as EVERY_FAULT
from tests.ehr import (
    BASE_URL,
    CLIENT_ID,
    CLIENT_SECRET,
    EHR_SCOPE,
    SITE,
    STANDALONE_SCOPE,
)
from tests.factories import register_at
from tests.processes import get_free_port, stop, wait_for
from tests.transport.conftest import certificate

__all__ = ["certificate"]

pytestmark = [pytest.mark.long, pytest.mark.process]

ROOT = Path(__file__).parents[3]
INSTALLED = os.environ.get("SITE_PYTHON", "")
PYTHON = INSTALLED or sys.executable
URLS = """
from django.contrib import admin
from django.http import HttpResponse
from django.urls import include, path
from django_smart.decorators import smart_required
@smart_required(scopes="patient/Patient.rs")
def show_chart(request):
    smart = request.smart
    return HttpResponse(smart.fhir.read("Patient", smart.patient_id)["id"])
urlpatterns = [
    path("chart/", show_chart, name="chart"),
    path("admin/", admin.site.urls),
    path("smart/", include("django_smart.urls")),
]
"""
API_URLS = """
from django.urls import include, path
from django_smart.decorators import smart_required
from rest_framework.decorators import api_view
from rest_framework.response import Response
@smart_required(scopes="patient/Patient.rs")
@api_view()
def show_patient(request):
    return Response(request.smart.fhir.read("Patient", request.smart.patient_id))
urlpatterns = [
    path("api/patient/", show_patient, name="patient"),
    path("api/auth/", include("rest_framework.urls")),
    path("smart/", include("django_smart.urls")),
]
"""
# What takes a proxy, a clock, a broker, a key or a second server that is not there.
ELSEWHERE = {
    "algorithm_not_offered",
    "broker_down",
    "callback_shared",
    "clock_off",
    "debug_on",
    "encryption_key_lost",
    "encryption_keys_derived",
    "issuer_of_another_server",
    "jwks_cached_too_long",
    "jwks_unreachable",
    "key_ending",
    "loopback_names",
    "proxy_header_missing",
    "secret_variable_unset",
    "ssl_redirect_without_tls",
    "token_endpoint_moved",
}
# Where the fault is in the database, what makes it there.
IN_DATABASE = {
    "authorization_endpoint_gone": "url = FHIRServer.objects.get().base_url; "
    "nothing = url.removesuffix('/fhir') + '/nothing'; "
    "FHIRServer.objects.update(overrides={'authorization_endpoint': nothing})",
    "base_url_wrong": "url = FHIRServer.objects.get().base_url; "
    "FHIRServer.objects.update(base_url=url + '/R5')",
    "grants_of_another_deployment": "from django_smart.grants.deployment import "
    "hold_grants; hold_grants()",
    "nobody_works": "TaskRun.objects.all().delete()",
    "server_down": "FHIRServer.objects.update(base_url='https://127.0.0.1:1/fhir')",
    "wrong_secret": "each = ClientRegistration.objects.get(); "
    "each.client_secret = 'not the secret'; each.save()",
}
FAULTS: dict[str, tuple[Any, str, str]] = {
    spoil.__name__: (spoil, codes[0], fix) for spoil, codes, fix in EVERY_FAULT
}
_PRINTED = re.compile(
    r"""^\ \ (?P<severity>[A-Z]+)\ (?P<code>\S+)\n
    \ {4}(?P<what>\S.*)\n
    \ {4}Why\ it\ matters:\ (?P<why>\S.*)\n
    \ {4}What\ to\ do:\ (?P<fix>\S.*)\n
    \ {4}See\ https:\S+$""",
    re.MULTILINE | re.VERBOSE,
)


class Site:
    """A site in a folder; ``settings`` are written before each process begins."""

    def __init__(self, folder: Path, ehr: EHRSimulator, authority: str) -> None:
        self.folder = folder
        self.ehr = ehr
        self.authority = authority
        self.port = get_free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.settings = SimpleNamespace(**build_settings(self.url, folder))
        self.server_environment: dict[str, str] = {}
        (folder / "urls.py").write_text(URLS)
        if INSTALLED:
            # Some faults name a module of the tests; the package is not beside them.
            (folder / "tests").symlink_to(ROOT / "tests")

    def set_server(self, **values: Any) -> None:
        self.shell(f"FHIRServer.objects.update(**{values!r})")

    def set_registration(self, **values: Any) -> None:
        self.shell(f"ClientRegistration.objects.update(**{values!r})")

    def shell(self, code: str) -> None:
        models = "ClientRegistration, FHIRServer, TaskRun"
        self.manage(
            "shell",
            "-c",
            f"import datetime\nfrom django_smart.models import {models}\n{code}",
        )

    def manage(self, *arguments: str) -> str:
        ran = self._run(*arguments)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self._write_settings()
        ran = subprocess.run(
            [PYTHON, "-m", "django", *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in ran.stderr, ran.stderr
        return ran

    def examine(self, *options: str) -> dict[str, str]:
        """What the doctor prints that is more than a note: what to do, by code."""
        ran = self._run("smart_doctor", "harbour", *options)
        found = [
            each.groupdict()
            for each in _PRINTED.finditer(ran.stdout)
            if each["severity"] != "NOTE"
        ]
        assert ran.returncode == int(any(e["severity"] == "ERROR" for e in found))
        return {each["code"]: each["fix"] for each in found}

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the web process; a site that cannot even start is examined too."""
        self._write_settings()
        key = Path(self.authority).with_name("key.pem")
        with (self.folder / "web.log").open("w") as log:
            process = subprocess.Popen(
                [
                    *(PYTHON, "-m", "gunicorn", "--threads", "4"),
                    *("--bind", f"127.0.0.1:{self.port}"),
                    *("--certfile", self.authority, "--keyfile", str(key)),
                    "django.core.wsgi:get_wsgi_application()",
                ],
                cwd=self.folder,
                env=self._environment | self.server_environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_for(
                lambda: process.poll() is not None or self._answers(), what=self.url
            )
            yield
        finally:
            stop(process)

    @property
    def _environment(self) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "settings",
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder) if INSTALLED else f"{self.folder}:{ROOT}",
            "REQUESTS_CA_BUNDLE": self.authority,
        }

    def _write_settings(self) -> None:
        lines = [f"{name} = {value!r}\n" for name, value in vars(self.settings).items()]
        (self.folder / "settings.py").write_text("".join(lines))

    def _answers(self) -> bool:
        try:
            requests.head(self.url, verify=self.authority, timeout=5)
        except requests.RequestException:
            return False
        return True


def build_settings(url: str, folder: Path) -> dict[str, Any]:
    """Settings of a site in production, as the documentation says."""
    contrib = ("admin", "auth", "contenttypes", "sessions", "messages")
    processors = (
        "template.context_processors.request",
        "contrib.auth.context_processors.auth",
        "contrib.messages.context_processors.messages",
    )
    redaction = "django_smart.redaction."
    return {
        "SECRET_KEY": "x1" * 30,
        "DEBUG": False,
        "ALLOWED_HOSTS": ["127.0.0.1"],
        "SMART_PRIVATE_HOSTS": ["127.0.0.1"],
        "ROOT_URLCONF": "urls",
        "INSTALLED_APPS": [
            *(f"django.contrib.{each}" for each in contrib),
            "django_smart",
        ],
        "MIDDLEWARE": [
            "django_smart.middleware.SMARTMiddleware",
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        "AUTHENTICATION_BACKENDS": [
            "django.contrib.auth.backends.ModelBackend",
            "django_smart.backends.SMARTAuthenticationBackend",
        ],
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [f"django.{each}" for each in processors]
                },
            }
        ],
        "DATABASES": {
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / "db.sqlite3"),
            }
        },
        "CACHES": {
            "default": {
                "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
                "LOCATION": str(folder / "cache"),
            }
        },
        "LOGGING": {
            "version": 1,
            "filters": {"smart": {"()": f"{redaction}RedactionFilter"}},
            "handlers": {
                "console": {"class": "logging.StreamHandler", "filters": ["smart"]}
            },
        },
        "DEFAULT_EXCEPTION_REPORTER": f"{redaction}SMARTExceptionReporter",
        "DEFAULT_EXCEPTION_REPORTER_FILTER": (
            f"{redaction}SMARTExceptionReporterFilter"
        ),
        "SESSION_COOKIE_SECURE": True,
        "CSRF_COOKIE_SECURE": True,
        "STATIC_URL": "static/",
        "USE_TZ": True,
        "LOGIN_URL": "/admin/login/",
        "SMART_SITE_URL": url,
        "SMART_LAUNCH_REDIRECT_URL": "/chart/",
        "SMART_ENCRYPTION_KEYS": [Fernet.generate_key().decode()],
    }


def be_below_a_path(site: Site) -> None:
    """The site is mounted at /app, by the server and for commands."""
    site.server_environment["SCRIPT_NAME"] = "/app"
    site.settings.FORCE_SCRIPT_NAME = "/app"
    site.settings.LOGIN_URL = "admin:login"
    site.settings.SMART_LAUNCH_REDIRECT_URL = "chart"


def be_an_api_alone(site: Site) -> None:
    """The site has Django REST framework: no admin, no messages, no templates."""
    contrib = ("auth", "contenttypes", "sessions")
    site.settings.INSTALLED_APPS = [
        *(f"django.contrib.{each}" for each in contrib),
        *("rest_framework", "django_smart"),
    ]
    site.settings.MIDDLEWARE.remove(
        "django.contrib.messages.middleware.MessageMiddleware"
    )
    site.settings.TEMPLATES = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
        }
    ]
    site.settings.LOGIN_URL = "rest_framework:login"
    site.settings.SMART_LAUNCH_REDIRECT_URL = "patient"
    (site.folder / "urls.py").write_text(API_URLS)


@pytest.fixture
def site(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    certificate: tuple[ssl.SSLContext, str],
) -> Iterator[Site]:
    """A site that is registered at an EHR; nothing is wrong with either."""
    context, authority = certificate
    ehr = EHRSimulator("https://ehr.example.org/fhir")
    with ehr.serve("127.0.0.1", ssl_context=context):
        site = Site(tmp_path, ehr, authority)
        if (shape := getattr(request, "param", None)) is not None:
            shape(site)
        site.manage("migrate", "--verbosity", "0")
        registered = json.loads(
            site.manage(
                *("smart_register", "--base-url", ehr.base_url, "--slug", "harbour"),
                *("--client-id", CLIENT_ID, "--client-secret", CLIENT_SECRET),
                *("--ehr-scope", EHR_SCOPE),
                *("--standalone-scope", STANDALONE_SCOPE),
            )
        )
        register_at(
            ehr, registered["redirect_uri"], launch_url=registered["launch_url"]
        )
        site.manage("smart_refresh")
        yield site


@pytest.mark.parametrize(
    "site", [None, be_below_a_path, be_an_api_alone], indirect=True
)
def test_healthy_site_is_not_accused(site: Site) -> None:
    with site.serving():
        assert site.examine("--launch") == {}


@pytest.mark.parametrize("name", [each for each in FAULTS if each not in ELSEWHERE])
def test_fault_is_reported(site: Site, name: str) -> None:
    spoil, code, fix = FAULTS[name]
    if name in IN_DATABASE:
        site.shell(IN_DATABASE[name])
    else:
        spoil(site)
    with site.serving():
        fixes = site.examine()
    assert code in fixes
    fix = fix.replace(BASE_URL, site.ehr.base_url).replace(SITE, site.url)
    assert any(fix in each for each in fixes.values()), fixes


def test_most_faults_are_met_in_processes() -> None:
    assert FAULTS.keys() > ELSEWHERE
    assert FAULTS.keys() > IN_DATABASE.keys()
    assert len(FAULTS) - len(ELSEWHERE) >= 40
