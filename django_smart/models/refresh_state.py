"""How a server stands with the refresh engine: shared by the workers of all hosts."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import F
from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from .server import FHIRServer

__all__ = ["RefreshState", "RefreshStateQuerySet"]


class RefreshStateQuerySet(models.QuerySet["FHIRServer"]):
    """Changes of which, of all workers, one makes each."""

    def claim_probe(self, server: FHIRServer, *, until: datetime) -> bool:
        """
        Whether the caller is the one who tries *server* again after its pause.

        One conditional UPDATE: the pause goes on for everybody else meanwhile.
        """
        return bool(
            self.filter(
                pk=server.pk,
                refresh_failures=server.refresh_failures,
                refresh_paused_until=server.refresh_paused_until,
            ).update(refresh_paused_until=until)
        )

    def reserve_slots(
        self, server: FHIRServer, *, seen: datetime | None, until: datetime
    ) -> bool:
        """
        Whether the requests until *until* are the caller's to send.

        Compare-and-set on the end of what was reserved before, as *seen*.
        """
        return bool(
            self.filter(pk=server.pk, refresh_slot_at=seen).update(
                refresh_slot_at=until
            )
        )

    def note_refresh(self, server: FHIRServer, *, now: datetime) -> None:
        """The server gave out tokens."""
        self.filter(pk=server.pk).update(last_refresh_at=now)

    def note_recovery(self, server: FHIRServer, *, is_probe: bool) -> None:
        """It answers again; only who probed it ends its pause."""
        pause = {"refresh_paused_until": None} if is_probe else {}
        self.filter(pk=server.pk).update(refresh_failures=0, **pause)

    def note_failures(
        self, server: FHIRServer, number: int, *, now: datetime, error_code: str
    ) -> None:
        """*number* requests failed, one after another."""
        self.filter(pk=server.pk).update(
            refresh_failures=F("refresh_failures") + number,
            last_refresh_failure_at=now,
            last_refresh_error=error_code,
        )

    def note_outage(
        self,
        server: FHIRServer,
        *,
        failures: int,
        now: datetime,
        until: datetime,
        error_code: str,
    ) -> None:
        """Ask *server* for nothing until then."""
        self.filter(pk=server.pk).update(
            refresh_failures=failures,
            refresh_paused_until=until,
            last_refresh_failure_at=now,
            last_refresh_error=error_code,
        )


class RefreshState(models.Model):
    """Columns that workers write, apart from those that people do."""

    refresh_failures = models.PositiveIntegerField(
        _("failed refreshes in a row"), default=0, editable=False
    )
    refresh_paused_until = models.DateTimeField(
        _("refresh paused until"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("After an outage, or as the server asked for."),
    )
    refresh_slot_at = models.DateTimeField(
        _("next free time for a request"), null=True, blank=True, editable=False
    )
    last_refresh_at = models.DateTimeField(
        _("last refresh"), null=True, blank=True, editable=False
    )
    last_refresh_failure_at = models.DateTimeField(
        _("last failed refresh"), null=True, blank=True, editable=False
    )
    last_refresh_error = models.CharField(
        _("error of the last failed refresh"),
        max_length=100,
        blank=True,
        default="",
        editable=False,
    )

    class Meta:
        abstract = True
