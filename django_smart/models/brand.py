"""User-access brands: bundles with organizations and endpoints."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models
from django.db.models import Case, Value, When
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, digest
from ..protocol.brands import label_place
from ..protocol.urls import normalize_base_url
from .registration import ClientRegistration
from .search_words import KEY_LENGTH, build_key_range
from .server import MAX_URL_LENGTH, FHIRServer

__all__ = [
    "Brand",
    "BrandAccess",
    "BrandAccessQuerySet",
    "BrandBundle",
    "BrandBundleQuerySet",
    "BrandEndpoint",
    "BrandQuerySet",
    "BrandWord",
    "BrandWordQuerySet",
]


class BrandBundleQuerySet(models.QuerySet["BrandBundle"]):
    """Select bundles by their location."""

    def at(self, location: str) -> BrandBundleQuerySet:
        """The bundle from this URL, or under this name."""
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
        help_text=_("URL of the bundle, or the name given to a file."),
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
        help_text=_("Server whose SMART configuration links to this bundle."),
    )
    etag = models.CharField(
        _("ETag"),
        max_length=500,
        blank=True,
        default="",
        help_text="ETag of the last response, for conditional requests.",
    )
    content_digest = models.CharField(
        _("content digest"),
        max_length=64,
        blank=True,
        default="",
        editable=False,
        help_text=("SHA-256 of the imported bundle; an unchanged bundle is skipped."),
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
                fields=["location_digest"], name="django_smart_brandbundle_location"
            ),
        )

    def __str__(self) -> str:
        return self.location


class BrandEndpoint(models.Model):
    """
    One ``Endpoint`` of a bundle.

    It is only an address: a launch requires a registered server with this base URL
    (BRAND-13).
    """

    bundle = models.ForeignKey(
        BrandBundle,
        models.CASCADE,
        verbose_name=_("brand bundle"),
        related_name="endpoints",
        help_text="Bundle that contains the endpoint.",
    )
    full_url = models.CharField(
        _("full URL"),
        max_length=MAX_URL_LENGTH,
        help_text="fullUrl of the entry.",
    )
    full_url_digest = DigestField(
        verbose_name=_("full URL digest"), sources=("full_url",)
    )
    reference = models.CharField(
        _("reference"),
        max_length=130,
        blank=True,
        default="",
        help_text="Relative reference, such as Endpoint/1.",
    )
    reference_digest = DigestField(
        verbose_name=_("reference digest"), sources=("reference",)
    )
    address = models.CharField(
        _("FHIR base URL"),
        max_length=MAX_URL_LENGTH,
        help_text="FHIR base URL of the endpoint.",
    )
    address_digest = DigestField(
        verbose_name=_("base URL digest"), sources=("normalized_address",)
    )
    is_r4 = models.BooleanField(
        _("FHIR R4"),
        default=True,
        help_text=(
            "Whether the endpoint supports FHIR R4, the version that can be connected."
        ),
    )
    content_digest = models.CharField(
        _("content digest"),
        max_length=64,
        editable=False,
        help_text="SHA-256 of the entry, to detect changes.",
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
        """The address in the form used for lookups: without a trailing slash."""
        return normalize_base_url(self.address)


class BrandAccessQuerySet(models.QuerySet["BrandAccess"]):
    """Select ways to connect by their usability."""

    def usable(self) -> BrandAccessQuerySet:
        """Return those through FHIR R4 (BRAND-10)."""
        return self.filter(endpoint__is_r4=True)

    def registered(self) -> BrandAccessQuerySet:
        """Return those at servers where people can launch from this site (BRAND-13)."""
        registrations = ClientRegistration.objects.standalone().order_by()
        addresses = registrations.values("server__base_url_digest")
        return self.usable().filter(endpoint__address_digest__in=addresses)


class BrandAccess(models.Model):
    """
    One way to an organization's records: its own, or its parent organization's.

    A brand without portals and endpoints uses those of its parent (BRAND-08).
    """

    brand = models.ForeignKey(
        "django_smart.Brand",
        models.CASCADE,
        verbose_name=_("brand"),
        related_name="accesses",
        help_text="Brand that can be connected this way.",
    )
    card = models.ForeignKey(
        "django_smart.Brand",
        models.SET_NULL,
        verbose_name=_("shown as"),
        related_name="+",
        null=True,
        editable=False,
        help_text="The brand's card, repeated for fast searches.",
    )
    endpoint = models.ForeignKey(
        BrandEndpoint,
        models.CASCADE,
        verbose_name=_("endpoint"),
        related_name="accesses",
        help_text="Endpoint with the records.",
    )
    position = models.PositiveIntegerField(
        _("position"),
        help_text="Order in which the ways to connect are shown.",
    )
    portal_name = models.CharField(
        _("portal"),
        max_length=300,
        blank=True,
        default="",
        help_text="Patient portal that people sign in to.",
    )

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


class BrandWordQuerySet(models.QuerySet["BrandWord"]):
    """Select words by prefix."""

    def beginning_with(self, prefix: str) -> BrandWordQuerySet:
        """
        Return words that begin with *prefix*, which must be folded.

        The range of numbers lets every database use an index.
        """
        found = self.filter(key__range=build_key_range(prefix))
        if len(prefix) > KEY_LENGTH:
            found = found.filter(word__startswith=prefix)
        return found


class BrandWord(models.Model):
    """One word of a brand's name, aliases, places or portals."""

    key = models.BigIntegerField(
        _("key"),
        help_text=("First letters of the word as a number, for fast prefix searches."),
    )
    word = models.CharField(
        _("word"),
        max_length=40,
        help_text="Folded word: lowercase and without accents.",
    )
    brand = models.ForeignKey(
        "django_smart.Brand",
        models.CASCADE,
        verbose_name=_("brand"),
        related_name="words",
        help_text="Brand that the word belongs to.",
    )
    card = models.ForeignKey(
        "django_smart.Brand",
        models.SET_NULL,
        verbose_name=_("shown as"),
        related_name="+",
        null=True,
        editable=False,
        db_index=False,  # The second index below begins with it.
        help_text="The brand's card, repeated for fast searches.",
    )

    objects = BrandWordQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand word")
        verbose_name_plural = _("brand words")
        ordering = ("brand", "pk")
        # Both orders: a database may also start from the brands and look for their
        # words.
        indexes = (
            models.Index(fields=["key", "card"], name="django_smart_word_key"),
            models.Index(fields=["card", "key"], name="django_smart_word_card"),
        )

    def __str__(self) -> str:
        return self.word


