"""The tokens of an authorization: which are due, who refreshes them, how they end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import connections, models, router
from django.db.models import (
    Case,
    Exists,
    F,
    OuterRef,
    Q,
    When,
)
from django.db.models.functions import Coalesce, Least
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from ..exceptions import ContextChangedError, SMARTError
from ..fields import DigestField, EncryptedTextField, digest
from ..protocol.scopes import LaunchScope, ScopeSet, parse_stored_scopes
from .clock import DatabaseClock, DatabaseNow
from .identity import Identity
from .registration import ClientRegistration

__all__ = [
    "LOST_TOKENS_KEPT",
    "TokenGrant",
    "TokenGrantQuerySet",
    "can_be_deactivated",
]


LOST_TOKENS_KEPT = timedelta(days=1)
"""For how long an operator can restore a grant that the EHR has refused."""


def can_be_deactivated() -> bool:
    """Return whether the site's user model has the column."""
    try:
        get_user_model()._meta.get_field("is_active")
    except FieldDoesNotExist:
        return False
    return True


class TokenGrantQuerySet(models.QuerySet["TokenGrant"]):
    """
    Select grants that are usable or due, and change who refreshes them and their
    status.

    A *lease* allows a request to be sent.
    """

    def active(self) -> Self:
        """Return grants that have not ended."""
        return self.filter(status=TokenGrant.Status.ACTIVE)

    def endable(self) -> Self:
        """Return grants that are active or held, or that an operator may restore."""
        return self.filter(status__in=TokenGrant.ENDABLE)

    def usable(self) -> Self:
        """Return active grants whose owner, if any, is not deactivated."""
        if not can_be_deactivated():
            return self.active()
        return self.active().filter(Q(user__isnull=True) | Q(user__is_active=True))

    def find_usable(self, pk: int) -> TokenGrant | None:
        """
        Return the usable grant with this primary key.

        Its owner is asked as well, because ``is_active`` need not be a column.
        """
        grant = self.usable().filter(pk=pk).select_related("user").first()
        if grant is None or (grant.user is not None and not grant.user.is_active):
            return None
        return grant

    def offline(self) -> Self:
        """Return grants that stay valid after sign-out."""
        return self.filter(is_offline=True)

    def note_patient_name(self, grant: TokenGrant, name: str) -> None:
        """Store the name of *grant*'s patient, unless its connection has ended."""
        self.active().filter(pk=grant.pk).update(patient_name=name)
        grant.patient_name = name

    def connected(self, now: datetime) -> Self:
        """
        Return the grants that their owners see in their list.

        Offline grants that they have not ended, also if the EHR has named another
        patient or user, and active ones that requested offline access.
        """
        offline = self.offline()
        changed = offline.filter(
            status=TokenGrant.Status.REVOKED, last_error=ContextChangedError.code
        )
        passing = self.active().filter(
            scope_asked__contains="offline_access", expires_at__gt=now
        )
        return offline.endable() | changed | passing

    def awaiting_revocation(self) -> Self:
        """Return grants that ended here but are not yet revoked at the EHR."""
        return self.filter(is_revocation_pending=True)

    def refreshable(self) -> Self:
        """Return offline grants that workers may refresh, without stops and pauses."""
        return (
            self.usable()
            .offline()
            .filter(
                registration__refresh_stopped_at__isnull=True,
                registration__is_active=True,
                registration__server__is_active=True,
                registration__server__paused=False,
            )
        )

    def read_due(
        self, registration: ClientRegistration, *, limit: int
    ) -> list[tuple[int, datetime, int]]:
        """
        Return the due grants of *registration* whose access tokens expire first.

        Returns:
            For each that nobody is refreshing, how often it has failed, when its token
            expires, and its primary key.
        """
        return list(
            self.usable()
            .offline()
            .filter(
                _is_free(),
                registration=registration,
                refresh_due_at__lte=DatabaseNow(),
            )
            .order_by("expires_at", "pk")
            .values_list("refresh_failures", "expires_at", "pk")[:limit]
        )

    def read_with_clock(self, pk: int) -> TokenGrant | None:
        """Return a grant with registration, server and user, on database time."""
        grants = self.filter(pk=pk).annotate(database_now=DatabaseNow())
        grant = grants.select_related("registration__server__state", "user").first()
        if grant is not None:
            grant.clock = DatabaseClock(grant.database_now)  # type: ignore[attr-defined]
        return grant

    def take_lease(self, grant: TokenGrant, *, owner: str, length: timedelta) -> bool:
        """
        Take the lease of *grant*, if it is free.

        One conditional UPDATE: of all processes that saw the same tokens, only one
        changes the row.  The time is compared too, because not every server rotates
        tokens.
        """
        taken = (
            self.active()
            .filter(
                _is_free(),
                pk=grant.pk,
                received_at=grant.received_at,
                refresh_token_digest=grant.refresh_token_digest,
            )
            .update(lease_owner=owner, lease_expires_at=DatabaseNow(length))
        )
        return taken == 1

    def take_leases(self, pks: Sequence[int], *, owner: str, length: timedelta) -> int:
        """
        Take the leases of those grants that are due and that nobody has leased.

        One UPDATE for all, without values to compare: read the tokens afterward
        (:meth:`leased_by`).  Expired leases are left to the next turn: until then, a
        holder that could not reach the database can store its tokens.
        """
        taken = (
            self.active()
            .offline()
            .filter(
                lease_expires_at__isnull=True,
                pk__in=pks,
                refresh_due_at__lte=DatabaseNow(),
            )
            .update(lease_owner=owner, lease_expires_at=DatabaseNow(length))
        )
        if taken < len(pks):
            expired = self.filter(pk__in=pks, lease_expires_at__lte=DatabaseNow())
            expired.update(**_NO_LEASE)
        return taken

    def leased_by(self, owner: str) -> Self:
        """Return grants whose lease *owner* still holds."""
        return self.filter(lease_owner=owner, lease_expires_at__gt=DatabaseNow())

    def give_back(self, pks: Sequence[int], *, owner: str, **changes: object) -> int:
        """Release leases after which nothing is stored but *changes*."""
        rows = self.filter(pk__in=pks, lease_owner=owner)
        return rows.update(**changes, **_NO_LEASE)

    def store_refreshed(
        self, grant: TokenGrant, *, used_digest: str, changed: Collection[str] = ()
    ) -> bool:
        """
        Store the tokens of *grant*, if *used_digest* is still the stored one.

        Compare-and-set on the refresh token that was used: a late response never
        overwrites a newer one, and a grant that ended meanwhile stays ended.

        Args:
            changed: names of further fields to store, which a refresh seldom changes.
        """
        return _store(grant, (*_REFRESHED, *changed), used_digest=used_digest)

    def revive(
        self, grant: TokenGrant, *, used_digest: str, changed: Collection[str] = ()
    ) -> bool:
        """
        Store the tokens of *grant*, which was lost while they were on their way.

        The EHR may have refused the old token because it had issued these.  Not if the
        owner has connected again; a second refusal is final.

        Args:
            changed: as for :meth:`store_refreshed`.
        """
        grant.was_restored, grant.ended_at = True, None
        names = (*_REFRESHED, "status", "ended_at", *changed)
        lost = self.filter(
            pk=grant.pk,
            refresh_token_digest=used_digest,
            status=TokenGrant.Status.NEEDS_REAUTHORIZATION,
        )
        values = {name: getattr(grant, name) for name in names}
        return lost.not_replaced().update(**values) == 1

    def store_rotated(self, grant: TokenGrant, *, used_digest: str) -> bool:
        """Store only the refresh token, by the same compare-and-set."""
        names = ("refresh_token", "refresh_token_digest")
        return _store(grant, names, used_digest=used_digest)

    def wake(
        self,
        registration_ids: Sequence[int],
        *,
        error_codes: Collection[str],
        most_failures: int = 0,
    ) -> int:
        """
        Make offline grants due now that wait after one of the errors.

        Args:
            most_failures: as many of each count from now on.
        """
        return (
            self.active()
            .offline()
            .filter(
                registration_id__in=registration_ids,
                refresh_failures__gt=0,
                last_error__in=error_codes,
            )
            .update(
                refresh_due_at=DatabaseNow(),
                refresh_failures=Least(F("refresh_failures"), most_failures),
            )
        )

    def end(self, status: str, *, now: datetime, error: str = "") -> int:
        """
        End active grants and delete their tokens.

        Returns:
            How many were active before.
        """
        return self.active().update(
            status=status, ended_at=now, last_error=error, **_ENDED, **_NO_TOKENS
        )

    def lose(self, *, error: str) -> int:
        """
        End active grants that the EHR refused; return how many were active before.

        Their tokens are kept for a day, because the EHR may be wrong
        (:meth:`restore_lost`).
        """
        return self.active().update(
            status=TokenGrant.Status.NEEDS_REAUTHORIZATION,
            ended_at=DatabaseNow(),
            last_error=error,
            refresh_due_at=None,
            **_NO_LEASE,
        )

    def lost(self, *, within: timedelta) -> Self:
        """Grants that the EHR has refused since then, before their known end."""
        return self.filter(
            status=TokenGrant.Status.NEEDS_REAUTHORIZATION,
            ended_at__gt=DatabaseNow(-within),
        ).exclude(ends_at__lte=F("ended_at"))

    def ending(self) -> Self:
        """Active offline grants whose known end is near, or past."""
        return self.active().offline().filter(ends_soon_at__lte=DatabaseNow())

    def not_replaced(self) -> Self:
        """
        Return grants whose owner has not connected again.

        A newer offline grant counts even if it has ended since, because its owner may
        have disconnected it.
        """
        newer = TokenGrant.objects.offline().filter(
            _is_same_connection(), created_at__gt=OuterRef("created_at")
        )
        return self.exclude(Exists(newer))

    def restore_lost(self) -> int:
        """
        Reactivate lost grants whose owner has not connected again.

        Those past their known end stay lost.
        """
        lost = self.lost(within=LOST_TOKENS_KEPT).exclude(refresh_token_digest="")
        return lost.not_replaced().update(
            status=TokenGrant.Status.ACTIVE,
            ended_at=None,
            was_restored=True,
            refresh_failures=0,
            refresh_due_at=Case(When(is_offline=True, then=DatabaseNow())),
        )

    def end_pending_revocation(self, *, now: datetime) -> int:
        """
        End grants immediately; their tokens stay until they are revoked at the EHR.

        Returns:
            How many had not ended, or could have been restored.
        """
        return self.endable().update(
            status=TokenGrant.Status.REVOKED,
            ended_at=now,
            is_revocation_pending=True,
            **_ENDED,
        )

    def take_revocation(self, *, owner: str, length: timedelta) -> TokenGrant | None:
        """
        Lease the grant whose tokens are to be revoked next, if there is one.

        Those that were tried before come last.  None are at a server that has asked to
        wait.
        """
        free = self.awaiting_revocation().filter(_is_free())
        pk = (
            free.exclude(registration__server__state__paused_until__gt=DatabaseNow())
            .order_by(F("lease_expires_at").asc(nulls_first=True), "ended_at")
            .values_list("pk", flat=True)
            .first()
        )
        if pk is None:
            return None
        until = DatabaseNow(length)
        # Of two processes, only one changes the row.
        free.filter(pk=pk).update(lease_owner=owner, lease_expires_at=until)
        taken = self.awaiting_revocation().leased_by(owner)
        return taken.select_related("registration__server__state").filter(pk=pk).first()

    def postpone_revocations(
        self, grant: TokenGrant, *, length: timedelta, with_others: bool
    ) -> None:
        """Let *grant* wait before it is tried again, or all others of its server."""
        rows = Q(pk=grant.pk)
        if with_others:
            server_id = grant.registration.server_id
            there = ClientRegistration.objects.filter(server_id=server_id)
            rows |= Q(_is_free(), registration__in=there)
        until = DatabaseNow(length)
        waiting = self.awaiting_revocation().filter(rows)
        waiting.update(lease_owner="", lease_expires_at=until)

    def forget_tokens(self) -> int:
        """Delete the tokens of grants that have ended."""
        return self.update(is_revocation_pending=False, **_NO_TOKENS)


