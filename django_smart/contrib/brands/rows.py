"""The entries of a brand bundle as rows: what is new, what changed, what is gone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from django.conf import settings
from django.db import models, reset_queries

from ...conf import conf
from ...exceptions import MalformedBrandError
from ...fields import DigestField, digest
from ...models import Brand, BrandBundle, BrandEndpoint, BrandWord
from ...models.search_words import build_key, split_words
from ...models.server import MAX_URL_LENGTH
from ...protocol import brands as wire

__all__ = ["BATCH", "RowWriter", "iterate_in_batches"]

#: Rows that are held in memory at a time, fewer if their logos come to more than that.
BATCH = 500
_MAX_LOGOS = 4 * 1024**2
# Of a laboratory with thousands of places; more would find it by everything.
_MAX_WORDS = 2000
_MAX_SORT_NAME = 100
_PORTAL_MEMBERS = ("name", "description", "url", "logo", "logo_license")
_TAIL = re.compile(r"[A-Z][A-Za-z]{0,63}/[A-Za-z0-9\-.]{1,64}\Z")

_Row = Brand | BrandEndpoint


@dataclass(kw_only=True, slots=True)
class _Rows:
    """Rows of one model: those of the current batch, and counts of all."""

    model: type[Any]
    card: tuple[str, ...] = ()
    batch: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    seen: set[int] = field(default_factory=set)
    added: int = 0
    changed: int = 0
    removed: int = 0


class RowWriter:
    """
    Stores the entries of one bundle in batches, inside the caller's transaction.

    Args:
        identifier: of the primary brand, with ``value`` and perhaps ``system``
            (BRAND-03).

    Attributes:
        brands, endpoints: with the numbers ``added``, ``changed`` and ``removed``.
        problems: what was left out and how often, by reason.
        licenses: URLs of the licenses of logos (BRAND-11).
        primary_matches: brands with *identifier*; there should be one.
        freed: ``merge_digest`` of brands that are gone or have another one now.
    """

    def __init__(
        self, bundle: BrandBundle, *, identifier: Mapping[str, str] | None = None
    ) -> None:
        self._bundle = bundle
        self._identifier = identifier
        self.brands = _Rows(model=Brand, card=("card",))
        self.endpoints = _Rows(model=BrandEndpoint)
        self.problems: Counter[str] = Counter()
        self.licenses: set[str] = set()
        self.primary_matches = 0
        self.freed: set[str] = set()

    def write(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Store every entry, and remove what the bundle no longer has."""
        for entry in entries:
            try:
                row = self._build_row(entry)
            except MalformedBrandError as exc:
                self.problems[str(exc)] += 1
                continue
            if row is not None:
                self._add(row)
        for rows in (self.brands, self.endpoints):
            self._flush(rows)
            self._remove_unseen(rows)

    def _build_row(self, entry: Mapping[str, Any]) -> _Row | None:
        resource = entry.get("resource")
        if not isinstance(resource, dict):
            return None
        row: _Row | None = None
        if resource.get("resourceType") == "Organization":
            brand = wire.parse_brand(resource)
            row = self._build_brand(brand) if brand is not None else None
        elif resource.get("resourceType") == "Endpoint":
            endpoint = wire.parse_brand_endpoint(
                resource, insecure_hosts=conf.SMART_INSECURE_HTTP_HOSTS
            )
            if endpoint is not None:
                row = BrandEndpoint(address=endpoint.address, is_r4=endpoint.is_r4)
        if row is None:
            return None
        row.bundle = self._bundle
        row.full_url, row.reference = _read_names(entry, resource)
        if isinstance(row, Brand) and not row.merge_digest:
            row.merge_digest = digest("", str(self._bundle.pk), row.full_url)
        row.content_digest = _compute_digest(row)
        return row

    def _build_brand(self, brand: wire.Brand) -> Brand:
        if self._identifier is not None:
            wanted = self._identifier
            self.primary_matches += any(
                each.value == wanted["value"]
                and each.system == wanted.get("system", each.system)
                for each in brand.identifiers
            )
        licenses = [brand.logo_license, *(each.logo_license for each in brand.portals)]
        self.licenses.update(each for each in licenses if each)
        words = split_words(brand.name)
        key = brand.merge_key
        return Brand(
            merge_digest=digest(*key) if key is not None else "",
            name=brand.name,
            name_key=build_key(words[0] if words else ""),
            sort_name=" ".join(words)[:_MAX_SORT_NAME],
            aliases=list(brand.aliases),
            places=[
                {name: text for name, text in asdict(place).items() if text}
                for place in brand.places
            ],
            categories=f" {' '.join(brand.categories)} " if brand.categories else "",
            website=brand.website,
            logo=brand.logo,
            logo_license=brand.logo_license,
            portals=[
                {name: getattr(portal, name) for name in _PORTAL_MEMBERS}
                for portal in brand.portals
            ],
            endpoint_references=list(_collect_references(brand)),
            part_of=brand.part_of,
        )

    def _add(self, row: _Row) -> None:
        rows = self.brands if isinstance(row, Brand) else self.endpoints
        if rows.batch.setdefault(digest(row.full_url), row) is not row:
            self.problems["Duplicate entry."] += 1
        if isinstance(row, Brand):
            rows.size += len(row.logo) + sum(len(each["logo"]) for each in row.portals)
        if len(rows.batch) >= BATCH or rows.size > _MAX_LOGOS:
            self._flush(rows)

    def _flush(self, rows: _Rows) -> None:
        """Write the batch: only rows that are new or differ."""
        batch, rows.batch, rows.size = rows.batch, {}, 0
        _forget_queries()
        known = rows.model.objects.filter(
            bundle=self._bundle, full_url_digest__in=list(batch)
        ).values_list("full_url_digest", "pk", "content_digest", *rows.card)
        changed: dict[int, Any] = {}
        for url_digest, pk, content_digest, *card in known:
            row = batch.pop(url_digest)
            if pk in rows.seen:
                self.problems["Duplicate entry."] += 1
            elif content_digest != row.content_digest:
                row.pk = pk
                changed[pk] = row
                if isinstance(row, Brand):
                    row.card_id = card[0]
            rows.seen.add(pk)
        if rows is self.brands:
            self._free(changed)
            BrandWord.objects.filter(brand__in=list(changed)).delete()
        for row in changed.values():
            row.save(force_update=True, update_fields=_get_columns(rows.model))
        added = rows.model.objects.bulk_create(batch.values())
        rows.seen.update(row.pk for row in added)
        rows.changed += len(changed)
        rows.added += len(added)
        if rows is self.brands:
            _write_words([*changed.values(), *added])

    def _remove_unseen(self, rows: _Rows) -> None:
        stored = rows.model.objects.filter(bundle=self._bundle).only("pk")
        for batch in iterate_in_batches(stored):
            gone = [row.pk for row in batch if row.pk not in rows.seen]
            if rows is self.brands:
                self._free(gone)
            rows.model.objects.filter(pk__in=gone).delete()
            rows.removed += len(gone)

    def _free(self, keys: Iterable[int]) -> None:
        """Remember by what brands were merged until now."""
        brands = Brand.objects.filter(pk__in=list(keys))
        self.freed.update(brands.values_list("merge_digest", flat=True))


