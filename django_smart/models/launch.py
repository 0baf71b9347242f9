"""Launches: one authorization each, from request to context."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from datetime import datetime, timedelta
from functools import cache
from typing import Any, cast

from django.conf import settings
from django.db import models
from django.db.models.functions import Coalesce
from django.db.models.lookups import GreaterThan, LessThanOrEqual
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..fields import DigestField, EncryptedTextField, digest
from .grant import TokenGrant
from .identity import Identity
from .registration import ClientRegistration
from .server import MAX_URL_LENGTH, FHIRServer

__all__ = ["Launch", "LaunchQuerySet"]


# How exactly it is known when a launch was used: each note is a write.
_USE_NOTED_EVERY = timedelta(minutes=1)
_USED_AT = Coalesce("last_used_at", "completed_at")


def _make_key() -> str:
    return secrets.token_urlsafe(18)


class LaunchQuerySet(models.QuerySet["Launch"]):
    """Launches by state, key and browser."""

    def with_related(self) -> LaunchQuerySet:
        """With everything a request needs, in one query."""
        return self.select_related("registration__server", "grant")

    @staticmethod
    def find_with_key(key: str) -> Launch | None:
        """
        The launch with this public key, with the columns that a page reads.

        Further columns are read when they are asked for, as after ``only()``.
        """
        found = _get_page_values().filter(key_digest=digest(key))
        row = next(iter(found), None)
        if row is None:
            return None
        values = iter(row)
        launch, registration, server, grant = (
            model.from_db(found.db, names, [next(values) for _ in names])
            for model, names in _get_page_columns().values()
        )
        registration.server = server
        launch.registration = registration
        launch.grant = None if grant.pk is None else grant
        return cast("Launch", launch)

    def find_with_state(self, state: str) -> Launch | None:
        """The launch started with this ``state``, with its registration and server."""
        try:
            return self.select_related("registration__server").with_state(state).get()
        except Launch.DoesNotExist:
            return None

    def with_state(self, state: str) -> LaunchQuerySet:
        """The launch that was started with this ``state``, compared exactly."""
        return self.filter(state_digest=digest(state))

    def pending(self) -> LaunchQuerySet:
        """Launches whose callback has not come."""
        return self.filter(status=Launch.Status.PENDING, consumed_at__isnull=True)

    def of_browser(self, browser_digests: Collection[str]) -> LaunchQuerySet:
        """Launches that were finished in one browser, ended ones included."""
        return self.filter(
            browser_digest__in=browser_digests, completed_at__isnull=False
        )

    def open(self) -> LaunchQuerySet:
        """Launches that are completed and not ended."""
        return self.filter(status=Launch.Status.COMPLETED)

    def live(self, now: datetime) -> LaunchQuerySet:
        """Open launches that are neither too old to be used nor unused for too long."""
        return self.open().filter(
            GreaterThan(_USED_AT, now - conf.SMART_LAUNCH_IDLE_LIFETIME),
            completed_at__gt=now - conf.SMART_LAUNCH_LIFETIME,
        )

    def too_old(self, now: datetime) -> LaunchQuerySet:
        """Open launches that were finished too long ago to be used."""
        return self.open().filter(completed_at__lte=now - conf.SMART_LAUNCH_LIFETIME)

    def idle(self, now: datetime) -> LaunchQuerySet:
        """Open launches that were left unused for too long."""
        return self.open().filter(
            LessThanOrEqual(_USED_AT, now - conf.SMART_LAUNCH_IDLE_LIFETIME)
        )

    def note_use(self, launch: Launch, *, now: datetime) -> None:
        """
        Keep when *launch* was used last, to the minute.

        One conditional UPDATE: of requests in parallel one writes, and the time never
        goes back.
        """
        latest = now - _USE_NOTED_EVERY
        if launch.last_used_at is None or launch.last_used_at <= latest:
            self.open().filter(pk=launch.pk).exclude(last_used_at__gt=latest).update(
                last_used_at=now
            )

    def consume(self, launch: Launch, *, now: datetime) -> bool:
        """
        Use the launch's ``state``, once.

        One conditional UPDATE: of callbacks in parallel with one state, one wins.
        """
        consumed = self.pending().filter(pk=launch.pk).update(consumed_at=now)
        return consumed == 1

    def complete(self, launch: Launch) -> bool:
        """
        Write what came of *launch*, if it is still under way.

        One conditional UPDATE: a sign-out in another tab may have ended it meanwhile.
        """
        changes = {name: getattr(launch, name) for name in _COMPLETED_FIELDS}
        stored = self.filter(pk=launch.pk, status=Launch.Status.PENDING).update(
            **changes
        )
        return stored == 1

    def fail(self, *, error_code: str, now: datetime) -> int:
        """Mark pending launches as failed; the code tells why."""
        return self.filter(status=Launch.Status.PENDING).update(
            status=Launch.Status.FAILED,
            error_code=error_code,
            ended_at=now,
            consumed_at=now,
            code_verifier="",
        )

    def end(self, *, reason: str, now: datetime) -> int:
        """End completed launches; their keys answer 410 from now on."""
        return self.open().update(
            status=Launch.Status.ENDED, error_code=reason, ended_at=now
        )


_COMPLETED_FIELDS = (
    "browser_digest",
    "code_verifier",
    "completed_at",
    "context",
    "fhir_user",
    "grant",
    "identity",
    "last_used_at",
    "scope_granted",
    "status",
    "user",
)


class Launch(models.Model):
    """
    One authorization: what was asked, of whom, by which browser, and what came of it.

    The key stands in URLs and is no credential: it selects among the launches of the
    browser that holds the cookie whose digest is kept here.
    """

    class Kind(models.TextChoices):
        """Where the launch began."""

        EHR = "ehr", _("EHR launch")
        STANDALONE = "standalone", _("standalone launch")

    class Intent(models.TextChoices):
        """What a proven identity is used for."""

        SIGN_IN = "sign_in", _("sign in")
        CONNECT = "connect", _("connect")

    class Status(models.TextChoices):
        """How far it got."""

        PENDING = "pending", _("pending")
        COMPLETED = "completed", _("completed")
        FAILED = "failed", _("failed")
        ENDED = "ended", _("ended")

    key = models.CharField(_("key"), max_length=64, default=_make_key, editable=False)
    key_digest = DigestField(verbose_name=_("digest of the key"), sources=("key",))
    callback_id = models.CharField(
        _("callback id"),
        max_length=100,
        blank=True,
        default="",
        editable=False,
        help_text=_("Of the redirect URI that the authorization request named."),
    )
    registration = models.ForeignKey(
        ClientRegistration,
        models.PROTECT,
        verbose_name=_("client registration"),
        related_name="launches",
    )
    kind = models.CharField(_("kind"), max_length=20, choices=Kind)
    intent = models.CharField(
        _("intent"), max_length=20, choices=Intent, default=Intent.SIGN_IN
    )
    status = models.CharField(
        _("status"), max_length=20, choices=Status, default=Status.PENDING
    )
    error_code = models.CharField(
        _("error code"), max_length=100, blank=True, default=""
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        verbose_name=_("user"),
        related_name="smart_launches",
        null=True,
        blank=True,
    )
    identity = models.ForeignKey(
        Identity,
        models.SET_NULL,
        verbose_name=_("identity"),
        related_name="launches",
        null=True,
        blank=True,
    )
    grant = models.ForeignKey(
        TokenGrant,
        models.SET_NULL,
        verbose_name=_("token grant"),
        related_name="launches",
        null=True,
        blank=True,
    )
    state_digest = models.CharField(
        _("digest of the state"), max_length=64, editable=False
    )
    nonce = models.CharField(_("nonce"), max_length=64, editable=False)
    code_verifier = EncryptedTextField(
        _("code verifier"), blank=True, default="", editable=False
    )
    browser_digest = models.CharField(
        _("digest of the browser cookie"), max_length=64, db_index=True, editable=False
    )
    aud = models.CharField(_("aud"), max_length=MAX_URL_LENGTH, editable=False)
    is_framed = models.BooleanField(_("in a frame"), default=False, editable=False)
    redirect_uri = models.CharField(
        _("redirect URI"), max_length=MAX_URL_LENGTH, editable=False
    )
    next_url = models.TextField(_("next"), blank=True, default="", editable=False)
    scope_asked = models.TextField(_("asked scope"), blank=True, default="")
    scope_granted = models.TextField(_("granted scope"), blank=True, default="")
    context = models.JSONField(_("launch context"), default=dict, blank=True)
    fhir_user = models.CharField(_("FHIR user"), max_length=200, blank=True, default="")
    created_at = models.DateTimeField(_("started at"), auto_now_add=True)
    expires_at = models.DateTimeField(_("callback expected until"))
    consumed_at = models.DateTimeField(_("callback at"), null=True, blank=True)
    completed_at = models.DateTimeField(_("completed at"), null=True, blank=True)
    last_used_at = models.DateTimeField(_("last used at"), null=True, blank=True)
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)

    objects = LaunchQuerySet.as_manager()

    class Meta:
        verbose_name = _("launch")
        verbose_name_plural = _("launches")
        ordering = ("-created_at", "-pk")
        constraints = (
            models.UniqueConstraint(
                fields=["key_digest"], name="django_smart_launch_key"
            ),
            models.UniqueConstraint(
                fields=["state_digest"], name="django_smart_launch_state"
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_kind_display()} #{self.pk} ({self.get_status_display()})"

    def is_live(self, now: datetime) -> bool:
        """Whether the launch can be used: completed, not ended, not out of time."""
        return self.status == self.Status.COMPLETED and not self.why_ended(now)

    def why_ended(self, now: datetime) -> str:
        """
        Why a launch that was completed is over; empty if it is not.

        The reason it was ended with, or ``lifetime`` or ``idle``.
        """
        if self.status == self.Status.ENDED:
            return self.error_code
        if self.completed_at is None:
            return ""
        if now >= self.completed_at + conf.SMART_LAUNCH_LIFETIME:
            return "lifetime"
        used_at = self.last_used_at or self.completed_at
        if now >= used_at + conf.SMART_LAUNCH_IDLE_LIFETIME:
            return "idle"
        return ""

    def belongs_to(self, *, browser_digests: Collection[str], user_id: Any) -> bool:
        """
        Whether a request of this browser and this user may use the launch.

        A launch without a user belongs to its browser while nobody is signed in there:
        it is never adopted by whoever signs in later.
        """
        return self.user_id == user_id and any(
            secrets.compare_digest(self.browser_digest, each)
            for each in browser_digests
        )


# What a page under a launch reads, by the path to its model.  select_related() and
# only() would go through all the fields of the four models for each page, which takes
# longer than the query itself.
_PAGE_COLUMNS: dict[str, tuple[Any, Collection[str]]] = {
    "": (
        Launch,
        (
            *("id", "key", "registration_id", "kind", "status", "user_id", "grant_id"),
            *("browser_digest", "is_framed", "context", "fhir_user"),
            *("completed_at", "last_used_at"),
        ),
    ),
    "registration__": (ClientRegistration, ("id", "server_id")),
    "registration__server__": (
        FHIRServer,
        (
            *("id", "slug", "name", "base_url", "bearer_boundary"),
            *("allow_embedding", "frame_origins"),
        ),
    ),
    "grant__": (
        TokenGrant,
        (
            *("id", "user_id", "access_token", "refresh_token", "scope"),
            *("patient_id", "is_offline", "status", "received_at", "expires_at"),
            "last_used_at",
        ),
    ),
}


@cache
def _get_page_columns() -> dict[str, tuple[Any, list[str]]]:
    """The columns, in the order that ``from_db()`` takes them in."""
    return {
        path: (
            model,
            [
                field.attname
                for field in model._meta.concrete_fields
                if field.attname in names
            ],
        )
        for path, (model, names) in _PAGE_COLUMNS.items()
    }


@cache
def _get_page_values() -> models.QuerySet[Any, tuple[Any, ...]]:
    columns = _get_page_columns().items()
    return Launch.objects.values_list(
        *(path + name for path, (_, names) in columns for name in names)
    ).order_by()
