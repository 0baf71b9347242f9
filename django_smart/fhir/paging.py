"""Bundles that come in pages, one page in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from django_smart.exceptions import MalformedFHIRResponseError
from django_smart.fhir.messages import resolve_url

__all__ = ["History", "find_next_url", "iter_pages"]


def iter_pages(
    fetch_bundle: Callable[[str], dict[str, Any]], url: str, *, what: str
) -> Iterator[dict[str, Any]]:
    """
    Yield the Bundle at *url* and those that its ``next`` links lead to.

    Args:
        fetch_bundle: gets a page by its absolute URL, boundary checked.

    Raises:
        MalformedFHIRResponseError: the pages go in circles.
    """
    seen: set[bytes] = set()
    next_url: str | None = url
    while next_url is not None:
        digest = hashlib.sha256(next_url.encode()).digest()
        if digest in seen:
            raise MalformedFHIRResponseError(f"the pages of the {what} go in circles")
        seen.add(digest)
        bundle = fetch_bundle(next_url)
        next_url = find_next_url(bundle, url=next_url)
        yield bundle
        # Before the next one is built, which then takes its place in memory.
        del bundle


def find_next_url(bundle: dict[str, Any], *, url: str) -> str | None:
    """Absolute URL of the page after *bundle*, which came from *url*; unchecked."""
    for link in bundle["link"]:
        target = link.get("url")
        if link.get("relation") == "next" and isinstance(target, str) and target:
            return resolve_url(url, target)
    return None


class History:
    """
    Versions as the server tells of them, the newest first, asked for when needed.

    Iterating yields entries: ``resource`` is the version and is absent from a deletion,
    ``request`` (``method``, ``url``) and ``response`` say what made it.  Each iteration
    asks the server anew and holds one page.

    Raises (while it is used):
        BearerBoundaryError: a ``next`` link leads out of the boundary.
        FHIRStatusError: the server refused a page.
        MalformedFHIRResponseError: no history came, or the pages go in circles.
    """

    def __init__(
        self, fetch_bundle: Callable[[str], dict[str, Any]], *, url: str, what: str
    ) -> None:
        """*fetch_bundle* gets a page by its absolute URL, boundary checked."""
        self._fetch_bundle = fetch_bundle
        self._url = url
        self._what = what

    def __repr__(self) -> str:
        return f"<History: {self._what}>"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for page in self.pages():
            yield from page["entry"]
            del page

    def pages(self) -> Iterator[dict[str, Any]]:
        """Yield Bundles of type ``history``, page after page."""
        return iter_pages(self._fetch_bundle, self._url, what=self._what)

    def versions(self) -> Iterator[dict[str, Any]]:
        """Yield the resources alone; deletions are left out."""
        for entry in self:
            if isinstance(resource := entry.get("resource"), dict):
                yield resource
