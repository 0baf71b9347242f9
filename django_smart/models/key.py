"""Signing keys: the private halves of this site's JWK Set."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, EncryptedTextField, digest
from .registration import ClientRegistration

__all__ = ["SigningKey", "SigningKeyQuerySet"]

# The members of a public JWK; nothing else of a row is ever published.
_PUBLIC_MEMBERS = ("kty", "kid", "alg", "use", "n", "e", "crv", "x", "y")


class SigningKeyQuerySet(models.QuerySet["SigningKey"]):
    """Select keys by their status: next, active, retired, removed."""

    def with_kid(self, kid: str) -> SigningKeyQuerySet:
        """Return the key with this id, compared exactly."""
        return self.filter(kid_digest=digest(kid))

    def of(self, registration: ClientRegistration | None) -> SigningKeyQuerySet:
        """Return one registration's own keys; with ``None``, the shared keys."""
        return self.filter(registration=registration)

    def for_registration(self, registration: ClientRegistration) -> SigningKeyQuerySet:
        """
        Return the keys for *registration*'s server: its own, once one of them signs.

        Until then, and after its signing algorithm was changed to one without its own
        active key, it includes the shared keys.
        """
        own = Q(registration=registration)
        signing = self.of(registration).active()
        if signing.filter(algorithm=registration.signing_algorithm).exists():
            return self.filter(own)
        return self.filter(own | Q(registration=None))

    def active(self) -> SigningKeyQuerySet:
        """Return keys that sign; one per algorithm and owner."""
        return self.filter(status=SigningKey.Status.ACTIVE).order_by("algorithm")

    def following(self) -> SigningKeyQuerySet:
        """Return published keys that will sign next; one per algorithm and owner."""
        return self.filter(status=SigningKey.Status.NEXT).order_by("algorithm")

    def retired_before(self, moment: datetime) -> SigningKeyQuerySet:
        """Return published keys that stopped signing at *moment* or earlier."""
        return self.filter(status=SigningKey.Status.RETIRED, retired_at__lte=moment)

    def published(self) -> SigningKeyQuerySet:
        """Return the keys of the JWK Set: next, active and just retired."""
        return self.exclude(status=SigningKey.Status.REMOVED).order_by("pk")

    def as_jwks(self) -> dict[str, list[dict[str, Any]]]:
        """Return the public JWK Set, without private members (JWKS-02, JWKS-06)."""
        return {
            "keys": [
                {name: jwk[name] for name in _PUBLIC_MEMBERS if name in jwk}
                for jwk in self.published().values_list("public_jwk", flat=True)
            ]
        }

    def activate(self, key: SigningKey, *, now: datetime) -> bool:
        """
        Activate the next key *key*.

        One conditional UPDATE, as in :meth:`retire`: of two concurrent rotations, one
        changes a row.  The unique slot prevents a second active key on every database.
        """
        changed = self.filter(pk=key.pk, status=SigningKey.Status.NEXT).update(
            status=SigningKey.Status.ACTIVE,
            slot=digest(key.algorithm, key.name_slot(SigningKey.Status.ACTIVE)),
            activated_at=now,
        )
        return changed == 1

    def retire(self, key: SigningKey, *, now: datetime) -> bool:
        """Stop signing with the active key *key*; it stays published."""
        changed = self.filter(pk=key.pk, status=SigningKey.Status.ACTIVE).update(
            status=SigningKey.Status.RETIRED, slot=None, retired_at=now
        )
        return changed == 1

    def remove(self) -> int:
        """
        Remove keys that do not sign from the JWK Set, and delete their private keys.

        Returns:
            How many were published before.
        """
        return self.filter(
            status__in=[SigningKey.Status.NEXT, SigningKey.Status.RETIRED]
        ).update(status=SigningKey.Status.REMOVED, slot=None, private_key="")


class SigningKey(models.Model):
    """
    A key pair that signs client assertions.

    Each algorithm and owner has at most one active and one next key: ``slot`` combines
    these three for such keys and is NULL otherwise, in a unique column.
    """

    class Status(models.TextChoices):
        """Position in the key's life cycle."""

        NEXT = "next", _("next")
        ACTIVE = "active", _("active")
        RETIRED = "retired", _("retired")
        REMOVED = "removed", _("removed")

    kid = models.CharField(
        _("key ID"),
        max_length=200,
        help_text=_("Key ID in the published JWK Set and in signatures."),
    )
    kid_digest = DigestField(verbose_name=_("key ID digest"), sources=("kid",))
    algorithm = models.CharField(
        _("algorithm"),
        max_length=10,
        choices=ClientRegistration.SigningAlgorithm,
        help_text=_("Signature algorithm of the key."),
    )
    registration = models.ForeignKey(
        ClientRegistration,
        models.CASCADE,
        verbose_name=_("client registration"),
        related_name="signing_keys",
        null=True,
        blank=True,
        help_text=_(
            "The only registration that uses this key; its server reads a separate JWK "
            "Set. Leave empty for shared keys."
        ),
    )
    private_key = EncryptedTextField(
        _("private key"),
        blank=True,
        help_text="Stored encrypted; removed with the key.",
    )
    public_jwk = models.JSONField(
        _("public JWK"),
        help_text=_("Public key as published in the JWK Set."),
    )
    status = models.CharField(
        _("status"),
        max_length=10,
        choices=Status,
        default=Status.NEXT,
        help_text=_("Position in the key's life cycle."),
    )
    slot = DigestField(
        verbose_name=_("slot"), sources=("algorithm", "_slot"), null=True
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    activated_at = models.DateTimeField(
        _("active since"),
        null=True,
        blank=True,
        help_text=_("When the key started to sign."),
    )
    retired_at = models.DateTimeField(
        _("retired at"),
        null=True,
        blank=True,
        help_text=_("When the key stopped signing; it stays published for a while."),
    )

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
        return self.name_slot(self.status) if taken else None

    def name_slot(self, status: str) -> str:
        """The part of the slot besides the algorithm."""
        return f"{status} {self.registration_id or ''}".rstrip()
