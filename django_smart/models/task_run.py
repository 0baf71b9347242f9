"""When workers last did what Celery beat asks them for."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

__all__ = [
    "BEAT_TASK",
    "LONGEST_SILENCE",
    "TaskRun",
    "TaskRunQuerySet",
    "note_beat",
]


class TaskRunQuerySet(models.QuerySet["TaskRun"]):
    """Runs by the name of their task."""

    def note(self, name: str, *, now: datetime) -> None:
        """Write that the task *name* was run."""
        # Nearly always one UPDATE; two workers at the very first run find one row.
        if not self.filter(name=name).update(ran_at=now):
            self.get_or_create(name=name, defaults={"ran_at": now})

    def get_time(self, name: str) -> datetime | None:
        """When *name* was last run; ``None`` if that never happened."""
        return self.filter(name=name).values_list("ran_at", flat=True).first()


class TaskRun(models.Model):
    """
    The last run of one task that Celery beat sends: a sign that beat and workers live.

    Neither can be asked: a broker knows of neither beat nor what its workers did.
    """

    name = models.CharField(_("task"), max_length=100, unique=True)
    ran_at = models.DateTimeField(_("last run"))

    objects = TaskRunQuerySet.as_manager()

    class Meta:
        verbose_name = _("task run")
        verbose_name_plural = _("task runs")
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


BEAT_TASK = "refresh_servers"
"""The task that leaves the sign: one that beat sends every other minute."""
LONGEST_SILENCE = timedelta(minutes=10)
"""Five times that, after which beat or the workers do not run."""


def note_beat() -> None:
    """Leave the sign."""
    TaskRun.objects.note(BEAT_TASK, now=timezone.now())
