"""Search brands for the page on which a person chooses an organization."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from django.db.models import Exists, OuterRef

from ...conf import conf
from ...models import ClientRegistration
from ...models.registration import ClientRegistrationQuerySet
from ...models.search_words import split_words
from ...models.server import tell_apart
from ...views.picker import Choice
from .models import Brand, BrandEndpoint
from .resources import CATEGORIES

__all__ = ["CATEGORIES", "find_brands", "leave_out_brands"]


def leave_out_brands(
    registrations: ClientRegistrationQuerySet,
) -> ClientRegistrationQuerySet:
    """Return *registrations* that no brand leads to."""
    endpoints = BrandEndpoint.objects.filter(
        address_digest=OuterRef("server__base_url_digest")
    )
    return registrations.filter(~Exists(endpoints))


def find_brands(
    words: list[str], *, category: str, start: int, count: int
) -> list[Choice]:
    """
    Find brands whose name, alias, place or portal has all of the folded *words*.

    Args:
        category: one of ``CATEGORIES``; empty for all (BRAND-14).
    """
    found = Brand.objects.shown()
    if words:
        found = found.with_words(words)
    if conf.SMART_PICKER_SHOW_UNREGISTERED:
        found = found.with_endpoint()
    else:
        found = found.connectable()
    if category:
        found = found.in_category(category)
    brands = list(found.best_first(words)[start : start + count])
    links = _find_links(brands)
    return [_build_choice(brand, words, links[brand.merge_digest]) for brand in brands]


def _build_choice(brand: Brand, words: list[str], links: dict[str, str]) -> Choice:
    missing = [word for word in words if not _has_words(brand.name, [word])]
    is_accepted = brand.logo_license in {"", *conf.SMART_LOGO_LICENSES}
    return Choice(
        name=brand.name,
        alias=_pick(brand.aliases, missing),
        place=_pick(brand.places, words) or next(iter(brand.places), ""),
        more_places=max(0, len(brand.places) - 1),
        logo=brand.logo if is_accepted else "",
        links=tell_apart(links),
    )


def _find_links(brands: list[Brand]) -> dict[str, dict[str, str]]:
    """The label of each registered server, by slug, for each ``merge_digest``."""
    shown = {brand.pk for brand in brands}
    endpoints = list(
        BrandEndpoint.objects.registered()
        .filter(brand__merge_digest__in={brand.merge_digest for brand in brands})
        .select_related("brand")
        .only("brand__merge_digest", "address_digest", "portal_name")
        .order_by("brand_id", "pk")
    )
    registrations = ClientRegistration.objects.standalone().filter(
        server__base_url_digest__in={each.address_digest for each in endpoints}
    )
    servers = {each.server.base_url_digest: each.server for each in registrations}
    links: dict[str, dict[str, str]] = defaultdict(dict)
    # Its own bundle before others about the same organization (BRAND-02).
    for endpoint in sorted(endpoints, key=lambda each: each.brand_id not in shown):
        server = servers.get(endpoint.address_digest or "")
        if server is not None:
            label = endpoint.portal_name or server.name
            links[endpoint.brand.merge_digest].setdefault(server.slug, label)
    return links


def _pick(texts: Iterable[str], words: list[str]) -> str:
    """The first of *texts* that matches *words*; empty if none does."""
    return next((text for text in texts if _has_words(text, words)), "")


def _has_words(text: str, words: list[str]) -> bool:
    """Whether a word of *text* begins with one of *words*."""
    return any(each.startswith(tuple(words)) for each in split_words(text))