def _is_free() -> Q:
    return Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=DatabaseNow())


def _is_same_connection() -> Q:
    """As ``TokenGrant.is_same_connection_as``, for the rows of a subquery."""
    own = Coalesce(OuterRef("identity_id"), F("identity_id"))
    return Q(
        ~Q(patient_id="") | Q(identity_id__isnull=True) | Q(identity_id=own),
        user=OuterRef("user"),
        registration=OuterRef("registration"),
        patient_id=OuterRef("patient_id"),
    )


def _store(grant: TokenGrant, names: Collection[str], *, used_digest: str) -> bool:
    """
    Store these fields of *grant* if it is active, and *used_digest* the stored digest.

    Written out, because each refresh runs it, and it would take a fifth of the work of
    a refresh to compose it as a queryset.
    """
    connection = connections[router.db_for_write(TokenGrant)]
    fields: list[Any] = [TokenGrant._meta.get_field(name) for name in names]
    values: list[Any] = [
        each.get_db_prep_save(getattr(grant, each.attname), connection)
        for each in fields
    ]
    # None of these names is reserved in SQL.
    changes = ", ".join(f"{each.column} = %s" for each in fields)
    statement = (
        f"UPDATE {TokenGrant._meta.db_table} SET {changes} "  # noqa: S608
        "WHERE id = %s AND refresh_token_digest = %s AND status = %s"
    )
    values += [grant.pk, used_digest, TokenGrant.Status.ACTIVE.value]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return bool(cursor.rowcount == 1)


