"""Launches: one authorization each, from request to context."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from ..conf import conf
from ..fields import DigestField, EncryptedTextField, digest
from ..protocol.scopes import ScopeSet, parse_stored_scopes
from .grant import TokenGrant
from .identity import Identity
from .joined_row import JoinedRow
from .registration import ClientRegistration

__all__ = ["LEFT_FRAME", "Launch", "LaunchQuerySet"]

#: Member of the context of a launch that began in a frame and went on in a new window.
LEFT_FRAME = "django_smart.left_frame"

# Precision of the time of last use, because each update is a write.
_USE_NOTED_EVERY = timedelta(minutes=1)


def _make_key() -> str:
    return secrets.token_urlsafe(18)


class LaunchQuerySet(models.QuerySet["Launch"]):
    """Select launches by status, key and browser."""

    def with_related(self) -> LaunchQuerySet:
        """Join everything that a request needs, in one query."""
        return self.select_related("registration__server", "grant")

    @staticmethod
    def find_with_key(key: str) -> Launch | None:
        """Return the launch with this public key, and everything that a page needs."""
        return _WITH_KEY.find(digest(key))

    @staticmethod
    def find_with_state(state: str) -> Launch | None:
        """Return the launch with this ``state``, and everything a callback needs."""
        return _WITH_STATE.find(digest(state))

    def pending(self) -> LaunchQuerySet:
        """Return launches without a callback so far."""
        return self.filter(status=Launch.Status.PENDING)

    def known_to(self, browser_digests: Collection[str]) -> LaunchQuerySet:
        """
        Return launches at any stage, by any of their secrets.

        While a launch completes, a simultaneous request still sends the first secret.
        """
        return self.filter(
            Q(browser_digest__in=browser_digests) | Q(start_digest__in=browser_digests)
        )

    def of_browser(self, browser_digests: Collection[str]) -> LaunchQuerySet:
        """Return launches that one browser completed, including ended ones."""
        return self.filter(
            browser_digest__in=browser_digests, completed_at__isnull=False
        )

    def last_with_user(self, browser_digests: Collection[str]) -> Launch | None:
        """Return the latest launch that one browser completed for a user, if any."""
        launches = self.of_browser(browser_digests).exclude(user=None)
        return launches.order_by("-completed_at").first()

    def open(self) -> LaunchQuerySet:
        """Return launches that are completed and not ended."""
        return self.filter(status=Launch.Status.OPEN)

    def live(self, now: datetime) -> LaunchQuerySet:
        """Return open launches that have not expired, neither by age nor by disuse."""
        return self.open().filter(
            last_used_at__gt=now - conf.SMART_LAUNCH_IDLE_LIFETIME,
            completed_at__gt=now - conf.SMART_LAUNCH_LIFETIME,
        )

    def too_old(self, now: datetime) -> LaunchQuerySet:
        """Return open launches that were completed too long ago to be used."""
        return self.open().filter(completed_at__lte=now - conf.SMART_LAUNCH_LIFETIME)

    def idle(self, now: datetime) -> LaunchQuerySet:
        """Return open launches that were unused for too long."""
        long_ago = now - conf.SMART_LAUNCH_IDLE_LIFETIME
        return self.open().filter(last_used_at__lte=long_ago)

    def note_use(self, launch: Launch, *, now: datetime) -> None:
        """
        Store when *launch* was last used, to the minute.

        One conditional UPDATE: of concurrent requests, one writes, and the time never
        goes back.
        """
        latest = now - _USE_NOTED_EVERY
        if launch.last_used_at is None or launch.last_used_at <= latest:
            self.open().filter(pk=launch.pk).exclude(last_used_at__gt=latest).update(
                last_used_at=now
            )

    def held(self) -> LaunchQuerySet:
        """Return launches whose tokens are held while the user decides or signs in."""
        return self.filter(status=Launch.Status.HELD)

    def transition(self, before: str, after: str, **changes: object) -> int:
        """
        Move launches from one status to another; return how many.

        This is the only writer of the status of a stored launch.  It is one conditional
        UPDATE: of two requests that move a launch, one succeeds.

        ::

            pending ──> consumed ──> open ──> ended
               │          │   │       ^
               │          │   v       │
               │          │  held ────┘
               v          v   v
            failed <──────┴───┘

        Args:
            changes: what else is stored, as for ``update()``.

        Raises:
            ValueError: it is not one of ``Launch.ARROWS``.
        """
        if (before, after) not in Launch.ARROWS:
            raise ValueError(f"A launch does not go from {before} to {after}.")
        return self.filter(status=before).update(status=after, **changes)

    def fail(self, *, error_code: str, now: datetime, **changes: object) -> int:
        """Mark launches that have no tokens as failed, with the code as the reason."""
        status = Launch.Status
        changes |= {"error_code": error_code, "ended_at": now, "code_verifier": ""}
        # Earlier stages first: a launch that advances is then found at its next one.
        return sum(
            self.transition(before, status.FAILED, **changes)
            for before in (status.PENDING, status.CONSUMED)
        )

    def end(self, *, reason: str, now: datetime) -> int:
        """End open launches; their keys respond with 410 from now on."""
        return self.transition(
            Launch.Status.OPEN, Launch.Status.ENDED, error_code=reason, ended_at=now
        )


class Launch(models.Model):
    """
    One authorization: the request, the browser that started it, and the result.

    The key appears in URLs and is not a credential: the launch belongs to the browser
    whose cookie has the secret with the stored digest.
    """

    class Kind(models.TextChoices):
        """Where the launch started."""

        EHR = "ehr", _("EHR launch")
        STANDALONE = "standalone", _("standalone launch")
        CONNECTION = "connection", _("connection opened again")

    class Intent(models.TextChoices):
        """What a proven identity is used for."""

        SIGN_IN = "sign_in", _("sign in")
        CONNECT = "connect", _("connect")

    class Status(models.TextChoices):
        """How far it got."""

        PENDING = "pending", _("pending")
        CONSUMED = "consumed", _("completing")
        HELD = "held", _("awaiting a decision")
        OPEN = "open", _("open")
        FAILED = "failed", _("failed")
        ENDED = "ended", _("ended")

    class Question(models.TextChoices):
        """What a held launch waits for."""

        SIGN_IN = "sign_in", _("its user to sign in here")
        SWITCH = "switch", _("a decision on switching users")
        LINK = "link", _("a decision on who owns the account")

    #: What moves a launch from one status to another.
    ARROWS: ClassVar[Mapping[tuple[str, str], str]] = {
        (Status.PENDING, Status.CONSUMED): "the browser comes back from the EHR",
        (
            Status.PENDING,
            Status.FAILED,
        ): "it comes too late, or a sign-out first",
        (Status.CONSUMED, Status.OPEN): "the launch completes",
        (Status.CONSUMED, Status.HELD): "first, a user has to decide or to sign in",
        (Status.CONSUMED, Status.FAILED): "an error, or a sign-out meanwhile",
        (Status.HELD, Status.OPEN): "the user has done so",
        (Status.HELD, Status.FAILED): "the user has declined, or waited too long",
        (Status.OPEN, Status.ENDED): "a sign-out, another user, or its lifetime",
    }
    UNDER_WAY = (Status.PENDING, Status.CONSUMED, Status.HELD)

    key = models.CharField(
        _("key"),
        max_length=64,
        default=_make_key,
        editable=False,
        help_text=(
            "Identifies the launch in URLs, as in /~<key>/. Not a "
            "credential: it works only in the browser of the launch."
        ),
    )
    key_digest = DigestField(verbose_name=_("key digest"), sources=("key",))
    callback_id = models.CharField(
        _("callback ID"),
        max_length=100,
        blank=True,
        default="",
        editable=False,
        help_text=_("Callback ID in the redirect URI of the authorization request."),
    )
    registration = models.ForeignKey(
        ClientRegistration,
        models.PROTECT,
        verbose_name=_("client registration"),
        related_name="launches",
        help_text=_("The client registration that the launch uses."),
    )
    kind = models.CharField(
        _("kind"),
        max_length=20,
        choices=Kind,
        help_text=_("Where the launch started: in the EHR or on this site."),
    )
    intent = models.CharField(
        _("intent"),
        max_length=20,
        choices=Intent,
        default=Intent.SIGN_IN,
        help_text=_(
            "Whether the launch signs a user in or connects records to "
            "the signed-in user."
        ),
    )
    status = models.CharField(
        _("status"),
        max_length=20,
        choices=Status,
        default=Status.PENDING,
        help_text=_("Progress of the launch."),
    )
    error_code = models.CharField(
        _("error code"),
        max_length=100,
        blank=True,
        default="",
        help_text=_("Why the launch failed or ended; see the list of error codes."),
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        verbose_name=_("user"),
        related_name="smart_launches",
        null=True,
        blank=True,
        help_text=_("User who was signed in by the launch or connected it."),
    )
    identity = models.ForeignKey(
        Identity,
        models.SET_NULL,
        verbose_name=_("identity"),
        related_name="launches",
        null=True,
        blank=True,
        help_text=_("The user's identity at the EHR, if openid was granted."),
    )
    grant = models.ForeignKey(
        TokenGrant,
        models.SET_NULL,
        verbose_name=_("token grant"),
        related_name="launches",
        null=True,
        blank=True,
        help_text=_("The tokens of this launch."),
    )
    state_digest = models.CharField(
        _("state digest"),
        max_length=64,
        editable=False,
        help_text="SHA-256 of the state parameter.",
    )
    nonce = models.CharField(
        _("nonce"),
        max_length=64,
        editable=False,
        help_text="Nonce that the ID token has to contain.",
    )
    code_verifier = EncryptedTextField(
        _("code verifier"),
        blank=True,
        default="",
        editable=False,
        help_text=(
            "PKCE code verifier, stored encrypted and removed after the token request."
        ),
    )
    question = models.CharField(
        _("waiting for"),
        max_length=20,
        choices=Question,
        blank=True,
        default="",
        help_text=_("What the user has to decide before the launch can complete."),
    )
    held = EncryptedTextField(
        _("held claims"),
        blank=True,
        default="",
        editable=False,
        help_text=(
            "The EHR's claims about the user and the context, stored encrypted until "
            "the decision."
        ),
    )
    start_digest = models.CharField(
        _("first cookie digest"),
        max_length=64,
        editable=False,
        help_text=(
            "SHA-256 of the secret in the cookie that the launch was started with; a "
            "sign-out with it ends the launch."
        ),
    )
    browser_digest = models.CharField(
        _("browser cookie digest"),
        max_length=64,
        editable=False,
        help_text=(
            "SHA-256 of the secret in the launch's cookie, which completing the launch "
            "replaces; only a browser with this cookie can use the launch."
        ),
    )
    is_framed = models.BooleanField(
        _("opened in a frame"),
        default=False,
        editable=False,
        help_text="Whether the launch started in a frame.",
    )
    next_url = models.TextField(
        _("next URL"),
        blank=True,
        default="",
        editable=False,
        help_text="Page to open after the launch; empty for the landing page.",
    )
    scope_asked = models.TextField(
        _("requested scope"),
        blank=True,
        default="",
        help_text=_("Scopes that were requested."),
    )
    context = models.JSONField(
        _("launch context"),
        default=dict,
        blank=True,
        help_text=_(
            "Launch context from the token response, such as patient and encounter."
        ),
    )
    deviations = models.JSONField(
        _("deviations"),
        default=list,
        blank=True,
        editable=False,
        help_text=_(
            "What the EHR did differently from the specification, as codes with "
            "evidence."
        ),
    )
    fhir_user = models.CharField(
        _("FHIR user"),
        max_length=200,
        blank=True,
        default="",
        help_text=_("The user's FHIR resource, relative to the FHIR base URL."),
    )
    created_at = models.DateTimeField(
        _("started at"),
        auto_now_add=True,
        help_text=_("When the browser was sent to the EHR."),
    )
    expires_at = models.DateTimeField(
        _("expires at"),
        help_text=_("When a launch fails that is still under way."),
    )
    completed_at = models.DateTimeField(
        _("completed at"),
        null=True,
        blank=True,
        help_text=_("When the launch was completed."),
    )
    last_used_at = models.DateTimeField(
        _("last used at"),
        null=True,
        blank=True,
        help_text=_("When a page last used the launch; updated at most once a minute."),
    )
    ended_at = models.DateTimeField(
        _("ended at"),
        null=True,
        blank=True,
        help_text=_("When the launch ended."),
    )

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
        indexes = (
            # For the purge: those under way are few, and of the others few are old.
            models.Index(
                fields=["status", "ended_at"], name="django_smart_launch_ended"
            ),
            # With the status: without statistics, a database could otherwise use the
            # index above for the open launches of a browser, and read those of all.
            models.Index(
                fields=["browser_digest", "status"], name="django_smart_launch_browser"
            ),
            models.Index(
                fields=["start_digest", "status"], name="django_smart_launch_start"
            ),
        )

    def __str__(self) -> str:
        return f"{self.get_kind_display()} #{self.pk} ({self.get_status_display()})"

    @property
    def scopes_asked(self) -> ScopeSet:
        """The requested scopes."""
        return parse_stored_scopes(self.scope_asked)

    @property
    def missing_scope(self) -> str:
        """What was asked for and not granted; empty without a grant."""
        return self.grant.missing_scope if self.grant else ""

    @property
    def signs_in_here(self) -> bool:
        """Whether it was started on this site, to sign in through the EHR."""
        return (
            self.kind == self.Kind.STANDALONE
            and self.intent == self.Intent.SIGN_IN
            and self.identity_id is not None
        )

    def move(self, after: str, **changes: object) -> bool:
        """
        Move this launch on, if its status is still the same in the database.

        Args:
            changes: what else is stored; also the new values in memory.
        """
        this = Launch.objects.filter(pk=self.pk)
        if not this.transition(self.status, after, **changes):
            return False
        for name, value in {"status": after, **changes}.items():
            setattr(self, name, value)
        return True

    def is_live(self, now: datetime) -> bool:
        """Whether the launch can be used: completed, not ended, not out of time."""
        return self.status == self.Status.OPEN and not self.why_ended(now)

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


_WITH_KEY = JoinedRow(
    Launch,
    lambda key_digest: Launch.objects.filter(key_digest=key_digest),
    *("registration", "registration__server", "grant"),
)
_WITH_STATE = JoinedRow(
    Launch,
    lambda state_digest: Launch.objects.filter(state_digest=state_digest),
    *("registration", "registration__server", "registration__server__state"),
)
