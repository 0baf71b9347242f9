"""A site that does not install the app has nothing of it."""

from __future__ import annotations

import subprocess
import sys

_SITE = """
import sys
from django.conf import settings
from tests import settings as tests

settings.configure(
    **{
        **{name: value for name, value in vars(tests).items() if name.isupper()},
        "INSTALLED_APPS": [
            app for app in tests.INSTALLED_APPS if app != "django_smart.contrib.brands"
        ],
        "DATABASES": {
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        },
    }
)
import django
django.setup()
from django.core import checks
from django.core.management import call_command, get_commands
from django.db import connection
from django.test import Client

call_command("migrate", verbosity=0)
for message in checks.run_checks(include_deployment_checks=True, databases=["default"]):
    assert "brand" not in str(message).lower(), message
assert "smart_import_brands" not in get_commands()
tables = connection.introspection.table_names()
assert "django_smart_fhirserver" in tables
assert not [each for each in tables if "brand" in each], tables

from tests.factories import make_registration

for name in ("Harbour", "Lake"):
    make_registration(
        server__slug=name.lower(),
        server__name=name,
        server__base_url=f"https://{name.lower()}.example.org/fhir",
        client_secret="secret",
    )
for query, shown in (("", ["harbour", "lake"]), ("q=la&category=prov", ["lake"])):
    page = Client().get(f"/smart/login/?{query}").content.decode()
    for slug in ("harbour", "lake"):
        assert (f"?server={slug}" in page) is (slug in shown), page

import django_smart.tasks
for name in ("admin", "urls", "contrib.doctor", "contrib.monitoring"):
    __import__(f"django_smart.{name}")
loaded = [name for name in sys.modules if ".contrib.brands" in name]
assert loaded == [], loaded
"""


def test_site_without_brands_lists_its_servers_and_loads_no_brands():
    ran = subprocess.run(
        [sys.executable, "-c", _SITE], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
