"""When background tasks last ran, and with what result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from django.db import models, router
from django.db.models import F
from django.utils.translation import gettext_lazy as _

from .clock import DatabaseNow
from .server import FHIRServer

__all__ = [
    "PURGE",
    "REFRESH",
    "ROTATE_KEYS",
    "SILENT_AFTER",
    "RefreshCount",
    "RefreshCountQuerySet",
    "TaskRun",
    "TaskRunQuerySet",
]

# The recorded tasks, run by a worker or by cron.
PURGE = "purge"
REFRESH = "refresh_due_grants"
ROTATE_KEYS = "rotate_keys"
SILENT_AFTER = {REFRESH: timedelta(minutes=10), ROTATE_KEYS: timedelta(hours=3)}
"""How long a task may not have run before its worker, or cron, seems to be missing."""


class TaskRunQuerySet(models.QuerySet["TaskRun"]):
    """Select runs by task."""

    def note(self, name: str) -> None:
        """Store that the task *name* runs now."""
        # Nearly always one UPDATE; two workers at the very first run find one row.
        rows = self.filter(name=name)
        if not rows.update(ran_at=DatabaseNow()):
            self.get_or_create(name=name)
            rows.update(ran_at=DatabaseNow())

    def note_and_read(self, name: str) -> datetime:
        """Store that the task *name* runs now; return the database's time."""
        self.note(name)
        # In the time zone of a connection, sums are of local time.
        row = self.using(router.db_for_write(TaskRun)).get(name=name)
        return cast("datetime", row.ran_at).astimezone(UTC)

    def get_owner(self, name: str) -> str:
        """Return the deployment that runs *name*, or ""."""
        return self.filter(name=name).values_list("owner", flat=True).first() or ""

    def set_owner(self, name: str, owner: str, *, unless_owned: bool = False) -> None:
        """Let the deployment *owner* run *name*."""
        row, _ = self.get_or_create(name=name)
        rows = self.filter(pk=row.pk)
        (rows.filter(owner="") if unless_owned else rows).update(owner=owner)

    def get_time(self, name: str) -> datetime | None:
        """Return when *name* last ran, or ``None``."""
        return self.filter(name=name).values_list("ran_at", flat=True).first()


class TaskRun(models.Model):
    """
    The last run of a task, which shows that beat and workers, or cron, are running.

    The broker cannot tell, because it sees neither beat nor what the workers did.
    """

    name = models.CharField(
        _("task"),
        max_length=100,
        unique=True,
        help_text="Name of the task.",
    )
    ran_at = models.DateTimeField(
        _("last run"),
        null=True,
        blank=True,
        help_text="When the task last started.",
    )
    owner = models.CharField(
        _("owner"),
        max_length=200,
        blank=True,
        default="",
        help_text="Deployment that refreshes the grants of this database.",
    )

    objects = TaskRunQuerySet.as_manager()

    class Meta:
        verbose_name = _("task run")
        verbose_name_plural = _("task runs")
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class RefreshCountQuerySet(models.QuerySet["RefreshCount"]):
    """Counts of all processes together."""

    def add(
        self,
        server_id: int,
        *,
        kind: str,
        code: str,
        number: int = 1,
        bucket: str = "",
        seconds: float = 0.0,
    ) -> None:
        """Add to a count: nearly always one UPDATE, which no other one undoes."""
        key: dict[str, Any] = {
            "server_id": server_id,
            "kind": kind,
            "code": code,
            "bucket": bucket,
        }
        changes = {"number": F("number") + number, "seconds": F("seconds") + seconds}
        if not self.filter(**key).update(**changes):
            self.get_or_create(**key)
            self.filter(**key).update(**changes)


class RefreshCount(models.Model):
    """
    How many refreshes of a server had one outcome, or how many grants one reason ended.

    Kept in the database, as the processes that refresh come and go, on several hosts.
    """

    class Kind(models.TextChoices):
        """What is counted."""

        REFRESH = "refresh", _("refreshes")
        LOST = "lost", _("grants lost")

    server = models.ForeignKey(
        FHIRServer,
        models.CASCADE,
        verbose_name=_("FHIR server"),
        related_name="refresh_counts",
    )
    kind = models.CharField(_("kind"), max_length=20, choices=Kind)
    code = models.CharField(_("code"), max_length=100)
    bucket = models.CharField(
        _("bucket"),
        max_length=10,
        blank=True,
        default="",
        help_text=_("Seconds that a request took at most; empty if none was sent."),
    )
    number = models.PositiveBigIntegerField(_("number"), default=0)
    seconds = models.FloatField(_("seconds in all"), default=0.0)

    objects = RefreshCountQuerySet.as_manager()

    class Meta:
        verbose_name = _("refresh count")
        verbose_name_plural = _("refresh counts")
        ordering = ("server", "kind", "code", "bucket")
        constraints = (
            models.UniqueConstraint(
                fields=["server", "kind", "code", "bucket"],
                name="django_smart_refresh_count",
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_kind_display()} #{self.pk}"
