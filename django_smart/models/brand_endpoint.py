"""Endpoints: FHIR servers that brand bundles name, registered here or not."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField
from ..protocol.urls import normalize_base_url
from .brand_bundle import BrandBundle
from .server import MAX_URL_LENGTH

__all__ = ["BrandEndpoint"]


class BrandEndpoint(models.Model):
    """
    One ``Endpoint`` of a bundle.

    Only an address: a launch needs a registered server with this base URL (BRAND-13).
    """

    bundle = models.ForeignKey(
        BrandBundle,
        models.CASCADE,
        verbose_name=_("brand bundle"),
        related_name="endpoints",
    )
    full_url = models.CharField(_("full URL"), max_length=MAX_URL_LENGTH)
    full_url_digest = DigestField(
        verbose_name=_("digest of the full URL"), sources=("full_url",)
    )
    reference = models.CharField(
        _("type and id"), max_length=130, blank=True, default=""
    )
    reference_digest = DigestField(
        verbose_name=_("digest of type and id"), sources=("reference",)
    )
    address = models.CharField(_("FHIR base URL"), max_length=MAX_URL_LENGTH)
    address_digest = DigestField(
        verbose_name=_("digest of the base URL"), sources=("normalized_address",)
    )
    name = models.CharField(_("name"), max_length=300, blank=True, default="")
    versions = models.CharField(
        _("FHIR versions"), max_length=300, blank=True, default=""
    )
    is_r4 = models.BooleanField(_("FHIR R4"), default=True)
    developer_url = models.CharField(
        _("page for developers"), max_length=MAX_URL_LENGTH, blank=True, default=""
    )
    content_digest = models.CharField(
        _("digest of the content"), max_length=64, editable=False
    )

    class Meta:
        verbose_name = _("brand endpoint")
        verbose_name_plural = _("brand endpoints")
        ordering = ("pk",)
        constraints = (
            models.UniqueConstraint(
                fields=["bundle", "full_url_digest"],
                name="django_smart_brandendpoint_url",
            ),
        )
        indexes = (
            models.Index(
                fields=["bundle", "reference_digest"],
                name="django_smart_endpoint_ref",
            ),
            models.Index(fields=["address_digest"], name="django_smart_endpoint_addr"),
        )

    def __str__(self) -> str:
        return self.address

    @property
    def normalized_address(self) -> str:
        """The address as servers are looked up: without a trailing slash."""
        return normalize_base_url(self.address)