# What each refresh stores.
_REFRESHED = (
    *("access_token", "refresh_token", "refresh_token_digest"),
    *("received_at", "expires_at", "refresh_due_at", "refresh_failures"),
    *("was_restored", "last_error", "lease_owner", "lease_expires_at"),
    *("scope", "patient_id", "encounter_id", "ends_at", "ends_soon_at"),
)

# Refresh this long before expiry, or a tenth of the token's lifetime if that is less.
_MARGIN = timedelta(seconds=30)


_NO_LEASE: dict[str, Any] = {"lease_owner": "", "lease_expires_at": None}
_ENDED: dict[str, Any] = {
    "refresh_due_at": None,
    "service_slot": None,
    "patient_name": "",
    **_NO_LEASE,
}
_NO_TOKENS: dict[str, Any] = {
    "access_token": "",
    "refresh_token": "",
    "refresh_token_digest": "",
}


class TokenGrant(models.Model):
    """
    The tokens of one authorization, stored encrypted, with their scopes.

    A grant without a user belongs to one browser's launch, or to the backend service of
    its registration: then ``service_slot`` is set while the grant is active.
    """

    class Kind(models.TextChoices):
        """How the tokens were obtained."""

        EHR = "ehr", _("EHR launch")
        STANDALONE = "standalone", _("standalone launch")
        CLIENT_CREDENTIALS = "client_credentials", _("backend service")

    class Status(models.TextChoices):
        """Whether the grant can be used, and if not, why."""

        ACTIVE = "active", _("active")
        HELD = "held", _("awaiting a decision")
        NEEDS_REAUTHORIZATION = "needs_reauthorization", _("needs reauthorization")
        REVOKED = "revoked", _("revoked")
        EXPIRED = "expired", _("expired")

    ENDABLE = (Status.ACTIVE, Status.HELD, Status.NEEDS_REAUTHORIZATION)

    registration = models.ForeignKey(
        ClientRegistration,
        models.PROTECT,
        verbose_name=_("client registration"),
        related_name="grants",
        help_text=_("The client registration that received the tokens."),
    )
    kind = models.CharField(
        _("kind"),
        max_length=30,
        choices=Kind,
        default=Kind.EHR,
        help_text=_("How the tokens were obtained."),
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        # It has ended then, and is kept until its tokens are revoked.
        models.SET_NULL,
        verbose_name=_("user"),
        related_name="smart_grants",
        null=True,
        blank=True,
        help_text=_(
            "Owner of the grant; empty for backend services and launches "
            "without a user."
        ),
    )
    identity = models.ForeignKey(
        Identity,
        models.SET_NULL,
        verbose_name=_("identity"),
        related_name="grants",
        null=True,
        blank=True,
        help_text=_("The owner's identity at the EHR."),
    )
    access_token = EncryptedTextField(
        _("access token"),
        blank=True,
        default="",
        help_text="Stored encrypted; emptied some time after the grant has ended.",
    )
    refresh_token = EncryptedTextField(
        _("refresh token"),
        blank=True,
        default="",
        help_text="Stored encrypted; empty if the EHR sent none.",
    )
    refresh_token_digest = models.CharField(
        _("refresh token digest"),
        max_length=64,
        blank=True,
        default="",
        editable=False,
        help_text=(
            "SHA-256 of the refresh token, so that only one process replaces it."
        ),
    )
    scope_asked = models.TextField(
        _("requested scope"),
        blank=True,
        default="",
        help_text=_("Scopes that were requested."),
    )
    scope_granted = models.TextField(
        _("initially granted scope"),
        blank=True,
        default="",
        help_text=_("Scopes in the first token response."),
    )
    scope = models.TextField(
        _("scope"),
        blank=True,
        default="",
        help_text=_("Scopes of the current access token."),
    )
    patient_id = models.CharField(
        _("patient ID"),
        max_length=64,
        blank=True,
        default="",
        help_text=_(
            "ID of the patient whose record the grant is limited to; "
            "empty without patient context."
        ),
    )
    patient_name = EncryptedTextField(
        _("patient name"),
        blank=True,
        default="",
        editable=False,
        help_text=(
            "Stored encrypted when a page first shows it; removed when the connection "
            "ends."
        ),
    )
    encounter_id = models.CharField(
        _("encounter ID"),
        max_length=64,
        blank=True,
        default="",
        help_text=_("ID of the encounter in context, if any."),
    )
    is_offline = models.BooleanField(
        _("offline"),
        default=False,
        help_text=_("Whether the grant stays valid after sign-out (offline_access)."),
    )
    status = models.CharField(
        _("status"),
        max_length=30,
        choices=Status,
        default=Status.ACTIVE,
        help_text=_("Whether the grant can be used."),
    )
    received_at = models.DateTimeField(
        _("tokens received at"),
        help_text=_("When the current tokens were received."),
    )
    expires_at = models.DateTimeField(
        _("access token expires at"),
        help_text=_("When the current access token expires."),
    )
    refresh_due_at = models.DateTimeField(
        _("refresh due at"),
        null=True,
        blank=True,
        help_text=_("When a worker refreshes the grant next."),
    )
    refresh_failures = models.PositiveIntegerField(
        _("failed refreshes"),
        default=0,
        help_text=_("Consecutive failed refreshes."),
    )
    ends_at = models.DateTimeField(
        _("ends at"),
        null=True,
        blank=True,
        help_text=_(
            "When the refresh token expires, if the EHR sends it or the lifetime is "
            "known."
        ),
    )
    ends_soon_at = models.DateTimeField(
        _("ends soon from"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("From when its owner should connect again."),
    )
    end_announced = models.BooleanField(
        _("end announced"),
        default=False,
        db_default=False,
        editable=False,
        help_text=_("Whether the signal of the coming end was sent."),
    )
    was_restored = models.BooleanField(
        _("restored"),
        default=False,
        db_default=False,
        editable=False,
        help_text=_(
            "Whether an operator restored the grant after the EHR had refused it, and "
            "no refresh has succeeded since."
        ),
    )
    last_error = models.CharField(
        _("last error"),
        max_length=100,
        blank=True,
        default="",
        help_text=_("Error code of the last failed refresh."),
    )
    lease_owner = models.CharField(
        _("lease owner"),
        max_length=64,
        blank=True,
        default="",
        editable=False,
        help_text="Process that is refreshing the grant.",
    )
    lease_expires_at = models.DateTimeField(
        _("lease expires at"),
        null=True,
        blank=True,
        editable=False,
        help_text="When another process may refresh the grant instead.",
    )
    last_used_at = models.DateTimeField(
        _("last used at"),
        null=True,
        blank=True,
        editable=False,
        help_text=_("When the grant was last used; updated at most once a day."),
    )
    is_revocation_pending = models.BooleanField(
        _("revocation pending"),
        default=False,
        help_text=_("Whether the tokens still have to be revoked at the EHR."),
    )
    service_slot = DigestField(
        verbose_name=_("service slot"),
        sources=("_service_id", "scope_asked"),
        null=True,
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    ended_at = models.DateTimeField(
        _("ended at"),
        null=True,
        blank=True,
        help_text=_("When the grant ended."),
    )

    objects = TokenGrantQuerySet.as_manager()

    refresh_failure: SMARTError | None = None
    """Of a refresh that was tried with this instance, before a transaction began."""
    known_at: float | None = None
    """When a client last read this instance from the database, by ``monotonic()``."""
    # Refreshes use the database's clock instead, which all hosts share.
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
            # The status comes first: InnoDB checks a foreign key whenever an entry of
            # its index changes, and a refresh would wait for a locked registration.
            # Whether a registration has due grants, and which of few ends first.
            models.Index(
                fields=["status", "registration", "refresh_due_at"],
                name="django_smart_grant_due_by_reg",
            ),
            # Which of very many ends first, without sorting them all.
            models.Index(
                fields=["status", "registration", "expires_at", "id"],
                name="django_smart_grant_end_by_reg",
            ),
            # For the purge: what is still to be revoked, and what is old.
            models.Index(
                fields=["is_revocation_pending", "ended_at"],
                name="django_smart_grant_ended",
            ),
        )

    def __str__(self) -> str:
        return f"#{self.pk} ({self.get_status_display()})"

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
        """Scopes of the current access token."""
        return parse_stored_scopes(self.scope)

    @property
    def is_for_patient(self) -> bool:
        """
        Whether its tokens are for one patient's record, however the server says so.

        If no scope that it granted at first can be read as one for resources, by what
        was requested: some send no or other names.
        """
        granted = parse_stored_scopes(self.scope_granted)
        if not granted.resource_scopes:
            granted = parse_stored_scopes(self.scope_asked)
        return granted.are_for_patient

    @property
    def is_of_patient(self) -> bool:
        """
        Whether a patient connected it on this site, or somebody who acts for them.

        What a clinician opened is not theirs to come back to.
        """
        if self.kind != self.Kind.STANDALONE:
            return False
        reference = self.identity.fhir_user if self.identity else ""
        *_path, kind, _id = ("", "", *reference.split("/"))
        if kind in {"Patient", "RelatedPerson"}:
            return True
        return kind in {"", "Person"} and self.registration.is_for_patients

    @property
    def may_read_name(self) -> bool:
        """Whether its scopes include the patient's own resource."""
        levels = ("patient", "user")
        covers = self.scopes.covers
        return bool(self.patient_id) and any(covers(f"{x}/Patient.r") for x in levels)

    @property
    def connection(self) -> tuple[Any, ...]:
        """
        What it has in common with the other grants of its user's connection.

        Without a patient, what two accounts at the EHR may read can differ.  What ends
        with a visit does not continue what lasts.
        """
        account = None if self.patient_id else self.identity_id
        server_id = self.registration.server_id
        return server_id, self.patient_id, account, self.is_offline

    @property
    def missing_scope(self) -> str:
        """
        Requested scopes that were not granted at first, or "".

        Servers may leave ``launch`` and ``offline_access`` out of their response: the
        first grants no access, and a refresh token implies the second.
        """
        asked = parse_stored_scopes(self.scope_asked)
        settled = parse_stored_scopes(
            f"offline_access online_access {self.scope_granted}"
        )
        missing = settled.missing(asked)
        names = [each.text for each in missing if not isinstance(each, LaunchScope)]
        if "offline_access" in asked and not self.is_offline:
            names.append("offline_access")
        return " ".join(names)

    def set_tokens(self, *, access_token: str, refresh_token: str) -> None:
        """Set new tokens, with the digest for compare-and-set."""
        self.access_token = access_token
        self.refresh_token = refresh_token
        self.refresh_token_digest = digest(refresh_token) if refresh_token else ""

    def receive(
        self,
        *,
        access_token: str,
        refresh_token: str,
        expires_at: datetime,
        now: datetime,
    ) -> None:
        """Set what a successful refresh brings, as the holder of the lease."""
        self.set_tokens(access_token=access_token, refresh_token=refresh_token)
        self.received_at, self.expires_at = now, expires_at
        self.refresh_failures, self.last_error = 0, ""
        self.was_restored = False
        self.lease_owner, self.lease_expires_at = "", None

    def is_same_connection_as(self, other: TokenGrant) -> bool:
        """
        Return whether the newer one of both replaces the older one.

        Without a patient, what two accounts at the EHR may read can differ.
        """
        names = ("user_id", "registration_id", "patient_id")
        if any(getattr(self, name) != getattr(other, name) for name in names):
            return False
        accounts = {self.identity_id, other.identity_id}
        return bool(self.patient_id) or None in accounts or len(accounts) == 1

    def is_stale(self, now: datetime) -> bool:
        """Return whether the access token has expired or is about to (REF-09)."""
        lifetime = self.expires_at - self.received_at
        return now >= self.expires_at - min(_MARGIN, lifetime / 10)

    def is_ending(self, now: datetime) -> bool:
        """Whether its known end is near, or past."""
        return self.ends_soon_at is not None and self.ends_soon_at <= now

    def build_log_fields(
        self, event: str, *, error_code: str = ""
    ) -> dict[str, object]:
        """Return ``extra`` for a log line: primary keys and codes, no personal data."""
        server = self.registration.server
        return {
            **server.build_log_fields(event, error_code=error_code),
            "smart_registration": self.registration_id,
            "smart_grant": self.pk,
        }
