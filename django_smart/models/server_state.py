"""What processes write about a server: what it says of itself, and its refreshes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Self

from django.db import models
from django.db.models import Case, F, Q, Value, When
from django.utils.translation import gettext_lazy as _

from ..exceptions import ServerTimeoutError
from .clock import DatabaseNow
from .server import MAX_URL_LENGTH, FHIRServer

__all__ = [
    "CLOCKS_DIFFER",
    "ServerState",
    "ServerStateQuerySet",
    "has_ended",
    "is_silent",
]

CLOCKS_DIFFER = timedelta(hours=1)
"""By how much the clocks of two hosts may differ."""


class ServerStateQuerySet(models.QuerySet["ServerState"]):
    """
    Decide whose turn a server is.

    A turn belongs to the process that knows its token, until it is given back or its
    time is over: that of a process that was killed ends without further action.
    Without a token, a message to a worker is on its way.
    """

    def announced(self) -> Self:
        """Return states of servers for which a message is on its way."""
        return self.exclude(has_ended("turn_until")).filter(turn_token="")

    def announce(self, server_ids: Collection[int]) -> None:
        """Note that messages are on their way, which may get lost."""
        changed = self.filter(has_ended("turn_until"), pk__in=server_ids).update(
            turn_token="", turn_until=DatabaseNow(_ON_ITS_WAY)
        )
        if changed < len(server_ids):
            # A bulk import may have created servers without their states.
            states = [ServerState(server_id=pk) for pk in server_ids]
            self.bulk_create(states, ignore_conflicts=True)

    def take_turn(self, server_id: int, *, token: str, length: timedelta) -> bool:
        """
        Return whether the turn is the caller's now.

        One conditional UPDATE: of all processes, only one changes the row.
        """
        rows = self.filter(Q(turn_token="") | has_ended("turn_until"), pk=server_id)
        until = DatabaseNow(length)
        return rows.update(turn_token=token, turn_until=until) == 1

    def hold_turn(self, server_id: int, *, token: str, length: timedelta) -> bool:
        """Let the turn *token* end later; return whether no other has begun."""
        rows = self.filter(pk=server_id, turn_token=token)
        return rows.update(turn_until=DatabaseNow(length)) == 1

    def end_turn(
        self,
        server_id: int,
        *,
        token: str,
        changes: Mapping[str, object] | None = None,
        after: timedelta = timedelta(),
        is_announced: bool = False,
    ) -> bool:
        """
        Give the turn back, unless another process has taken it since.

        Args:
            changes: what operators see of the turn.
            after: until then, no other turn begins.
            is_announced: a message for the next one is sent.
        """
        values = dict(changes or {}, turn_until=DatabaseNow(min(after, _FARTHEST)))
        if is_announced:
            values |= {"turn_token": "", "turn_until": DatabaseNow(_ON_ITS_WAY)}
        return self.filter(pk=server_id, turn_token=token).update(**values) == 1

    def claim_discovery(
        self, server_id: int, *, now: datetime, pause: timedelta
    ) -> bool:
        """
        Return whether the caller may fetch configuration and keys now.

        Within *pause*, only one of all processes may, unless it succeeded: while a
        server is down, no other process waits for it.  *now* marks the attempt; a mark
        far in the future is of a host whose clock was wrong, and is ignored.
        """
        return bool(
            self.filter(pk=server_id)
            .exclude(
                discovery_failed_at__gt=now - pause,
                discovery_failed_at__lt=now + CLOCKS_DIFFER,
            )
            # Marked before the result is known: the race is between waiting processes.
            .update(discovery_failed_at=now)
        )

    def forget(self, server_id: int, *columns: str) -> None:
        """Set *columns* back to what a new server has."""
        blank = ServerState()
        values = {name: getattr(blank, name) for name in columns}
        self.filter(pk=server_id).update(**values)

    def pause(
        self, server_id: int, *, now: datetime, until: datetime, error_code: str
    ) -> None:
        """
        Send nothing to the server until then, or until a longer pause ends.

        After that, one request tests it (:meth:`resume`).
        """
        longer = When(paused_until__gt=until, then=F("paused_until"))
        self.filter(pk=server_id).update(
            paused_until=Case(longer, default=Value(until)),
            last_failure_at=now,
            last_error=error_code,
        )

    def resume(self, server_id: int) -> None:
        """Note that the server responds, unless it has asked for a pause since."""
        rows = self.filter(pk=server_id, paused_until__lte=DatabaseNow())
        rows.update(paused_until=None)


def has_ended(name: str) -> Q:
    """
    Return whether the time in the column *name* is over, or was never set.

    One far in the future is of a clock that has been set back since.
    """
    return (
        Q(**{f"{name}__isnull": True})
        | Q(**{f"{name}__lte": DatabaseNow()})
        | Q(**{f"{name}__gt": DatabaseNow(_FARTHEST)})
    )


def is_silent(prefix: str = "") -> Q:
    """Return whether a server is down and lets requests wait until they time out."""
    return Q(
        **{
            f"{prefix}paused_until__isnull": False,
            f"{prefix}last_error": ServerTimeoutError.code,
        }
    )


# How long a message may wait for a worker until another one is sent.
_ON_ITS_WAY = timedelta(seconds=45)
# No turn or message has its end further ahead.
_FARTHEST = timedelta(minutes=5)


class ServerState(models.Model):
    """
    What was discovered of one server, and how refreshes there are going.

    Apart from what an operator decides, so that a form that was loaded earlier cannot
    undo it.
    """

    server = models.OneToOneField(
        FHIRServer,
        models.CASCADE,
        primary_key=True,
        verbose_name=_("FHIR server"),
        related_name="state",
    )
    configuration = models.JSONField(
        _("SMART configuration"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("The server's .well-known/smart-configuration, as last fetched."),
    )
    client_configurations = models.JSONField(
        _("SMART configurations by client"),
        default=dict,
        blank=True,
        editable=False,
        help_text="By client ID, if the discovery headers contain it.",
    )
    configuration_fetched_at = models.DateTimeField(
        _("configuration fetched at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When the SMART configuration was last fetched."),
    )
    configuration_max_age = models.PositiveIntegerField(
        _("SMART configuration max age"),
        null=True,
        blank=True,
        editable=False,
        help_text=_(
            "Seconds, from the server's Cache-Control; empty if it sends none."
        ),
    )
    jwks = models.JSONField(
        _("JWK Set"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("Public keys that verify the server's ID tokens, as last fetched."),
    )
    jwks_fetched_at = models.DateTimeField(
        _("JWK Set fetched at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When the JWK Set was last fetched."),
    )
    jwks_max_age = models.PositiveIntegerField(
        _("JWK Set max age"),
        null=True,
        blank=True,
        editable=False,
        help_text=_(
            "Seconds, from the server's Cache-Control; empty if it sends none."
        ),
    )
    issuer = models.CharField(
        _("discovered issuer"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        editable=False,
        help_text=_("OpenID Connect issuer from the SMART or OpenID configuration."),
    )
    jwks_uri = models.CharField(
        _("discovered JWK Set URL"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        editable=False,
        help_text=_("JWK Set URL from the SMART or OpenID configuration."),
    )
    pinned = models.JSONField(
        _("pinned values"),
        default=dict,
        blank=True,
        editable=False,
        help_text=_(
            "Issuer, key URL and token endpoint as first discovered. The "
            "server may change them only within their origin."
        ),
    )
    moved = models.JSONField(
        _("moved values"),
        default=dict,
        blank=True,
        editable=False,
        help_text=_(
            "Values that the server names now and that an operator has to approve. "
            "Until then, no one can sign in there."
        ),
    )
    discovery_failed_at = models.DateTimeField(
        _("discovery failed at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_(
            "Empty if the last attempt succeeded. Set as well if a key was missing."
        ),
    )
    turn_token = models.CharField(
        _("turn token"),
        max_length=64,
        blank=True,
        default="",
        editable=False,
        help_text="Of the process that refreshes its grants.",
    )
    turn_until = models.DateTimeField(
        _("turn until"),
        null=True,
        blank=True,
        editable=False,
        help_text="When another process may refresh its grants instead.",
    )
    paused_until = models.DateTimeField(
        _("refresh paused until"),
        null=True,
        blank=True,
        editable=False,
        help_text=(
            "Set after an outage, or when the server asks to wait, "
            "and kept until the server responds again."
        ),
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

    def is_paused(self, now: datetime) -> bool:
        """Whether the server needs a pause, or has asked for one."""
        return self.paused_until is not None and self.paused_until > now
