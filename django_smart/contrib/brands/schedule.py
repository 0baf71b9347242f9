"""
The schedule for Celery beat::

    from django_smart.contrib.brands.schedule import BRANDS_SCHEDULE
    from django_smart.schedule import BEAT_SCHEDULE

    CELERY_BEAT_SCHEDULE = {**BEAT_SCHEDULE, **BRANDS_SCHEDULE}
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

__all__ = ["BRANDS_SCHEDULE"]

BRANDS_SCHEDULE: dict[str, dict[str, Any]] = {
    "django_smart.import_known_brands": {
        "task": "django_smart.contrib.brands.tasks.import_known_brands",
        "schedule": timedelta(days=1),
    },
}
"""Imports every bundle that came from a URL again, once a day."""
