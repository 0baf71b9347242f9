"""What follows from the rows of a bundle: who gives access to whom, who is shown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from django.db import connections, router
from django.db.models import F, OuterRef, QuerySet, Subquery

from ...fields import digest
from ...models import Brand, BrandAccess, BrandBundle, BrandEndpoint, BrandWord
from ...protocol.brands import resolve_reference
from .rows import BATCH, iterate_in_batches

__all__ = ["link_brands", "refresh_statistics", "show_brands"]

#: From a brand to what it is part of, and from there once more (BRAND-08).
_MAX_DEPTH = 2
_MAX_LINKS = 1000
_EARLY = datetime.min.replace(tzinfo=UTC)

# What ``resolve_reference`` returns.
_Target = tuple[str, str]
# A portal's name and one of its endpoints, not yet looked up.
_Link = tuple[str, _Target]


def link_brands(bundle: BrandBundle, problems: Counter[str]) -> None:
    """
    Find the endpoints of every brand of *bundle* and store what changed.

    References that lead nowhere are counted in *problems*.

    Spec: SMART App Launch 2.2, "User-access Brands and Endpoints" (BRAND-07, BRAND-08).
    """
    brands = Brand.objects.filter(bundle=bundle).only(
        "card", "full_url", "endpoint_references", "part_of"
    )
    everywhere = BrandEndpoint.objects.filter(bundle=bundle).only(
        "full_url", "reference"
    )
    for batch in _divide(iterate_in_batches(brands)):
        links = _collect_links(bundle, batch, problems)
        targets = {target for each in links.values() for _, target in each}
        endpoints = _find(everywhere, targets)
        wanted: dict[int, dict[int, str]] = {}
        for brand in batch:
            found = wanted.setdefault(brand.pk, {})
            for portal, target in links[brand.pk]:
                endpoint = endpoints.get(target)
                if endpoint is not None:
                    found.setdefault(endpoint.pk, portal)
                else:
                    problems["A reference to an endpoint cannot be resolved."] += 1
        _store_accesses(wanted, {each.pk: each.card_id or each.pk for each in batch})


def show_brands(bundle: BrandBundle, freed: Iterable[str] = ()) -> None:
    """
    Choose the brand that is shown for each organization of *bundle* (BRAND-06).

    Among equals one that a server's own configuration links to wins, then the newer
    bundle (BRAND-02).

    Args:
        freed: ``merge_digest`` of other brands to choose for again.
    """
    for batch in iterate_in_batches(
        Brand.objects.filter(bundle=bundle).only("merge_digest")
    ):
        _show(brand.merge_digest for brand in batch)
    for part in _split(freed):
        _show(part)


def _divide(batches: Iterable[list[Brand]]) -> Iterator[list[Brand]]:
    """Smaller batches where brands have many endpoints: those are held in memory."""
    for batch in batches:
        part: list[Brand] = []
        count = 0
        for brand in batch:
            if part and count >= _MAX_LINKS:
                yield part
                part, count = [], 0
            part.append(brand)
            count += len(brand.endpoint_references)
        yield part


def refresh_statistics() -> None:
    """
    Let PostgreSQL count again what its plans for a search depend on.

    It does so automatically about a minute later; until then a search can take seconds.
    """
    connection = connections[router.db_for_write(Brand)]
    if connection.vendor == "postgresql":
        models = (Brand, BrandAccess, BrandEndpoint, BrandWord)
        tables = ", ".join(model._meta.db_table for model in models)
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {tables}")


def _collect_links(
    bundle: BrandBundle, batch: list[Brand], problems: Counter[str]
) -> dict[int, list[_Link]]:
    """The links of each brand: its own, or those of what it is part of."""
    links: dict[int, list[_Link]] = {brand.pk: _get_links(brand) for brand in batch}
    above = {brand.pk: brand for brand in batch if not links[brand.pk]}
    everyone = Brand.objects.filter(bundle=bundle).only(
        "full_url", "reference", "endpoint_references", "part_of"
    )
    for _ in range(_MAX_DEPTH):
        targets = {
            pk: resolve_reference(brand.part_of, full_url=brand.full_url)
            for pk, brand in above.items()
            if brand.part_of
        }
        parents = _find(everyone, set(targets.values()))
        above = {}
        for pk, target in targets.items():
            parent = parents.get(target)
            if parent is None:
                problems["A brand is part of a brand that does not exist."] += 1
                continue
            links[pk] = _get_links(parent)
            if not links[pk]:
                above[pk] = parent
    return links


def _get_links(brand: Brand) -> list[_Link]:
    return [
        (
            each["portal"],
            resolve_reference(each["reference"], full_url=brand.full_url),
        )
        for each in brand.endpoint_references
    ]


def _find(rows: QuerySet[Any], targets: set[_Target]) -> dict[_Target, Any]:
    """The row for each target: by its full URL, else by type and id if one has it."""
    by_url: dict[str, Any] = {}
    by_name: dict[str, list[Any]] = defaultdict(list)
    for part in _split(targets):
        urls = [digest(url) for url, _ in part if url]
        for row in rows.filter(full_url_digest__in=urls):
            by_url[row.full_url] = row
        names = [digest(name) for url, name in part if name and url not in by_url]
        for row in rows.filter(reference_digest__in=names):
            by_name[row.reference].append(row)
    found = {}
    for url, name in targets:
        named = by_name.get(name, ())
        row = by_url.get(url) or (named[0] if len(named) == 1 else None)
        if row is not None:
            found[url, name] = row
    return found


def _store_accesses(
    wanted: Mapping[int, Mapping[int, str]], cards: Mapping[int, int]
) -> None:
    """Write what differs; *wanted* is portal names by endpoint, by brand."""
    stored: dict[int, list[tuple[int, str]]] = defaultdict(list)
    rows = BrandAccess.objects.filter(brand__in=list(wanted)).order_by("position")
    for access in rows:
        stored[access.brand_id].append((access.endpoint_id, access.portal_name))
    changed = {
        pk: endpoints
        for pk, endpoints in wanted.items()
        if stored[pk] != list(endpoints.items())
    }
    BrandAccess.objects.filter(brand__in=[pk for pk in changed if stored[pk]]).delete()
    BrandAccess.objects.bulk_create(
        [
            BrandAccess(
                brand_id=pk,
                card_id=cards[pk],
                endpoint_id=endpoint_id,
                position=position,
                portal_name=portal,
            )
            for pk, endpoints in changed.items()
            for position, (endpoint_id, portal) in enumerate(endpoints.items())
        ],
        5000,
    )


def _show(digests: Iterable[str]) -> None:
    groups: dict[str, list[Brand]] = defaultdict(list)
    brands = Brand.objects.filter(merge_digest__in=list(digests))
    for brand in brands.select_related("bundle").only(
        "merge_digest", "card", "bundle__server", "bundle__timestamp"
    ):
        groups[brand.merge_digest].append(brand)
    chosen: list[int] = []
    hidden: list[Brand] = []
    for group in groups.values():
        best = max(group, key=_rank)
        if best.card_id != best.pk:
            chosen.append(best.pk)
        for brand in group:
            if brand is not best and brand.card_id != best.pk:
                brand.card_id = best.pk
                hidden.append(brand)
    Brand.objects.filter(pk__in=chosen).update(card=F("pk"))
    Brand.objects.bulk_update(hidden, ["card"], BATCH)
    moved = [brand.pk for brand in hidden]
    card = Subquery(Brand.objects.filter(pk=OuterRef("brand")).values("card")[:1])
    for rows in (BrandWord.objects.all(), BrandAccess.objects.all()):
        # Of most it is their own brand, as they were written.
        rows.filter(brand__in=chosen).exclude(card=F("brand")).update(card=F("brand"))
        rows.filter(brand__in=moved).update(card=card)


def _rank(brand: Brand) -> tuple[bool, datetime, int]:
    bundle = brand.bundle
    return bundle.server_id is not None, bundle.timestamp or _EARLY, -brand.pk


def _split(values: Iterable[Any]) -> Iterator[list[Any]]:
    """Parts that are short enough for a query."""
    ordered = list(values)
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]
