"""Identities: which user of this site belongs to a user of an EHR."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, digest
from .server import MAX_URL_LENGTH, FHIRServer

__all__ = ["Identity", "IdentityQuerySet"]


class IdentityQuerySet(models.QuerySet["Identity"]):
    """Select identities by the claims of an ID token."""

    def with_subject(
        self, issuer: str, subject: str, *, server: FHIRServer
    ) -> IdentityQuerySet:
        """
        Return the identities of this (issuer, sub), compared exactly (IDT-09).

        Only those known to *server*: one server's statement about an issuer does not
        count for other servers.
        """
        return self.known_to(server).filter(digest=digest(issuer, subject))

    def known_to(self, server: FHIRServer) -> IdentityQuerySet:
        """Return those that *server* or another server of its login group proved."""
        at_server = models.Q(server=server)
        if server.login_group:
            at_server |= models.Q(server__login_group=server.login_group)
        return self.filter(at_server)


class Identity(models.Model):
    """
    One (issuer, sub) at one server, and the Django user it belongs to.

    Users are found by it and never by e-mail, because any EHR could claim any address.
    The server is part of it: a server that names another server's issuer, or relays its
    ID tokens, cannot reach the users of that server.
    """

    issuer = models.CharField(
        _("issuer"),
        max_length=MAX_URL_LENGTH,
        help_text=_("OpenID Connect issuer of the ID token."),
    )
    subject = models.CharField(
        _("subject"),
        max_length=255,
        help_text=_("The sub claim of the ID token."),
    )
    server = models.ForeignKey(
        FHIRServer,
        models.CASCADE,
        verbose_name=_("FHIR server"),
        related_name="identities",
        db_index=False,  # The constraint below begins with it.
        help_text=_("Server that proved the identity."),
    )
    digest = DigestField(verbose_name=_("digest"), sources=("issuer", "subject"))
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.CASCADE,
        verbose_name=_("user"),
        related_name="smart_identities",
        help_text=_("User of this site that the identity belongs to."),
    )
    fhir_user = models.CharField(
        _("FHIR user"),
        max_length=200,
        blank=True,
        default="",
        help_text=_("The user's FHIR resource, relative to the FHIR base URL."),
    )
    may_sign_in = models.BooleanField(
        _("can sign in"),
        default=True,
        help_text=_(
            "Whether this EHR account signs the user in. Off for connected "
            "accounts, whose users sign in to this site first unless they "
            "opted in."
        ),
    )
    is_connected = models.BooleanField(
        _("connected"),
        default=False,
        help_text=_(
            "Whether a user who was signed in connected this EHR account. "
            "Otherwise, they first signed in with it."
        ),
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    last_seen_at = models.DateTimeField(
        _("last seen at"),
        null=True,
        blank=True,
        help_text=_(
            "When an ID token last proved this identity; updated at most once an hour."
        ),
    )

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
        # With db_index=True, PostgreSQL would get a second one, for LIKE.
        indexes = (
            models.Index(fields=["digest"], name="django_smart_identity_digest"),
        )

    def __str__(self) -> str:
        return f"{self.issuer} #{self.pk}"

    def let_sign_in(self, *, may_sign_in: bool) -> bool:
        """
        Store whether this account, which its user has connected, may sign them in.

        Also at the other servers of its login group, which share the choice.

        Returns:
            Whether that has changed.
        """
        account = Identity.objects.with_subject(
            self.issuer, self.subject, server=self.server
        )
        own = account.filter(user=self.user_id, is_connected=True)
        changed = own.exclude(may_sign_in=may_sign_in)
        return changed.update(may_sign_in=may_sign_in) > 0
