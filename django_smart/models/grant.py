"""Token grants: the tokens of one authorization."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Count, Max, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..exceptions import SMARTError
from ..fields import DigestField, EncryptedTextField, digest
from ..protocol.scopes import ScopeSet
from .grant_refresh import RefreshQuerySet, can_be_deactivated
from .identity import Identity
from .registration import ClientRegistration

__all__ = ["TokenGrant", "TokenGrantQuerySet"]

# Refresh this long before the end, or a tenth of the token's life if that is less.
_MARGIN = timedelta(seconds=30)


class TokenGrantQuerySet(RefreshQuerySet):
    """Grants by what can be done with them."""

    def launched(self) -> TokenGrantQuerySet:
        """Grants that came from a launch, not those of backend services."""
        return self.filter(kind=TokenGrant.Kind.AUTHORIZATION_CODE)

    def get_for_service(
        self, registration: ClientRegistration, *, now: datetime
    ) -> TokenGrant:
        """
        The row that all processes share for *registration*'s backend service.

        Made at first use, without a token.  One for each scope that was asked for: the
        unique slot decides between two processes that make it at once.
        """
        scope = registration.system_scope
        grant, _created = self.get_or_create(
            service_slot=digest(str(registration.pk), scope),
            defaults={
                "registration": registration,
                "kind": TokenGrant.Kind.CLIENT_CREDENTIALS,
                "scope_asked": scope,
                "received_at": now,
                "expires_at": now,
            },
        )
        grant.registration = registration
        return grant

    def idle_services(self, since: datetime) -> TokenGrantQuerySet:
        """Active grants of backend services that nobody has used since then."""
        return self.active().filter(
            Q(expires_at__lte=since)
            | Q(registration__is_active=False)
            | Q(registration__system_scope=""),
            kind=TokenGrant.Kind.CLIENT_CREDENTIALS,
        )

    def newest_of_several(self) -> TokenGrantQuerySet:
        """The newest of each user's offline grants at one server for one patient."""
        several = (
            self.active()
            .offline()
            .filter(user__isnull=False)
            .order_by()
            .values("user_id", "registration_id", "patient_id")
            .annotate(newest=Max("pk"), number=Count("pk"))
            .filter(number__gt=1)
        )
        return self.filter(pk__in=[row["newest"] for row in several])

    def of_deactivated_users(self) -> TokenGrantQuerySet:
        """Active grants whose owner was deactivated."""
        if not can_be_deactivated():
            return self.none()
        return self.active().filter(user__is_active=False)

    def awaiting_revocation(self) -> TokenGrantQuerySet:
        """Grants that ended here and whose tokens the EHR has not been told of."""
        return self.filter(is_revocation_pending=True)

    def end(self, status: str, *, now: datetime, error: str = "") -> int:
        """
        End active grants and drop their tokens.

        Returns:
            How many were active until now.
        """
        return self.active().update(
            status=status,
            ended_at=now,
            last_error=error,
            refresh_due_at=None,
            lease_owner="",
            lease_expires_at=None,
            service_slot=None,
            **_NO_TOKENS,
        )

    def end_pending_revocation(self, *, now: datetime) -> int:
        """
        End active grants here at once; their tokens stay until the EHR was told.

        Returns:
            How many were active until now.
        """
        return self.active().update(
            status=TokenGrant.Status.REVOKED,
            ended_at=now,
            refresh_due_at=None,
            is_revocation_pending=True,
            service_slot=None,
        )

    def forget_tokens(self) -> int:
        """Drop the tokens of grants that have ended."""
        return self.update(is_revocation_pending=False, **_NO_TOKENS)


_NO_TOKENS: dict[str, Any] = {
    "access_token": "",
    "refresh_token": "",
    "refresh_token_digest": "",
}


