"""
The schedule for Celery beat.  It can be imported from a settings module::

    from django_smart.schedule import BEAT_SCHEDULE

    CELERY_BEAT_SCHEDULE = BEAT_SCHEDULE
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery.schedules import schedule

__all__ = ["BEAT_SCHEDULE"]


def _every(seconds: float) -> schedule:
    # In UTC, whatever CELERY_TIMEZONE is: in local time, Celery before 5.7 runs nothing
    # for an hour when daylight saving time ends.
    return schedule(seconds, nowfun=partial(datetime.now, UTC))


# Messages do not expire: Celery compares with the clock of the worker's host, and
# running a task once more is cheap.
BEAT_SCHEDULE: dict[str, dict[str, Any]] = {
    "django_smart.refresh_due_grants": {
        "task": "django_smart.tasks.refresh_due_grants",
        "schedule": _every(10.0),
    },
    "django_smart.refresh_servers": {
        "task": "django_smart.tasks.refresh_servers",
        # Values that may be cached for five minutes are fetched again after half of
        # them.
        "schedule": _every(120.0),
    },
    "django_smart.rotate_keys": {
        "task": "django_smart.tasks.rotate_keys",
        "schedule": _every(900.0),
    },
    "django_smart.purge": {
        "task": "django_smart.tasks.purge",
        "schedule": _every(3600.0),
    },
}
"""
Runs refreshes every 10 seconds, discovery every 2 minutes, the rotation of keys every
15 minutes, and the purge every hour. Launches that nobody decided end with discovery.
"""
