"""The tests' settings, for a site with users of its own."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "tests.sites.persons"]
AUTH_USER_MODEL = "persons.Person"
