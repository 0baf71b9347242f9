"""Settings of the deployment under chaos, all of them from the environment."""

from __future__ import annotations

import os

from django_smart.schedule import BEAT_SCHEDULE
from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos"]
ROOT_URLCONF = "tests.chaos.urls"
SMART_INSECURE_HTTP_HOSTS = ["127.0.0.1"]
# Connect, read, whole call: a lease lasts ten seconds longer than that.
SMART_HTTP_TIMEOUT = tuple(map(float, os.environ["CHAOS_TIMEOUT"].split()))

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_TASK_ALWAYS_EAGER = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_SCHEDULE = {
    name: {
        **entry,
        "schedule": min(entry["schedule"].seconds, float(os.environ["CHAOS_TICK"])),
    }
    if name.endswith("refresh_due_grants")
    else entry
    for name, entry in BEAT_SCHEDULE.items()
}
