"""The page on which a person chooses an organisation."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.http import urlencode

from ..error_pages import harden
from ..flows.picker import MAX_PAGE, find_choices
from ..launches.prefix import get_protocol_url
from ..protocol.brands import CATEGORIES

__all__ = ["MAX_QUERY", "render_picker"]

#: Characters of a search.
MAX_QUERY = 200


def render_picker(request: HttpRequest, *, next_url: str) -> HttpResponse:
    """
    Answer ``GET login/?q=…&page=…&category=…``.

    The script of the page asks for the same address while somebody types, and takes the
    results out of the answer.
    """
    query = request.GET.get("q", "")[:MAX_QUERY].strip()
    page = _read_page(request.GET.get("page", ""))
    category = request.GET.get("category", "")
    category = category if category in CATEGORIES else ""
    found = find_choices(query, page=page, category=category)
    kept = {"next": next_url, "category": category}

    def build_url(**values: str | int) -> str:
        pairs = {name: value for name, value in values.items() if value}
        return f"{get_protocol_url('login')}?{urlencode(pairs)}"

    choices = [
        {
            "choice": choice,
            "links": [
                {"label": link.label, "url": build_url(server=link.slug, next=next_url)}
                for link in choice.links
            ],
        }
        for choice in found.choices
    ]
    context = {
        "choices": choices,
        "query": query,
        "kept": {name: value for name, value in kept.items() if value},
        # A handful of organisations is read faster than searched.
        "can_search": bool(query) or page > 1 or found.has_next,
        "previous_url": build_url(q=query, page=page - 1, **kept) if page > 1 else "",
        "next_page_url": build_url(q=query, page=page + 1, **kept)
        if found.has_next and page < MAX_PAGE
        else "",
        "max_query": MAX_QUERY,
    }
    return harden(render(request, "django_smart/picker.html", context))


def _read_page(value: str) -> int:
    is_number = value.isascii() and value.isdecimal() and len(value) <= 6
    return min(max(int(value), 1), MAX_PAGE) if is_number else 1
