"""
What Celery beat has to run.  Importable from a settings module::

    from django_smart.schedule import BEAT_SCHEDULE

    CELERY_BEAT_SCHEDULE = BEAT_SCHEDULE
"""

from __future__ import annotations

from typing import Any

__all__ = ["BEAT_SCHEDULE"]

BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "django_smart.refresh_due_grants": {
        "task": "django_smart.tasks.refresh_due_grants",
        "schedule": 10.0,
        # A tick that could not be delivered in time is of no use to the next one.
        "options": {"expires": 10.0},
    },
    "django_smart.refresh_servers": {
        "task": "django_smart.tasks.refresh_servers",
        # What may be kept for five minutes is fetched again past half of them.
        "schedule": 120.0,
        "options": {"expires": 120.0},
    },
    "django_smart.rotate_keys": {
        "task": "django_smart.tasks.rotate_keys",
        "schedule": 900.0,
        "options": {"expires": 900.0},
    },
    "django_smart.purge": {
        "task": "django_smart.tasks.purge",
        "schedule": 3600.0,
        "options": {"expires": 3600.0},
    },
}
"""Seconds between two runs: refresh 10, discovery 120, keys 900, purge 3,600."""
