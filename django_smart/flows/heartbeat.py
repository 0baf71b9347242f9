"""A sign that Celery beat sends and workers work, for the doctor to read."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone

from ..models import TaskRun

__all__ = ["BEAT_TASK", "LONGEST_SILENCE", "note_beat"]

BEAT_TASK = "refresh_servers"
"""The task that leaves the sign: one that beat sends every other minute."""
LONGEST_SILENCE = timedelta(minutes=10)
"""Five times that, after which beat or the workers do not run."""


def note_beat() -> None:
    """Leave the sign."""
    TaskRun.objects.note(BEAT_TASK, now=timezone.now())
