"""
Searchset Bundles, page by page.

Spec: FHIR R4, "Search", "Paging", http://hl7.org/fhir/R4/http.html#paging.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django_smart.testing.simulator.errors import FHIRError
from django_smart.testing.simulator.exchange import fhir_response
from django_smart.testing.simulator.search import select_elements

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.exchange import Exchange
    from django_smart.testing.simulator.fhir import Access

__all__ = ["DEFAULT_COUNT", "MAX_COUNT", "SavedSearch", "next_page", "searchset"]

DEFAULT_COUNT = 50
MAX_COUNT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSearch:
    """The result of a search with further pages."""

    search_id: str
    access: Access
    pairs: list[tuple[str, str]]
    resources: list[dict[str, Any]]


def searchset(
    exchange: Exchange,
    access: Access,
    *,
    path: str,
    pairs: list[tuple[str, str]],
    resources: list[dict[str, Any]],
) -> Response:
    """The first page."""
    ehr = exchange.ehr
    count = _number(pairs, "_count", DEFAULT_COUNT)
    if dict(pairs).get("_summary") == "count":
        count = 0
    self_url = f"{ehr.page_url}/{path}"
    if pairs:
        self_url += f"?{urlencode(pairs)}"
    saved = SavedSearch(
        search_id=str(uuid.uuid4()), access=access, pairs=pairs, resources=resources
    )
    with ehr.store.lock:
        ehr.saved_searches[saved.search_id] = saved
    return _page(exchange, saved, self_url=self_url, offset=0, count=count)


def next_page(exchange: Exchange, access: Access) -> Response:
    """
    Answer ``GET …?_getpages=<id>&_getpagesoffset=<n>&_count=<n>``.

    Raises:
        FHIRError: 404 for an unknown search, 403 for one of another grant.
    """
    pairs = exchange.query
    saved = exchange.ehr.saved_searches.get(dict(pairs).get("_getpages", ""))
    if saved is None:
        raise FHIRError(404, "not-found", "there is no such page")
    if saved.access.token.grant is not access.token.grant:
        raise FHIRError(403, "forbidden", "this page belongs to another authorization")
    offset = _number(pairs, "_getpagesoffset", 0)
    count = _number(pairs, "_count", DEFAULT_COUNT)
    self_url = f"{exchange.ehr.page_url}?{urlencode(pairs)}"
    return _page(exchange, saved, self_url=self_url, offset=offset, count=count)


def _page(
    exchange: Exchange, saved: SavedSearch, *, self_url: str, offset: int, count: int
) -> Response:
    ehr = exchange.ehr
    count = min(count, MAX_COUNT)
    links = [{"relation": "self", "url": self_url}]
    if count and offset + count < len(saved.resources):
        query = {
            "_getpages": saved.search_id,
            "_getpagesoffset": offset + count,
            "_count": count,
            "_bundletype": "searchset",
        }
        links.append({"relation": "next", "url": f"{ehr.page_url}?{urlencode(query)}"})
    updated = datetime.fromtimestamp(ehr.clock(), tz=UTC)
    bundle: dict[str, Any] = {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "meta": {"lastUpdated": updated.isoformat(timespec="milliseconds")},
        "type": "searchset",
        "link": links,
    }
    if dict(saved.pairs).get("_total") != "none":
        bundle["total"] = len(saved.resources)
    page = saved.resources[offset : offset + count]
    if page:
        # FHIR forbids an empty array.
        bundle["entry"] = [_entry(saved, one, "match") for one in page] + [
            _entry(saved, one, "include")
            for one in saved.access.search.find_included(page, saved.pairs)
            if saved.access.allows(one, "r") or saved.access.allows(one, "s")
        ]
    return fhir_response(bundle)


def _entry(saved: SavedSearch, resource: dict[str, Any], mode: str) -> dict[str, Any]:
    path = f"{resource['resourceType']}/{resource['id']}"
    return {
        "fullUrl": f"{saved.access.base_url}/{path}",
        "resource": select_elements(resource, saved.pairs),
        "search": {"mode": mode},
    }


def _number(pairs: list[tuple[str, str]], name: str, default: int) -> int:
    text = dict(pairs).get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise FHIRError(400, "value", f"{name} must be a number that is not negative")
    return int(text)
