"""Signing keys: the private halves of this site's JWK Set."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, EncryptedTextField, digest

__all__ = ["SigningKey", "SigningKeyQuerySet"]

# All that a public JWK has; whatever else stands in a row is never published.
_PUBLIC_MEMBERS = ("kty", "kid", "alg", "use", "n", "e", "crv", "x", "y")


class SigningKeyQuerySet(models.QuerySet["SigningKey"]):
    """Keys by their place in the life cycle: next, active, retired, removed."""

    def with_kid(self, kid: str) -> SigningKeyQuerySet:
        """The key with this id, compared exactly."""
        return self.filter(kid_digest=digest(kid))

    def active(self) -> SigningKeyQuerySet:
        """Keys that sign; one of each algorithm."""
        return self.filter(status=SigningKey.Status.ACTIVE).order_by("algorithm")

    def following(self) -> SigningKeyQuerySet:
        """Keys that are published and will sign; one of each algorithm."""
        return self.filter(status=SigningKey.Status.NEXT).order_by("algorithm")

    def retired_before(self, moment: datetime) -> SigningKeyQuerySet:
        """Keys that are still published and stopped signing at *moment* or earlier."""
        return self.filter(status=SigningKey.Status.RETIRED, retired_at__lte=moment)

    def published(self) -> SigningKeyQuerySet:
        """Keys the JWK Set lists: those to come, in use and just retired."""
        return self.exclude(status=SigningKey.Status.REMOVED).order_by("pk")

    def as_jwks(self) -> dict[str, list[dict[str, Any]]]:
        """The public JWK Set, without any private member (JWKS-02, JWKS-06)."""
        return {
            "keys": [
                {name: jwk[name] for name in _PUBLIC_MEMBERS if name in jwk}
                for jwk in self.published().values_list("public_jwk", flat=True)
            ]
        }

    def activate(self, key: SigningKey, *, now: datetime) -> bool:
        """
        Let the next key *key* sign from now on.

        One conditional UPDATE, as :meth:`retire`: of two rotations at once, one gets a
        row changed.  The unique slot keeps a second active key out on every database.
        """
        changed = self.filter(pk=key.pk, status=SigningKey.Status.NEXT).update(
            status=SigningKey.Status.ACTIVE,
            slot=digest(key.algorithm, SigningKey.Status.ACTIVE),
            activated_at=now,
        )
        return changed == 1

    def retire(self, key: SigningKey, *, now: datetime) -> bool:
        """Let the active key *key* sign no more; it stays published."""
        changed = self.filter(pk=key.pk, status=SigningKey.Status.ACTIVE).update(
            status=SigningKey.Status.RETIRED, slot=None, retired_at=now
        )
        return changed == 1

    def remove(self) -> int:
        """
        Take keys that do not sign out of the JWK Set, and forget their private halves.

        Returns:
            How many were published until now.
        """
        return self.filter(
            status__in=[SigningKey.Status.NEXT, SigningKey.Status.RETIRED]
        ).update(status=SigningKey.Status.REMOVED, slot=None, private_key="")


class SigningKey(models.Model):
    """
    One key pair that client assertions are signed with.

    Of each algorithm at most one key is active and at most one is next: ``slot`` holds
    both for those and NULL otherwise, in a unique column.
    """

    class Status(models.TextChoices):
        """Place in the life cycle."""

        NEXT = "next", _("next")
        ACTIVE = "active", _("active")
        RETIRED = "retired", _("retired")
        REMOVED = "removed", _("removed")

    class Algorithm(models.TextChoices):
        """What SMART asks every client to be able to sign with."""

        RS384 = "RS384", "RS384"
        ES384 = "ES384", "ES384"

    kid = models.CharField(_("key id"), max_length=200)
    kid_digest = DigestField(verbose_name=_("digest of the key id"), sources=("kid",))
    algorithm = models.CharField(_("algorithm"), max_length=10, choices=Algorithm)
    private_key = EncryptedTextField(_("private key"), blank=True)
    public_jwk = models.JSONField(_("public JWK"))
    status = models.CharField(
        _("status"), max_length=10, choices=Status, default=Status.NEXT
    )
    slot = DigestField(
        verbose_name=_("slot"), sources=("algorithm", "_slot"), null=True
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    activated_at = models.DateTimeField(_("active since"), null=True, blank=True)
    retired_at = models.DateTimeField(_("retired at"), null=True, blank=True)

    objects = SigningKeyQuerySet.as_manager()

    class Meta:
        verbose_name = _("signing key")
        verbose_name_plural = _("signing keys")
        ordering = ("-created_at", "-pk")
        constraints = (
            models.UniqueConstraint(fields=["kid_digest"], name="django_smart_key_kid"),
            models.UniqueConstraint(fields=["slot"], name="django_smart_key_slot"),
        )

    def __str__(self) -> str:
        return f"{self.algorithm} ({self.get_status_display()})"

    @property
    def _slot(self) -> str | None:
        taken = self.status in {self.Status.NEXT, self.Status.ACTIVE}
        return str(self.status) if taken else None