class BrandQuerySet(models.QuerySet["Brand"]):
    """Select brands to show."""

    def with_words(self, words: Iterable[str]) -> BrandQuerySet:
        """
        Return brands with a matching name, alias, place or portal for each of *words*.

        Each of *words* must be folded, and matches the beginning of a word.  Data of
        the same organization in other bundles also counts.
        """
        found = self
        for word in words:
            cards = BrandWord.objects.beginning_with(word).values("card")
            found = found.filter(pk__in=cards)
        return found

    def connectable(self) -> BrandQuerySet:
        """Return brands that people can connect to now, at a registered server."""
        return self.filter(pk__in=BrandAccess.objects.registered().values("card"))

    def with_access(self) -> BrandQuerySet:
        """Return brands with a FHIR R4 endpoint, registered here or not (BRAND-10)."""
        return self.filter(pk__in=BrandAccess.objects.usable().values("card"))

    def in_category(self, category: str) -> BrandQuerySet:
        """Return brands of one category, such as ``laboratory`` (BRAND-14)."""
        return self.filter(categories__contains=f" {category} ")

    def best_first(self, words: list[str]) -> BrandQuerySet:
        """Order by name, with names that begin with the first of *words* on top."""
        if not words:
            return self.order_by("sort_name", "pk")
        begins = When(name_key__range=build_key_range(words[0]), then=Value(0))
        rank = Case(begins, default=Value(1), output_field=models.SmallIntegerField())
        return self.order_by(rank, "sort_name", "pk")


