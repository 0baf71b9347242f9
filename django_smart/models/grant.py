"""The tokens of one authorization: which are due, who refreshes them, how they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from secrets import randbelow
from typing import Any, Self

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import models, transaction
from django.db.models import Count, F, Max, Min, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..exceptions import SMARTError
from ..fields import DigestField, EncryptedTextField, digest
from ..protocol.scopes import ScopeSet
from .clock import DatabaseClock, DatabaseNow
from .identity import Identity
from .registration import ClientRegistration

__all__ = ["TokenGrant", "TokenGrantQuerySet", "can_be_deactivated"]


def can_be_deactivated() -> bool:
    """Whether the site's users have the column; Django asks for the attribute alone."""
    try:
        get_user_model()._meta.get_field("is_active")
    except FieldDoesNotExist:
        return False
    return True


class TokenGrantQuerySet(models.QuerySet["TokenGrant"]):
    """
    Which grants are usable or due, who may refresh them, and how they end.

    A *claim* keeps a second beat from sending what is on its way to a worker; it is
    lost without harm.  A *lease* is what allows a request to be sent.
    """

    def active(self) -> Self:
        """Grants neither lost, nor revoked, nor run out."""
        return self.filter(status=TokenGrant.Status.ACTIVE)

    def usable(self) -> Self:
        """Active grants whose owner, if there is one, is not deactivated."""
        if not can_be_deactivated():
            return self.active()
        return self.active().filter(Q(user__isnull=True) | Q(user__is_active=True))

    def offline(self) -> Self:
        """Grants that outlive the sign-in."""
        return self.filter(is_offline=True)

    def launched(self) -> Self:
        """Grants that came from a launch, not those of backend services."""
        return self.filter(kind=TokenGrant.Kind.AUTHORIZATION_CODE)

    def awaiting_revocation(self) -> Self:
        """Grants that ended here and whose tokens the EHR has not been told of."""
        return self.filter(is_revocation_pending=True)

    def of_deactivated_users(self) -> Self:
        """Active grants whose owner was deactivated."""
        if not can_be_deactivated():
            return self.none()
        return self.active().filter(user__is_active=False)

    def newest_of_several(self) -> Self:
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

    def idle_services(self, since: datetime) -> Self:
        """Active grants of backend services that nobody has used since then."""
        return self.active().filter(
            Q(expires_at__lte=since)
            | Q(registration__is_active=False)
            | Q(registration__system_scope=""),
            kind=TokenGrant.Kind.CLIENT_CREDENTIALS,
        )

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

    def due(self, now: datetime | None = None) -> Self:
        """
        Offline grants to refresh, those first whose token ends first (REF-11).

        Args:
            now: by default by the clock of the database.
        """
        at = now or DatabaseNow()
        return (
            self.usable()
            .offline()
            .filter(
                Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=at),
                refresh_due_at__lte=at,
                registration__refresh_stopped_at__isnull=True,
            )
            .order_by("expires_at", "pk")
        )

    def unclaimed(self) -> Self:
        """Grants that are not on their way to a worker."""
        return self.filter(_is_unclaimed())

    def count_due(self) -> list[tuple[int, int, int]]:
        """
        How much there is to refresh: the server's key, unclaimed and claimed grants.

        The server whose token ends first comes first; one without unclaimed grants is
        left out.
        """
        rows = (
            self.due()
            .order_by()
            .values("registration__server_id")
            .annotate(
                free=Count("pk", filter=_is_unclaimed()),
                number=Count("pk"),
                first=Min("expires_at"),
            )
            .filter(free__gt=0)
            .order_by("first")
            .values_list("registration__server_id", "free", "number")
        )
        return [(server_id, free, number - free) for server_id, free, number in rows]

    def claim(self, *, limit: int, length: timedelta) -> list[int]:
        """
        Claim up to *limit* of these grants; returns their primary keys, in order.

        Two that claim at once get different ones: the second skips what the first has
        locked, or changes no row.
        """
        found = list(self.unclaimed().values_list("pk", flat=True)[:limit])
        if not found:
            return []
        free = TokenGrant.objects.filter(_is_unclaimed(), pk__in=found)
        until: datetime | DatabaseNow = DatabaseNow(length)
        if not transaction.get_connection(self.db).features.has_select_for_update:
            # No locks (SQLite): the time of a claim tells whose it is.
            until = timezone.now() + length + timedelta(microseconds=randbelow(10**6))
        with transaction.atomic(using=self.db):
            if transaction.get_connection(self.db).features.has_select_for_update:
                free = free.select_for_update(
                    skip_locked=transaction.get_connection(
                        self.db
                    ).features.has_select_for_update_skip_locked
                )
                locked = set(free.values_list("pk", flat=True))
                found = [pk for pk in found if pk in locked]
                free = TokenGrant.objects.filter(pk__in=found)
            number = free.update(claimed_until=until)
            if number < len(found):
                mine = TokenGrant.objects.filter(pk__in=found, claimed_until=until)
                claimed = set(mine.values_list("pk", flat=True))
                found = [pk for pk in found if pk in claimed]
        return found

    def give_back_claims(self, pks: Sequence[int]) -> int:
        """Let grants be claimed again."""
        return self.filter(pk__in=pks).update(claimed_until=None)

    def read_with_clock(self, pk: int) -> TokenGrant | None:
        """One grant, with registration, server and user, by the database's clock."""
        grants = self.filter(pk=pk).annotate(database_now=DatabaseNow())
        grant = grants.select_related("registration__server", "user").first()
        if grant is not None:
            grant.clock = DatabaseClock(grant.database_now)  # type: ignore[attr-defined]
        return grant

    def take_lease(self, grant: TokenGrant, *, owner: str, length: timedelta) -> bool:
        """
        Become the one who refreshes *grant*, if nobody else is.

        One conditional UPDATE: of all processes that saw the same tokens, one gets a
        row changed.  The time is compared too, as not every server rotates.
        """
        taken = (
            self.active()
            .filter(
                _is_free(),
                pk=grant.pk,
                received_at=grant.received_at,
                refresh_token_digest=grant.refresh_token_digest,
            )
            .update(
                lease_owner=owner,
                lease_expires_at=DatabaseNow(length),
                claimed_until=None,
            )
        )
        return taken == 1

    def take_leases(self, pks: Sequence[int], *, owner: str, length: timedelta) -> int:
        """
        Become the one who refreshes those of the grants that are due and free.

        One UPDATE for all.  Nothing was seen before it that it could compare: read the
        tokens after it (:meth:`leased_by`).
        """
        return (
            self.active()
            .offline()
            .filter(_is_free(), pk__in=pks, refresh_due_at__lte=DatabaseNow())
            .update(
                lease_owner=owner,
                lease_expires_at=DatabaseNow(length),
                claimed_until=None,
            )
        )

    def leased_by(self, owner: str) -> Self:
        """Grants whose lease *owner* holds, and holds still."""
        return self.filter(lease_owner=owner, lease_expires_at__gt=DatabaseNow())

    def extend_leases(
        self, pks: Sequence[int], *, owner: str, length: timedelta
    ) -> int:
        """Hold the leases that have not run out for *length* from now."""
        return (
            self.leased_by(owner)
            .filter(pk__in=pks)
            .update(lease_expires_at=DatabaseNow(length))
        )

    def give_back_leases(self, pks: Sequence[int], *, owner: str) -> int:
        """Let others refresh the grants, which nothing was sent for."""
        return self.filter(pk__in=pks, lease_owner=owner).update(
            lease_owner="", lease_expires_at=None
        )

    def store_refreshed(self, grant: TokenGrant, *, used_digest: str) -> bool:
        """
        Write the tokens *grant* holds now, if *used_digest* is still the stored one.

        Compare-and-set on the refresh token that was used: an answer that arrives late
        never overwrites a newer one, and a grant that ended meanwhile stays ended.
        """
        stored = self._as_used(grant, used_digest).update(
            access_token=grant.access_token,
            refresh_token=grant.refresh_token,
            refresh_token_digest=grant.refresh_token_digest,
            scope=grant.scope,
            scope_granted=grant.scope_granted,
            received_at=grant.received_at,
            expires_at=grant.expires_at,
            refresh_due_at=grant.refresh_due_at,
            refresh_failures=0,
            last_error="",
            lease_owner="",
            lease_expires_at=None,
            claimed_until=None,
            patient_id=grant.patient_id,
            encounter_id=grant.encounter_id,
        )
        return stored == 1

    def store_rotated(self, grant: TokenGrant, *, used_digest: str) -> bool:
        """Write the refresh token alone, by the same compare-and-set."""
        stored = self._as_used(grant, used_digest).update(
            refresh_token=grant.refresh_token,
            refresh_token_digest=grant.refresh_token_digest,
        )
        return stored == 1

    def _as_used(self, grant: TokenGrant, used_digest: str) -> Self:
        return self.active().filter(pk=grant.pk, refresh_token_digest=used_digest)

    def postpone(
        self,
        pks: Sequence[int],
        *,
        owner: str,
        error_code: str,
        due_at: datetime,
    ) -> int:
        """Give leases back of grants that nothing could be sent for."""
        return self.filter(pk__in=pks, lease_owner=owner).update(
            refresh_failures=F("refresh_failures") + 1,
            last_error=error_code,
            refresh_due_at=due_at,
            lease_owner="",
            lease_expires_at=None,
        )

    def wake(
        self, registration_ids: Sequence[int], *, error_codes: Sequence[str]
    ) -> int:
        """Let grants that wait after one of the errors be due at once."""
        return (
            self.active()
            .offline()
            .filter(
                registration_id__in=registration_ids,
                refresh_failures__gt=0,
                last_error__in=error_codes,
            )
            .update(refresh_due_at=DatabaseNow())
        )

    def note_use(self, grant: TokenGrant, *, now: datetime) -> None:
        """Remember that *grant* is used, for whoever refreshes it lazily."""
        self.filter(pk=grant.pk).update(last_used_at=now)

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


def _is_unclaimed() -> Q:
    return Q(claimed_until__isnull=True) | Q(claimed_until__lte=DatabaseNow())


def _is_free() -> Q:
    return Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=DatabaseNow())


# Refresh this long before the end, or a tenth of the token's life if that is less.
_MARGIN = timedelta(seconds=30)


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
    known_at: float | None = None
    """When a client last read this instance from the database, by ``monotonic()``."""
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
