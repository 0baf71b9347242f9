"""The page on which a person chooses an organization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from django.apps import apps
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import urlencode

from ..error_pages import harden
from ..launches.prefix import get_protocol_url
from ..models import ClientRegistration
from ..models.search_words import matches_words, split_words
from ..models.server import tell_apart

__all__ = [
    "MAX_PAGE",
    "MAX_QUERY",
    "PAGE_SIZE",
    "Choice",
    "find_choices",
    "render_picker",
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
    category = _read_category(request.GET.get("category", ""))
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
    that no brand leads to come first, by name; without the app of brands, that is all.

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
    # One more than fits shows that there is a next page.
    wanted = PAGE_SIZE + 1
    servers = {} if category else _find_servers(words)
    choices = [
        Choice(name=name, links={slug: name})
        for slug, name in list(tell_apart(servers).items())[start : start + wanted]
    ]
    if _has_brands() and len(choices) < wanted:
        from ..contrib.brands.search import find_brands

        choices += find_brands(
            words,
            category=category,
            start=max(0, start - len(servers)),
            count=wanted - len(choices),
        )
    return choices[:PAGE_SIZE], len(choices) > PAGE_SIZE


def _has_brands() -> bool:
    return apps.is_installed("django_smart.contrib.brands")


def _read_page(value: str) -> int:
    is_number = value.isascii() and value.isdecimal() and len(value) <= 6
    return min(max(int(value), 1), MAX_PAGE) if is_number else 1


def _read_category(value: str) -> str:
    if not _has_brands():
        return ""
    from ..contrib.brands.search import CATEGORIES

    return value if value in CATEGORIES else ""


def _find_servers(words: list[str]) -> dict[str, str]:
    """Names of registered servers that no brand leads to, in order, by slug."""
    registrations = ClientRegistration.objects.standalone()
    if _has_brands():
        from ..contrib.brands.search import leave_out_brands

        registrations = leave_out_brands(registrations)
    ordered = registrations.order_by("server__name", "pk")
    pairs = ordered.values_list("server__slug", "server__name")
    named = ((slug, name or slug) for slug, name in pairs)
    return {slug: name for slug, name in named if matches_words(name, words)}