class Brand(models.Model):
    """
    One ``Organization`` of a bundle.

    Several bundles can contain the same organization: then ``card`` of each brand is
    the one that is shown for all of them, whose ``card`` is itself.
    """

    bundle = models.ForeignKey(
        BrandBundle,
        models.CASCADE,
        verbose_name=_("brand bundle"),
        related_name="brands",
        help_text="Bundle that contains the brand.",
    )
    full_url = models.CharField(
        _("full URL"),
        max_length=MAX_URL_LENGTH,
        help_text="fullUrl of the entry.",
    )
    full_url_digest = DigestField(
        verbose_name=_("full URL digest"), sources=("full_url",)
    )
    reference = models.CharField(
        _("reference"),
        max_length=130,
        blank=True,
        default="",
        help_text="Relative reference, such as Organization/1.",
    )
    reference_digest = DigestField(
        verbose_name=_("reference digest"), sources=("reference",)
    )
    merge_digest = models.CharField(
        _("merge digest"),
        max_length=64,
        editable=False,
        help_text=(
            "SHA-256 of the identifier by which brands of several bundles are merged."
        ),
    )
    card = models.ForeignKey(
        "self",
        models.SET_NULL,
        verbose_name=_("shown as"),
        related_name="merged",
        null=True,
        blank=True,
        editable=False,
        help_text=(
            "Brand that is shown in place of this one; the brand itself if it is shown."
        ),
    )
    name = models.CharField(
        _("name"),
        max_length=300,
        help_text="Name of the organization.",
    )
    name_key = models.BigIntegerField(
        _("name key"),
        editable=False,
        help_text=(
            "First letters of the name as a number, for sorting search results."
        ),
    )
    sort_name = models.CharField(
        _("sort name"),
        max_length=100,
        editable=False,
        help_text="Folded name, for sorting.",
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
        help_text="Cities and states of its addresses.",
    )
    categories = models.CharField(
        _("categories"),
        max_length=200,
        blank=True,
        default="",
        help_text="Categories, such as laboratory, separated by spaces.",
    )
    website = models.CharField(
        _("website"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        help_text="URL of the organization's website.",
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
    portals = models.JSONField(
        _("portals"),
        default=list,
        blank=True,
        help_text="Patient portals with their endpoints.",
    )
    endpoint_references = models.JSONField(
        _("endpoint references"),
        default=list,
        blank=True,
        editable=False,
        help_text="References to endpoints that the bundle may contain.",
    )
    part_of = models.CharField(
        _("part of"),
        max_length=MAX_URL_LENGTH,
        blank=True,
        default="",
        help_text="Reference to the parent organization.",
    )
    content_digest = models.CharField(
        _("content digest"),
        max_length=64,
        editable=False,
        help_text="SHA-256 of the entry, to detect changes.",
    )

    objects = BrandQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand")
        verbose_name_plural = _("brands")
        ordering = ("sort_name", "pk")
        constraints = (
            models.UniqueConstraint(
                fields=["bundle", "full_url_digest"], name="django_smart_brand_url"
            ),
        )
        indexes = (
            models.Index(
                fields=["bundle", "reference_digest"], name="django_smart_brand_ref"
            ),
            models.Index(fields=["sort_name"], name="django_smart_brand_name"),
            models.Index(fields=["merge_digest"], name="django_smart_brand_merge"),
        )

    def __str__(self) -> str:
        return self.name

    @property
    def place_labels(self) -> list[str]:
        """City and state of each place, for display."""
        return list(map(label_place, self.places))

    def get_search_texts(self) -> Iterable[str]:
        """The words that people can search for."""
        yield self.name
        yield from self.aliases
        for portal in self.portals:
            yield portal["name"]
        for place in self.places:
            yield from place.values()
