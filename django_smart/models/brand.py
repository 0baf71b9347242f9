"""User-access brands: bundles, their organisations and endpoints, and who is shown."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models
from django.db.models import Case, F, Value, When
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField, digest
from ..protocol.brands import BrandPlace
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


class BrandWordQuerySet(models.QuerySet["BrandWord"]):
    """Words by their beginning."""

    def beginning_with(self, prefix: str) -> BrandWordQuerySet:
        """
        Words that begin with *prefix*, which is folded.

        A range of numbers, which every database looks up in an index.
        """
        found = self.filter(key__range=build_key_range(prefix))
        if len(prefix) > KEY_LENGTH:
            found = found.filter(word__startswith=prefix)
        return found


class BrandWord(models.Model):
    """One word of a brand's name, aliases, places or portals."""

    key = models.BigIntegerField(_("beginning as a number"))
    word = models.CharField(_("word"), max_length=40)
    brand = models.ForeignKey(
        "django_smart.Brand",
        models.CASCADE,
        verbose_name=_("brand"),
        related_name="words",
    )
    # The brand's own, once more: a search then looks at this table alone.
    card = models.ForeignKey(
        "django_smart.Brand",
        models.SET_NULL,
        verbose_name=_("shown as"),
        related_name="+",
        null=True,
        editable=False,
        db_index=False,  # The second index below begins with it.
    )

    objects = BrandWordQuerySet.as_manager()

    class Meta:
        verbose_name = _("brand word")
        verbose_name_plural = _("brand words")
        ordering = ("brand", "pk")
        # Either way round: a database may start from the brands, and look for the word
        # of each.
        indexes = (
            models.Index(fields=["key", "card"], name="django_smart_word_key"),
            models.Index(fields=["card", "key"], name="django_smart_word_card"),
        )

    def __str__(self) -> str:
        return self.word


class BrandQuerySet(models.QuerySet["Brand"]):
    """Brands to choose from."""

    def shown(self) -> BrandQuerySet:
        """One brand for each organisation, however many bundles have it (BRAND-06)."""
        return self.filter(card=F("pk"))

    def with_words(self, words: Iterable[str]) -> BrandQuerySet:
        """
        Those with a word of name, alias, place or portal for each of *words*.

        Each of *words* is folded, and the beginning of a word is enough.  What other
        bundles say of the same organisation counts as well.
        """
        found = self
        for word in words:
            cards = BrandWord.objects.beginning_with(word).values("card")
            found = found.filter(pk__in=cards)
        return found

    def connectable(self) -> BrandQuerySet:
        """Those that a person can connect to now: a registered server has them."""
        return self.filter(pk__in=BrandAccess.objects.registered().values("card"))

    def with_access(self) -> BrandQuerySet:
        """Those with a FHIR R4 endpoint, registered here or not (BRAND-10)."""
        return self.filter(pk__in=BrandAccess.objects.usable().values("card"))

    def in_category(self, category: str) -> BrandQuerySet:
        """Those of one category, such as ``laboratory`` (BRAND-14)."""
        return self.filter(categories__contains=f" {category} ")

    def best_first(self, words: list[str]) -> BrandQuerySet:
        """By name; first those whose name begins with the first of *words*."""
        if not words:
            return self.order_by("sort_name", "pk")
        begins = When(name_key__range=build_key_range(words[0]), then=Value(0))
        rank = Case(begins, default=Value(1), output_field=models.SmallIntegerField())
        return self.order_by(rank, "sort_name", "pk")


class Brand(models.Model):
    """
    One ``Organization`` of a bundle.

    Bundles can have the same organisation: then ``card`` of each is the one row that is
    shown for all of them, and that row's ``card`` is itself.
    """

    bundle = models.ForeignKey(
        BrandBundle,
        models.CASCADE,
        verbose_name=_("brand bundle"),
        related_name="brands",
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
    merge_digest = models.CharField(
        _("digest of the identifier"), max_length=64, editable=False, db_index=True
    )
    card = models.ForeignKey(
        "self",
        models.SET_NULL,
        verbose_name=_("shown as"),
        related_name="merged",
        null=True,
        blank=True,
        editable=False,
    )
    name = models.CharField(_("name"), max_length=300)
    name_key = models.BigIntegerField(_("beginning of the name"), editable=False)
    sort_name = models.CharField(_("folded name"), max_length=100, editable=False)
    aliases = models.JSONField(_("aliases"), default=list, blank=True)
    places = models.JSONField(_("places"), default=list, blank=True)
    categories = models.CharField(
        _("categories"), max_length=200, blank=True, default=""
    )
    website = models.CharField(
        _("website"), max_length=MAX_URL_LENGTH, blank=True, default=""
    )
    logo = models.TextField(_("logo"), blank=True, default="")
    logo_license = models.CharField(
        _("licence of the logo"), max_length=MAX_URL_LENGTH, blank=True, default=""
    )
    brand_bundle = models.CharField(
        _("own brand bundle"), max_length=MAX_URL_LENGTH, blank=True, default=""
    )
    portals = models.JSONField(_("portals"), default=list, blank=True)
    endpoint_references = models.JSONField(
        _("references to endpoints"), default=list, blank=True, editable=False
    )
    part_of = models.CharField(
        _("part of"), max_length=MAX_URL_LENGTH, blank=True, default=""
    )
    content_digest = models.CharField(
        _("digest of the content"), max_length=64, editable=False
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
        )

    def __str__(self) -> str:
        return self.name

    @property
    def place_labels(self) -> list[str]:
        """City and state of each place, for people."""
        return [BrandPlace(**place).label for place in self.places]

    def get_search_texts(self) -> Iterable[str]:
        """What people may look for."""
        yield self.name
        yield from self.aliases
        for portal in self.portals:
            yield portal["name"]
        for place in self.places:
            yield from place.values()
