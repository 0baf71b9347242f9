"""The words that brands are found by."""

from __future__ import annotations

from django.db import models
from django.utils.translation import gettext_lazy as _

from .search_words import KEY_LENGTH, build_key_range

__all__ = ["BrandWord", "BrandWordQuerySet"]


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
