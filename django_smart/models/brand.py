"""Brands: organisations as people know them, to choose from."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models
from django.db.models import Case, F, Value, When
from django.utils.translation import gettext_lazy as _

from ..fields import DigestField
from ..protocol.brands import BrandPlace
from .brand_access import BrandAccess
from .brand_bundle import BrandBundle
from .brand_word import BrandWord
from .search_words import build_key_range
from .server import MAX_URL_LENGTH

__all__ = ["Brand", "BrandQuerySet"]


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
