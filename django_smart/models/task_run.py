"""When workers last ran what Celery beat sends."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import models
from django.utils.translation import gettext_lazy as _

__all__ = ["BEAT_TASK", "LONGEST_SILENCE", "TaskRun", "TaskRunQuerySet"]

BEAT_TASK = "refresh_servers"
"""The task that is noted: beat sends it every two minutes."""
LONGEST_SILENCE = timedelta(minutes=10)
"""Five times as long: after that, beat or the workers are taken to be down."""


class TaskRunQuerySet(models.QuerySet["TaskRun"]):
    """Runs by the name of their task."""

    def note(self, name: str, *, now: datetime) -> None:
        """Store that the task *name* ran."""
        # Nearly always one UPDATE; two workers at the very first run find one row.
        if not self.filter(name=name).update(ran_at=now):
            self.get_or_create(name=name, defaults={"ran_at": now})

    def get_time(self, name: str) -> datetime | None:
        """When *name* last ran; ``None`` if it never did."""
        return self.filter(name=name).values_list("ran_at", flat=True).first()


class TaskRun(models.Model):
    """
    The last run of one task that Celery beat sends: a sign that beat and workers run.

    The broker cannot say: it knows neither beat nor what the workers did.
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
