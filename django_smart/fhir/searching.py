"""Searches: sent by GET or POST, and read page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import Interaction, as_posted, build_search
from django_smart.fhir.messages import (
    process_bundle_response,
    resolve_link,
    validate_bundle,
)
from django_smart.fhir.paging import Page, SearchStream, iter_pages
from django_smart.protocol.messages import HTTPResponse

__all__ = ["iterate", "iterate_pages"]

# Length of a URL that every server and proxy accepts (IIS: 2,048 for the query).
_LONGEST_URL = 2000


def iterate(
    client: FHIRConnection,
    resource_type: str,
    query: str,
    *,
    prefer: str = "",
    compartment: str = "",
    by_post: bool = False,
) -> SearchStream:
    """Build the stream of :meth:`FHIRClient.iterate`; *query* is encoded."""
    interaction = build_search(
        resource_type, query, prefer=prefer, compartment=compartment
    )
    url = client.build_url(interaction.path)
    is_posted = by_post or len(url) > _LONGEST_URL

    def fetch(page_url: str) -> HTTPResponse:
        if page_url == url and is_posted:
            return client.perform(as_posted(interaction))
        return client.perform(interaction, url=page_url)

    return SearchStream(fetch, url=url, resource_type=resource_type)


def iterate_pages(
    client: FHIRConnection, bundle: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """
    Yield *bundle* and the pages that its ``next`` links lead to.

    For the results of :meth:`operation` and :meth:`get`, and for a history of any
    length: ``fhir.iterate_pages(fhir.get("Observation/_history"))``.

    Args:
        bundle: a ``Bundle`` from this server.

    Yields:
        Bundles whose ``entry`` and ``link`` are lists.

    Raises:
        FHIRRequestError: *bundle* is not a ``Bundle``.
    """
    if bundle.get("resourceType") != "Bundle":
        raise FHIRRequestError("Only a Bundle has pages.")
    type_ = str(bundle.get("type", ""))
    what = f"Bundle of type {type_}"
    first = validate_bundle(dict(bundle), type=type_, what=what)
    # The base for relative links.
    links = (each for each in first["link"] if each.get("relation") == "self")
    link = next(links, None)
    url = resolve_link(f"{client.base_url}/", str((link and link.get("url")) or ""))

    def fetch_page(page_url: str) -> Page:
        if page_url == url:
            return Page(first, url=url)
        # Without a path: only get() is about what the URL says.
        interaction = Interaction(name="get", method="GET", path="")
        response = client.perform(interaction, url=page_url)
        page = process_bundle_response(response, type=type_, what=what)
        return Page(page, url=page_url)

    for page in iter_pages(fetch_page, url, what=what):
        yield page.bundle