def iterate_in_batches(rows: models.QuerySet[Any]) -> Iterator[list[Any]]:
    """
    Yield lists of *rows*, which may be changed meanwhile.

    By primary key: some drivers keep the whole answer to a large query in memory.
    """
    last = 0
    while batch := list(rows.filter(pk__gt=last).order_by("pk")[:BATCH]):
        last = batch[-1].pk
        yield batch
        _forget_queries()


def _forget_queries() -> None:
    """With ``DEBUG`` Django keeps thousands of queries, and each is long here."""
    if settings.DEBUG:
        reset_queries()


def _collect_references(brand: wire.Brand) -> Iterator[dict[str, str]]:
    """Each endpoint once, with the portal that names it if one does."""
    named = set()
    for portal in brand.portals:
        for reference in portal.endpoints:
            if reference not in named:
                yield {"portal": portal.name, "reference": reference}
            named.add(reference)
    for reference in dict.fromkeys(brand.endpoints):
        if reference not in named:
            yield {"portal": "", "reference": reference}


def _read_names(
    entry: Mapping[str, Any], resource: Mapping[str, Any]
) -> tuple[str, str]:
    """The entry's full URL and its ``Type/id``; the second may be empty."""
    full_url, resource_id = entry.get("fullUrl"), resource.get("id")
    reference = ""
    if isinstance(resource_id, str):
        reference = f"{resource['resourceType']}/{resource_id}"
    elif isinstance(full_url, str):
        reference = full_url
    match = _TAIL.search(reference)
    reference = match[0] if match else ""
    full_url = full_url if isinstance(full_url, str) and full_url else reference
    if not full_url or len(full_url) > MAX_URL_LENGTH or not full_url.isprintable():
        raise MalformedBrandError("An entry has no valid fullUrl and no id.")
    return full_url, reference


def _get_columns(model: type[models.Model]) -> list[str]:
    """Columns that come from the bundle, and the digests that follow from them."""
    ours = {"id", "bundle", "card"}
    return [each.name for each in model._meta.concrete_fields if each.name not in ours]


def _compute_digest(row: _Row) -> str:
    """What is equal if and only if the row need not be written again."""
    skipped = {"content_digest"} | {
        each.name for each in row._meta.concrete_fields if isinstance(each, DigestField)
    }
    columns = [name for name in _get_columns(type(row)) if name not in skipped]
    return digest(json.dumps([getattr(row, name) for name in columns]))


def _write_words(brands: Iterable[Brand]) -> None:
    words = [
        BrandWord(
            brand=brand,
            card_id=brand.card_id or brand.pk,
            key=build_key(word),
            word=word,
        )
        for brand in brands
        for word in _get_words(brand)
    ]
    BrandWord.objects.bulk_create(words, 5000)


def _get_words(brand: Brand) -> list[str]:
    words = dict.fromkeys(
        word for text in brand.get_search_texts() for word in split_words(text)
    )
    return list(words)[:_MAX_WORDS]
