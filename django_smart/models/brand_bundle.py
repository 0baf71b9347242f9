"""Brand bundles: where organisations were read from."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, digest
from .server import MAX_URL_LENGTH, FHIRServer

__all__ = ["BrandBundle", "BrandBundleQuerySet"]


class BrandBundleQuerySet(models.QuerySet["BrandBundle"]):
    """Bundles by where they come from."""

    def at(self, location: str) -> BrandBundleQuerySet:
        """The bundle from this URL, or under this name."""
        return self.filter(location_digest=digest(location))


class BrandBundle(models.Model):
    """
    One bundle of user-access brands, as it was last imported.

    A bundle that a server's own configuration links to is believed more than one that
    somebody put together from many (BRAND-02).
    """

    location = models.CharField(
        _("location"),
        max_length=MAX_URL_LENGTH,
        help_text=_("URL, or the name given to a file."),
    )
    location_digest = DigestField(
        verbose_name=_("digest of the location"), sources=("location",)
    )
    server = models.ForeignKey(
        FHIRServer,
        models.SET_NULL,
        verbose_name=_("linked from"),
        related_name="brand_bundles",
        null=True,
        blank=True,
        help_text=_("Server whose configuration names this bundle."),
    )
    etag = models.CharField(_("ETag"), max_length=500, blank=True, default="")
    content_digest = models.CharField(
        _("digest of the content"),
        max_length=64,
        blank=True,
        default="",
        editable=False,
    )
    timestamp = models.DateTimeField(_("last change"), null=True, blank=True)
    imported_at = models.DateTimeField(_("imported at"), null=True, blank=True)

    objects = BrandBundleQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand bundle")
        verbose_name_plural = _("brand bundles")
        ordering = ("location", "pk")
        constraints = (
            models.UniqueConstraint(
                fields=["location_digest"], name="django_smart_brandbundle_location"
            ),
        )

    def __str__(self) -> str:
        return self.location
