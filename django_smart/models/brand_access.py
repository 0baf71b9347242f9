"""Which endpoint gives access to which brand."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .brand_endpoint import BrandEndpoint
from .registration import ClientRegistration

__all__ = ["BrandAccess", "BrandAccessQuerySet"]


class BrandAccessQuerySet(models.QuerySet["BrandAccess"]):
    """Access by what it is good for."""

    def usable(self) -> BrandAccessQuerySet:
        """Through FHIR R4 (BRAND-10)."""
        return self.filter(endpoint__is_r4=True)

    def registered(self) -> BrandAccessQuerySet:
        """At servers where a person can start a launch from this site (BRAND-13)."""
        registrations = ClientRegistration.objects.standalone().order_by()
        addresses = registrations.values("server__base_url_digest")
        return self.usable().filter(endpoint__address_digest__in=addresses)


class BrandAccess(models.Model):
    """
    One way to an organisation's records: its own, or that of what it is part of.

    A brand without a portal and endpoints has those of its parent (BRAND-08).
    """

    brand = models.ForeignKey(
        "django_smart.Brand",
        models.CASCADE,
        verbose_name=_("brand"),
        related_name="accesses",
    )
    # The brand's own, once more: a search then needs no detour.
    card = models.ForeignKey(
        "django_smart.Brand",
        models.SET_NULL,
        verbose_name=_("shown as"),
        related_name="+",
        null=True,
        editable=False,
    )
    endpoint = models.ForeignKey(
        BrandEndpoint,
        models.CASCADE,
        verbose_name=_("endpoint"),
        related_name="accesses",
    )
    position = models.PositiveIntegerField(_("position"))
    portal_name = models.CharField(_("portal"), max_length=300, blank=True, default="")

    objects = BrandAccessQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand access")
        verbose_name_plural = _("brand accesses")
        ordering = ("brand", "position")
        constraints = (
            models.UniqueConstraint(
                fields=["brand", "endpoint"], name="django_smart_brandaccess_pair"
            ),
        )

    def __str__(self) -> str:
        return f"{self.brand_id} → {self.endpoint_id}"
