"""Identities: which user of this site an EHR's user is."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, digest
from .server import MAX_URL_LENGTH

__all__ = ["Identity", "IdentityQuerySet"]


class IdentityQuerySet(models.QuerySet["Identity"]):
    """Identities by what an ID token proves."""

    def with_subject(self, issuer: str, subject: str) -> IdentityQuerySet:
        """The identity of this (issuer, sub), compared exactly (IDT-09)."""
        return self.filter(digest=digest(issuer, subject))


class Identity(models.Model):
    """
    One (issuer, sub) and the Django user it belongs to.

    Users are found here and never by e-mail: any EHR could claim any address.
    """

    issuer = models.CharField(_("issuer"), max_length=MAX_URL_LENGTH)
    subject = models.CharField(_("subject"), max_length=255)
    digest = DigestField(verbose_name=_("digest"), sources=("issuer", "subject"))
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        verbose_name=_("user"),
        related_name="smart_identities",
    )
    fhir_user = models.CharField(
        _("FHIR user"),
        max_length=200,
        blank=True,
        default="",
        help_text=_("Reference relative to the FHIR base URL."),
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    last_seen_at = models.DateTimeField(_("last seen at"), null=True, blank=True)

    objects = IdentityQuerySet.as_manager()

    class Meta:
        verbose_name = _("identity")
        verbose_name_plural = _("identities")
        ordering = ("pk",)
        constraints = (
            models.UniqueConstraint(
                fields=["digest"], name="django_smart_identity_subject"
            ),
        )

    def __str__(self) -> str:
        return f"{self.issuer} #{self.pk}"
