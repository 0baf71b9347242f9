"""User-access brands: bundles of organizations with their FHIR servers."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models
from django.db.models import Case, Value, When
from django.utils.translation import gettext_lazy as _

from ...fields import DigestField, digest
from ...models import ClientRegistration, FHIRServer
from ...models.server import MAX_URL_LENGTH
from ...protocol.urls import normalize_base_url

__all__ = [
    "Brand",
    "BrandBundle",
    "BrandBundleQuerySet",
    "BrandEndpoint",
    "BrandEndpointQuerySet",
    "BrandQuerySet",
]


class BrandBundleQuerySet(models.QuerySet["BrandBundle"]):
    """Select bundles by their location."""

    def at(self, location: str) -> BrandBundleQuerySet:
        """Return the bundle from this URL, or under this name."""
        return self.filter(location_digest=digest(location))


class BrandBundle(models.Model):
    """
    One bundle of user-access brands, as last imported.

    A bundle that a registered server's configuration links to takes precedence over
    bundles that someone compiled from several sources (BRAND-02).
    """

    location = models.CharField(
        _("location"),
        max_length=MAX_URL_LENGTH,
        help_text="URL of the bundle, or the name given to a file.",
    )
    location_digest = DigestField(
        verbose_name=_("location digest"), sources=("location",)
    )
    server = models.ForeignKey(
        FHIRServer,
        models.SET_NULL,
        verbose_name=_("linked from"),
        related_name="brand_bundles",
        null=True,
        blank=True,
        help_text="Server whose SMART configuration links to this bundle.",
    )
    etag = models.CharField(
        _("ETag"),
        max_length=500,
        blank=True,
        default="",
        help_text="ETag of the last response, for conditional requests.",
    )
    timestamp = models.DateTimeField(
        _("timestamp"),
        null=True,
        blank=True,
        help_text="Bundle.timestamp, as the publisher set it.",
    )

    objects = BrandBundleQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand bundle")
        verbose_name_plural = _("brand bundles")
        ordering = ("location", "pk")
        constraints = (
            models.UniqueConstraint(
                fields=["location_digest"], name="smart_brandbundle_location"
            ),
        )

    def __str__(self) -> str:
        return self.location


class BrandQuerySet(models.QuerySet["Brand"]):
    """Select brands to show."""

    def shown(self) -> BrandQuerySet:
        """Return one brand for each organization."""
        return self.filter(is_shown=True)

    def with_words(self, words: Iterable[str]) -> BrandQuerySet:
        """
        Return brands with a matching name, alias, place or portal for each of *words*.

        Each of *words* must be folded, and matches the beginning of a word.
        """
        found = self
        for word in words:
            found = found.filter(search_text__contains=f" {word}")
        return found

    def connectable(self) -> BrandQuerySet:
        """Return brands that people can connect to now, at a registered server."""
        endpoints = BrandEndpoint.objects.registered()
        return self.filter(merge_digest__in=endpoints.values("brand__merge_digest"))

    def with_endpoint(self) -> BrandQuerySet:
        """Return brands with a FHIR R4 endpoint, registered here or not (BRAND-10)."""
        endpoints = BrandEndpoint.objects.all()
        return self.filter(merge_digest__in=endpoints.values("brand__merge_digest"))

    def in_category(self, category: str) -> BrandQuerySet:
        """Return brands of one category, such as ``laboratory`` (BRAND-14)."""
        return self.filter(categories__contains=f" {category} ")

    def best_first(self, words: list[str]) -> BrandQuerySet:
        """Order by name, with names that begin with the first of *words* on top."""
        if not words:
            return self.order_by("sort_name", "pk")
        begins = When(sort_name__startswith=words[0], then=Value(0))
        rank = Case(begins, default=Value(1), output_field=models.SmallIntegerField())
        return self.order_by(rank, "sort_name", "pk")


class Brand(models.Model):
    """
    One ``Organization`` of a bundle.

    Several bundles can describe the same organization: then one of the brands is shown
    for all of them.
    """

    bundle = models.ForeignKey(
        BrandBundle,
        models.CASCADE,
        verbose_name=_("brand bundle"),
        related_name="brands",
        help_text="Bundle that contains the brand.",
    )
    merge_digest = models.CharField(
        _("merge digest"),
        max_length=64,
        editable=False,
        help_text="SHA-256 of the identifier that brands of one organization share.",
    )
    is_shown = models.BooleanField(
        _("shown"),
        default=True,
        editable=False,
        help_text="Whether the picker shows this brand for its organization.",
    )
    name = models.CharField(
        _("name"),
        max_length=300,
        help_text="Name of the organization.",
    )
    sort_name = models.CharField(
        _("sort name"),
        max_length=100,
        editable=False,
        help_text="Folded name, for sorting.",
    )
    # Before the logo: SQLite reads a long row only as far as the query needs it.
    search_text = models.TextField(
        _("search text"),
        editable=False,
        help_text="Folded words of names, places and portals, each after a space.",
    )
    aliases = models.JSONField(
        _("aliases"),
        default=list,
        blank=True,
        help_text="Other names of the organization.",
    )
    places = models.JSONField(
        _("places"),
        default=list,
        blank=True,
        help_text="City and state of its addresses, as they are shown.",
    )
    categories = models.CharField(
        _("categories"),
        max_length=200,
        blank=True,
        default="",
        help_text="Categories, such as laboratory, separated by spaces.",
    )
    logo = models.TextField(
        _("logo"),
        blank=True,
        default="",
        help_text="URL of the logo, or the logo itself as a data: URL.",
    )
    logo_license = models.CharField(
        _("license of the logo"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        help_text="URL of the logo's license; see SMART_LOGO_LICENSES.",
    )

    objects = BrandQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand")
        verbose_name_plural = _("brands")
        ordering = ("sort_name", "pk")
        indexes = (
            models.Index(fields=["sort_name"], name="smart_brand_name"),
            models.Index(fields=["merge_digest"], name="smart_brand_merge"),
        )

    def __str__(self) -> str:
        return self.name


class BrandEndpointQuerySet(models.QuerySet["BrandEndpoint"]):
    """Select endpoints by their usability."""

    def registered(self) -> BrandEndpointQuerySet:
        """Return those of servers where people can launch from this site (BRAND-13)."""
        registrations = ClientRegistration.objects.standalone().order_by()
        addresses = registrations.values("server__base_url_digest")
        return self.filter(address_digest__in=addresses)


class BrandEndpoint(models.Model):
    """
    One FHIR R4 server with an organization's records: its own, or its parent's.

    It is only an address: a launch requires a registered server with this base URL
    (BRAND-13).  A brand without endpoints has those of its parent (BRAND-08).
    """

    brand = models.ForeignKey(
        Brand,
        models.CASCADE,
        verbose_name=_("brand"),
        related_name="endpoints",
        help_text="Brand that can be connected there.",
    )
    address = models.CharField(
        _("FHIR base URL"),
        max_length=MAX_URL_LENGTH,
        help_text="FHIR base URL of the endpoint.",
    )
    address_digest = DigestField(
        verbose_name=_("base URL digest"), sources=("normalized_address",)
    )
    portal_name = models.CharField(
        _("portal"),
        max_length=300,
        blank=True,
        default="",
        help_text="Patient portal that people sign in to.",
    )

    objects = BrandEndpointQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand endpoint")
        verbose_name_plural = _("brand endpoints")
        ordering = ("pk",)
        constraints = (
            models.UniqueConstraint(
                fields=["brand", "address_digest"], name="smart_brandendpoint_address"
            ),
        )
        indexes = (models.Index(fields=["address_digest"], name="smart_brand_address"),)

    def __str__(self) -> str:
        return self.address

    @property
    def normalized_address(self) -> str:
        """The address in the form used for lookups: without a trailing slash."""
        return normalize_base_url(self.address)
