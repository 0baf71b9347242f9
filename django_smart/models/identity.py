"""Identities: which user of this site an EHR's user is."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, digest
from .server import MAX_URL_LENGTH, FHIRServer

__all__ = ["Identity", "IdentityQuerySet"]


class IdentityQuerySet(models.QuerySet["Identity"]):
    """Identities by what an ID token proves."""

    def with_subject(
        self, issuer: str, subject: str, *, server: FHIRServer
    ) -> IdentityQuerySet:
        """
        The identities of this (issuer, sub), compared exactly (IDT-09).

        Those that *server* proved, or another server of its login group: what one
        server says about an issuer counts for no other server.
        """
        at_server = models.Q(server=server)
        if server.login_group:
            at_server |= models.Q(server__login_group=server.login_group)
        return self.filter(at_server, digest=digest(issuer, subject))


class Identity(models.Model):
    """
    One (issuer, sub) at one server, and the Django user it belongs to.

    Users are found here and never by e-mail: any EHR could claim any address.  The
    server is part of it: a server that names another one's issuer, or relays its ID
    tokens, reaches no user of that other server.
    """

    issuer = models.CharField(_("issuer"), max_length=MAX_URL_LENGTH)
    subject = models.CharField(_("subject"), max_length=255)
    server = models.ForeignKey(
        FHIRServer,
        models.CASCADE,
        verbose_name=_("FHIR server"),
        related_name="identities",
    )
    digest = DigestField(
        verbose_name=_("digest"), sources=("issuer", "subject"), db_index=True
    )
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
                fields=["server", "digest"], name="django_smart_identity_subject"
            ),
        )

    def __str__(self) -> str:
        return f"{self.issuer} #{self.pk}"

    def save(self, **kwargs: Any) -> None:
        """Store; without a server, at the only one that it can belong to."""
        if not self.server_id:
            servers = FHIRServer.objects.with_issuer(self.issuer)[:2]
            (self.server,) = servers or FHIRServer.objects.all()[:2]
        super().save(**kwargs)
