"""Grants as the refresh engine sees them: due, claimed, leased and stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from secrets import randbelow
from typing import TYPE_CHECKING, Self

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import models, transaction
from django.db.models import Count, F, Min, Q
from django.utils import timezone

from .clock import DatabaseClock, DatabaseNow
from .prepared import PreparedUpdate

if TYPE_CHECKING:
    from .grant import TokenGrant

__all__ = ["RefreshQuerySet", "can_be_deactivated"]


def can_be_deactivated() -> bool:
    """Whether the site's users have the column; Django asks for the attribute alone."""
    try:
        get_user_model()._meta.get_field("is_active")
    except FieldDoesNotExist:
        return False
    return True


class RefreshQuerySet(models.QuerySet["TokenGrant"]):
    """
    Who may refresh which grant, and what may be written then.

    A *claim* keeps a second beat from sending what is on its way to a worker; it is
    lost without harm.  A *lease* is what allows a request to be sent.
    """

    def active(self) -> Self:
        """Grants neither lost, nor revoked, nor run out."""
        return self.filter(status=self.model.Status.ACTIVE)

    def usable(self) -> Self:
        """Active grants whose owner, if there is one, is not deactivated."""
        if not can_be_deactivated():
            return self.active()
        return self.active().filter(Q(user__isnull=True) | Q(user__is_active=True))

    def offline(self) -> Self:
        """Grants that outlive the sign-in."""
        return self.filter(is_offline=True)

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
        free = self.model._default_manager.filter(_is_unclaimed(), pk__in=found)
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
                free = self.model._default_manager.filter(pk__in=found)
            number = free.update(claimed_until=until)
            if number < len(found):
                mine = self.model._default_manager.filter(
                    pk__in=found, claimed_until=until
                )
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

    @staticmethod
    def store_refreshed(grant: TokenGrant, *, used_digest: str) -> bool:
        """
        Write the tokens *grant* holds now, if *used_digest* is still the stored one.

        Compare-and-set on the refresh token that was used: an answer that arrives late
        never overwrites a newer one, and a grant that ended meanwhile stays ended.
        """
        return _AS_SEEN.run(
            grant.pk,
            used_digest,
            {
                "access_token": grant.access_token,
                "refresh_token": grant.refresh_token,
                "refresh_token_digest": grant.refresh_token_digest,
                "scope": grant.scope,
                "scope_granted": grant.scope_granted,
                "received_at": grant.received_at,
                "expires_at": grant.expires_at,
                "refresh_due_at": grant.refresh_due_at,
                "refresh_failures": 0,
                "last_error": "",
                "lease_owner": "",
                "lease_expires_at": None,
                "claimed_until": None,
                "patient_id": grant.patient_id,
                "encounter_id": grant.encounter_id,
            },
        )

    @staticmethod
    def store_rotated(grant: TokenGrant, *, used_digest: str) -> bool:
        """Write the refresh token alone, by the same compare-and-set."""
        return _AS_SEEN.run(
            grant.pk,
            used_digest,
            {
                "refresh_token": grant.refresh_token,
                "refresh_token_digest": grant.refresh_token_digest,
            },
        )

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


def _is_unclaimed() -> Q:
    return Q(claimed_until__isnull=True) | Q(claimed_until__lte=DatabaseNow())


def _is_free() -> Q:
    return Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=DatabaseNow())


def _find_as_seen(pk: int, used_digest: str) -> models.QuerySet[TokenGrant]:
    grants = apps.get_model("django_smart", "TokenGrant").objects
    return grants.active().filter(pk=pk, refresh_token_digest=used_digest)


_AS_SEEN = PreparedUpdate(_find_as_seen)
