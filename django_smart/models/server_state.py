"""What the processes that refresh grants write about a server."""

from __future__ import annotations

from datetime import datetime

from django.db import models
from django.db.models import Case, F, Value, When
from django.utils.translation import gettext_lazy as _

from .server import FHIRServer

__all__ = ["ServerState", "ServerStateQuerySet"]


class ServerStateQuerySet(models.QuerySet["ServerState"]):
    """Changes that only one worker may make."""

    def of(self, server: FHIRServer) -> ServerState:
        """Return the state of *server*, created if a bulk import left it out."""
        try:
            return server.state
        except ServerState.DoesNotExist:
            return self.get_or_create(server=server)[0]

    def claim_probe(self, state: ServerState, *, until: datetime) -> bool:
        """
        Return whether the caller may try the server again after its pause.

        One conditional UPDATE: the pause continues for everyone else meanwhile.
        """
        return bool(
            self.filter(
                pk=state.pk, failures=state.failures, paused_until=state.paused_until
            ).update(paused_until=until)
        )

    def reserve_slots(
        self, state: ServerState, *, seen: datetime | None, until: datetime
    ) -> bool:
        """
        Return whether the caller may send the requests until *until*.

        Compare-and-set on the end of the previous reservation, *seen*.
        """
        return bool(self.filter(pk=state.pk, slot_at=seen).update(slot_at=until))

    def note_recovery(self, state: ServerState, *, claimed: datetime | None) -> None:
        """
        Store that it responds again; only a successful probe ends the pause.

        Args:
            claimed: until when the probe was claimed. A longer pause that the server
                has asked for since then continues.
        """
        changes: dict[str, object] = {"failures": 0}
        if claimed:
            own = When(paused_until=claimed, then=None)
            changes["paused_until"] = Case(own, default=F("paused_until"))
        rows = self.filter(pk=state.pk)
        if not claimed:
            # Another worker may have found it down meanwhile.
            rows = rows.filter(failures=state.failures)
        rows.update(**changes)

    def note_failures(
        self,
        state: ServerState,
        number: int,
        *,
        in_a_row: bool,
        now: datetime,
        error_code: str,
    ) -> None:
        """
        Store that *number* requests failed.

        Args:
            in_a_row: after those that failed before, with no response in between.
        """
        rows = self.filter(pk=state.pk)
        if not in_a_row:
            # Another worker may have found it down meanwhile.
            rows = rows.filter(failures=state.failures)
        before = F("failures") if in_a_row else 0
        rows.update(
            failures=before + number, last_failure_at=now, last_error=error_code
        )

    def note_outage(
        self,
        state: ServerState,
        *,
        failures: int,
        now: datetime,
        until: datetime,
        error_code: str,
        claimed: datetime | None = None,
    ) -> None:
        """
        Send nothing to the server until then, or until a longer pause ends.

        Args:
            claimed: until when the probe was claimed: this pause is replaced.
        """
        own = [When(paused_until=claimed, then=Value(until))] if claimed else []
        longer = When(paused_until__gt=until, then=F("paused_until"))
        self.filter(pk=state.pk).update(
            failures=failures,
            paused_until=Case(*own, longer, default=Value(until)),
            last_failure_at=now,
            last_error=error_code,
        )


class ServerState(models.Model):
    """
    How refreshes at one server are going; the operator's decisions are in its own row.

    Apart from them, so that a form that was loaded earlier cannot undo a pause.
    """

    server = models.OneToOneField(
        FHIRServer,
        models.CASCADE,
        primary_key=True,
        verbose_name=_("FHIR server"),
        related_name="state",
    )
    failures = models.PositiveIntegerField(
        _("consecutive failed refreshes"),
        default=0,
        editable=False,
        help_text=(
            "Consecutive refreshes that failed because the server was down or busy."
        ),
    )
    paused_until = models.DateTimeField(
        _("refresh paused until"),
        null=True,
        blank=True,
        editable=False,
        help_text="Set after an outage, or when the server asks to wait.",
    )
    slot_at = models.DateTimeField(
        _("next refresh slot"),
        null=True,
        blank=True,
        editable=False,
        help_text="When the next refresh request may be sent under the rate limit.",
    )
    refresh_seconds = models.FloatField(
        _("refresh duration"),
        null=True,
        blank=True,
        editable=False,
        help_text="Average seconds per refresh, which limits how many workers wait for "
        "the server.",
    )
    last_success_at = models.DateTimeField(
        _("last refresh"),
        null=True,
        blank=True,
        editable=False,
        help_text="When a worker last received tokens.",
    )
    last_failure_at = models.DateTimeField(
        _("last failed refresh"),
        null=True,
        blank=True,
        editable=False,
        help_text="When a worker last found the server down or busy.",
    )
    last_error = models.CharField(
        _("last refresh error"),
        max_length=100,
        blank=True,
        default="",
        editable=False,
        help_text="Error code of what the worker found then.",
    )

    objects = ServerStateQuerySet.as_manager()

    class Meta:
        verbose_name = _("server state")
        verbose_name_plural = _("server states")
        ordering = ("server",)

    def __str__(self) -> str:
        return f"#{self.pk}"
