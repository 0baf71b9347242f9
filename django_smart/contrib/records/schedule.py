"""
The schedule for Celery beat, beside that of the package itself::

    from django_smart.contrib.records.schedule import RECORDS_SCHEDULE
    from django_smart.schedule import BEAT_SCHEDULE

    CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE, **RECORDS_SCHEDULE}
"""

from __future__ import annotations

from typing import Any

__all__ = ["RECORDS_SCHEDULE"]

TICK = 120.0  # seconds

RECORDS_SCHEDULE: dict[str, dict[str, Any]] = {
    "django_smart.contrib.records.sync_due_records": {
        "task": "django_smart.contrib.records.tasks.sync_due_records",
        "schedule": TICK,
    },
}
"""
Looks every two minutes for records that are due: new connections, interrupted runs, and
each record once a day.  For another time, add ``"kwargs": {"hours": 6}``.
"""
