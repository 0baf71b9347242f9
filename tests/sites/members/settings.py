"""The tests' settings, for a site whose users sign in by e-mail."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "tests.sites.members"]
AUTH_USER_MODEL = "members.Member"
