"""The page on which a person chooses an organization."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import urlencode

from ..conf import conf
from ..error_pages import harden
from ..launches.prefix import get_protocol_url
from ..models import Brand, BrandAccess, ClientRegistration
from ..models.brand import BrandQuerySet
from ..models.registration import ClientRegistrationQuerySet
from ..models.search_words import split_words
from ..protocol.brands import CATEGORIES

__all__ = [
    "MAX_PAGE",
    "MAX_QUERY",
    "PAGE_SIZE",
    "Choice",
    "find_choices",
    "render_picker",
    "tell_apart",
]

#: Organizations on a page.
PAGE_SIZE = 20
#: The last page; a search finds the rest.
MAX_PAGE = 5000
#: Characters of a query.
MAX_QUERY = 200
# Words of a query; further ones are ignored.
_MAX_WORDS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """
    One organization.

    Attributes:
        alias, place: those that match the query best; may be empty.
        more_places: how many it has in addition to *place*.
        logo: for the ``src`` of an ``<img>`` and nothing else; may be empty.
        links: the ways to connect, as labels by the slug of the server, for
            ``login/?server=``; empty if it cannot be connected yet.
    """

    name: str
    alias: str = ""
    place: str = ""
    more_places: int = 0
    logo: str = ""
    links: Mapping[str, str] = field(default_factory=dict)


def render_picker(request: HttpRequest, *, next_url: str) -> HttpResponse:
    """
    Render the page for ``GET login/?q=…&page=…&category=…``.

    The page's script requests the same address while somebody types, and takes the
    results out of the response.
    """
    query = request.GET.get("q", "")[:MAX_QUERY].strip()
    page = _read_page(request.GET.get("page", ""))
    category = request.GET.get("category", "")
    category = category if category in CATEGORIES else ""
    found, has_next = find_choices(query, page=page, category=category)
    kept = {"next": next_url, "category": category}

    def build_url(**values: str | int) -> str:
        pairs = {name: value for name, value in values.items() if value}
        return f"{get_protocol_url('login')}?{urlencode(pairs)}"

    choices = [
        {
            "choice": choice,
            "links": [
                {"label": label, "url": build_url(server=slug, next=next_url)}
                for slug, label in choice.links.items()
            ],
        }
        for choice in found
    ]
    context = {
        "choices": choices,
        "query": query,
        "kept": {name: value for name, value in kept.items() if value},
        # A few organizations are read faster than searched.
        "can_search": bool(query) or page > 1 or has_next,
        "previous_url": build_url(q=query, page=page - 1, **kept) if page > 1 else "",
        "next_page_url": build_url(q=query, page=page + 1, **kept)
        if has_next and page < MAX_PAGE
        else "",
        "max_query": MAX_QUERY,
    }
    return harden(render(request, "django_smart/picker.html", context))


def find_choices(
    query: str = "", *, page: int = 1, category: str = ""
) -> tuple[list[Choice], bool]:
    """
    Find organizations whose name, alias, place or portal has the words of *query*.

    The beginning of a word is enough, and all words have to match.  Registered servers
    that no brand leads to come first, by name.

    Args:
        page: from 1 to ``MAX_PAGE``.
        category: of brands alone, such as ``laboratory``; empty for all (BRAND-14).

    Returns:
        One page of organizations, and whether there are more.
    """
    words = split_words(query)[:_MAX_WORDS]
    if query.strip() and not words:
        return [], False
    start = PAGE_SIZE * (page - 1)
    registrations = _find_registrations(words)
    if category:
        registrations = registrations.none()
    # One more than fits shows that there is a next page.
    wanted = PAGE_SIZE + 1
    servers = list(registrations[start : start + wanted])
    # How many pages they fill matters only after their last one.
    skipped = 0 if servers or not start else start - registrations.count()
    brands = _find_brands(words, category)[skipped : skipped + wanted - len(servers)]
    names = tell_apart({each.server.slug: str(each.server) for each in servers})
    choices = [Choice(name=name, links={slug: name}) for slug, name in names.items()]
    choices += _build_brand_choices(list(brands), words)
    return choices[:PAGE_SIZE], len(choices) > PAGE_SIZE


def _read_page(value: str) -> int:
    is_number = value.isascii() and value.isdecimal() and len(value) <= 6
    return min(max(int(value), 1), MAX_PAGE) if is_number else 1


def _find_registrations(words: Iterable[str]) -> ClientRegistrationQuerySet:
    """Registrations that no brand leads to."""
    accesses = BrandAccess.objects.usable().filter(
        endpoint__address_digest=OuterRef("server__base_url_digest")
    )
    found = ClientRegistration.objects.standalone().filter(~Exists(accesses))
    for word in words:
        found = found.filter(server__search_text__contains=f" {word}")
    return found.order_by("server__name", "pk")


def _find_brands(words: list[str], category: str) -> BrandQuerySet:
    # All of these yield cards alone (BRAND-06), so brands are not asked for their card:
    # databases guess badly how many rows have two equal columns.
    found = Brand.objects.with_words(words)
    if conf.SMART_PICKER_SHOW_UNREGISTERED:
        found = found.with_access()
    else:
        found = found.connectable()
    if category:
        found = found.in_category(category)
    return found.best_first(words).only(
        "name", "aliases", "places", "logo", "logo_license"
    )


def _build_brand_choices(brands: list[Brand], words: list[str]) -> list[Choice]:
    links = _find_links([brand.pk for brand in brands])
    accepted = conf.SMART_LOGO_LICENSES
    choices = []
    for brand in brands:
        labels = brand.place_labels
        place = _pick(labels, words) or next(iter(labels), "")
        missing = [word for word in words if not _has_words(brand.name, [word])]
        agreed = not brand.logo_license or brand.logo_license in accepted
        choices.append(
            Choice(
                name=brand.name,
                alias=_pick(brand.aliases, missing),
                place=place,
                more_places=max(0, len(labels) - 1),
                logo=brand.logo if agreed else "",
                links=tell_apart(links[brand.pk]),
            )
        )
    return choices


def _find_links(cards: list[int]) -> dict[int | None, dict[str, str]]:
    """The label of each registered server, by card; the card's own links first."""
    accesses = (
        BrandAccess.objects.registered()
        .filter(card__in=cards)
        .order_by("brand_id", "position")
        .values_list("card", "brand", "endpoint__address_digest", "portal_name")
    )
    registrations = ClientRegistration.objects.standalone().filter(
        server__base_url_digest__in={each[2] for each in accesses}
    )
    servers = {each.server.base_url_digest: each.server for each in registrations}
    links: dict[int | None, dict[str, str]] = defaultdict(dict)
    # Its own bundle before others about the same organization (BRAND-02).
    for card, _, address_digest, portal in sorted(accesses, key=lambda a: a[0] != a[1]):
        server = servers.get(address_digest)
        if server is not None:
            links[card].setdefault(server.slug, portal or server.name)
    return links


def tell_apart(labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels by the slugs of their servers, with the slug where two are one."""
    times = Counter(labels.values())
    return {
        slug: label if times[label] == 1 else f"{label} ({slug})"
        for slug, label in labels.items()
    }


def _pick(texts: Iterable[str], words: list[str]) -> str:
    """The first of *texts* that matches *words*; empty if none does."""
    return next((text for text in texts if _has_words(text, words)), "")


def _has_words(text: str, words: list[str]) -> bool:
    """Whether a word of *text* begins with one of *words*."""
    return any(each.startswith(tuple(words)) for each in split_words(text))