class TokenGrant(models.Model):
    """
    The tokens of one authorization, encrypted, and what they are good for.

    A grant without a user belongs to one browser's launch alone, or to the backend
    service of its registration: then ``service_slot`` is filled while it is active.
    """

    class Kind(models.TextChoices):
        """What the tokens were given for."""

        AUTHORIZATION_CODE = "authorization_code", _("launch")
        CLIENT_CREDENTIALS = "client_credentials", _("backend service")

    class Status(models.TextChoices):
        """Whether the grant can be used, and if not, who ended it."""

        ACTIVE = "active", _("active")
        NEEDS_REAUTHORIZATION = "needs_reauthorization", _("needs reauthorization")
        REVOKED = "revoked", _("revoked")
        EXPIRED = "expired", _("expired")

    registration = models.ForeignKey(
        ClientRegistration,
        models.PROTECT,
        verbose_name=_("client registration"),
        related_name="grants",
    )
    kind = models.CharField(
        _("kind"), max_length=30, choices=Kind, default=Kind.AUTHORIZATION_CODE
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        verbose_name=_("user"),
        related_name="smart_grants",
        null=True,
        blank=True,
    )
    identity = models.ForeignKey(
        Identity,
        models.SET_NULL,
        verbose_name=_("identity"),
        related_name="grants",
        null=True,
        blank=True,
    )
    access_token = EncryptedTextField(_("access token"), blank=True, default="")
    refresh_token = EncryptedTextField(_("refresh token"), blank=True, default="")
    refresh_token_digest = models.CharField(
        _("digest of the refresh token"),
        max_length=64,
        blank=True,
        default="",
        editable=False,
    )
    scope_asked = models.TextField(_("asked scope"), blank=True, default="")
    scope_granted = models.TextField(_("first granted scope"), blank=True, default="")
    scope = models.TextField(_("scope"), blank=True, default="")
    patient_id = models.CharField(
        _("patient id"), max_length=64, blank=True, default=""
    )
    encounter_id = models.CharField(
        _("encounter id"), max_length=64, blank=True, default=""
    )
    is_offline = models.BooleanField(_("offline"), default=False)
    status = models.CharField(
        _("status"), max_length=30, choices=Status, default=Status.ACTIVE
    )
    received_at = models.DateTimeField(_("tokens received at"))
    expires_at = models.DateTimeField(_("access token expires at"))
    refresh_due_at = models.DateTimeField(_("refresh due at"), null=True, blank=True)
    refresh_failures = models.PositiveIntegerField(_("failed refreshes"), default=0)
    last_error = models.CharField(
        _("last error"), max_length=100, blank=True, default=""
    )
    lease_owner = models.CharField(
        _("lease owner"), max_length=64, blank=True, default="", editable=False
    )
    lease_expires_at = models.DateTimeField(
        _("lease expires at"), null=True, blank=True, editable=False
    )
    claimed_until = models.DateTimeField(
        _("claimed until"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("On its way to a worker."),
    )
    last_used_at = models.DateTimeField(
        _("last used at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("To the day: it is written at most once a day."),
    )
    is_revocation_pending = models.BooleanField(_("revocation pending"), default=False)
    service_slot = DigestField(
        verbose_name=_("service slot"),
        sources=("_service_id", "scope_asked"),
        null=True,
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)

    objects = TokenGrantQuerySet.as_manager()

    refresh_failure: SMARTError | None = None
    """Of a refresh that was tried with this instance, before a transaction began."""
    # Whoever refreshes reads the database's clock instead, which all hosts share.
    clock: Callable[[], datetime] = staticmethod(timezone.now)

    class Meta:
        verbose_name = _("token grant")
        verbose_name_plural = _("token grants")
        ordering = ("-created_at", "-pk")
        constraints = (
            models.UniqueConstraint(
                fields=["service_slot"], name="django_smart_grant_service_slot"
            ),
        )
        indexes = (
            models.Index(
                fields=["status", "refresh_due_at"], name="django_smart_grant_due"
            ),
        )

    def __str__(self) -> str:
        return f"{self.registration.server} #{self.pk} ({self.get_status_display()})"

    @property
    def is_for_service(self) -> bool:
        """Whether it belongs to a backend service, which has no refresh token."""
        return self.kind == self.Kind.CLIENT_CREDENTIALS

    @property
    def _service_id(self) -> str | None:
        is_shared = self.is_for_service and self.status == self.Status.ACTIVE
        return str(self.registration_id) if is_shared else None

    @property
    def scopes(self) -> ScopeSet:
        """What the tokens are good for now."""
        return ScopeSet.parse(self.scope)

    def set_tokens(self, *, access_token: str, refresh_token: str) -> None:
        """Put new tokens in place, with the digest that compare-and-set needs."""
        self.access_token = access_token
        self.refresh_token = refresh_token
        self.refresh_token_digest = digest(refresh_token) if refresh_token else ""

    def is_stale(self, now: datetime) -> bool:
        """Whether the access token has ended or is about to (REF-09)."""
        lifetime = self.expires_at - self.received_at
        return now >= self.expires_at - min(_MARGIN, lifetime / 10)

    def build_log_fields(
        self, event: str, *, error_code: str = ""
    ) -> dict[str, object]:
        """``extra`` of a log line: primary keys and codes, nothing of a person."""
        server = self.registration.server
        return {
            **server.build_log_fields(event, error_code=error_code),
            "smart_registration": self.registration_id,
            "smart_grant": self.pk,
        }
