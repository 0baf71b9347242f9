"""Bundles that come in pages, one page in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, TypeVar

from django_smart.exceptions import MalformedFHIRResponseError
from django_smart.fhir.messages import resolve_url

__all__ = ["History", "find_next_url", "iter_bundles", "iter_pages"]

_Page = TypeVar("_Page")

# What one result may take, so that no server can make it endless.  In seconds, and of
# the server's time alone: callers may take as long as they like with each page.
_MAX_PAGES = 10_000
_MAX_SECONDS = 3600
# In a row, without a match: nobody has anything of these yet.
_MAX_FRUITLESS_PAGES = 50
_MAX_FRUITLESS_SECONDS = 60


def iter_pages(
    fetch_page: Callable[[str], _Page],
    first_url: str,
    *,
    what: str,
    get_next_url: Callable[[_Page, str], str | None],
    has_matches: Callable[[_Page], bool],
) -> Iterator[_Page]:
    """
    Yield the page at *first_url* and those that its ``next`` links lead to.

    Args:
        fetch_page: gets a page by its absolute URL, boundary checked.
        get_next_url: absolute URL after a page, which came from the second argument.

    Raises:
        MalformedFHIRResponseError: the pages go in circles, too many of them have no
            match, or there are too many in all.
    """
    seen: set[bytes] = set()
    fruitless_pages = 0
    seconds = fruitless_seconds = 0.0
    url: str | None = first_url
    while url is not None:
        digest = hashlib.sha256(url.encode()).digest()
        if digest in seen:
            raise MalformedFHIRResponseError(f"the pages of the {what} go in circles")
        if len(seen) >= _MAX_PAGES or seconds >= _MAX_SECONDS:
            raise MalformedFHIRResponseError(
                f"the {what} does not end within {_MAX_PAGES} pages and "
                f"{_MAX_SECONDS} s"
            )
        if (
            fruitless_pages >= _MAX_FRUITLESS_PAGES
            or fruitless_seconds >= _MAX_FRUITLESS_SECONDS
        ):
            raise MalformedFHIRResponseError(
                f"the {what} had {fruitless_pages} pages in a row without a match"
            )
        seen.add(digest)
        started = monotonic()
        page = fetch_page(url)
        taken = monotonic() - started
        seconds += taken
        if has_matches(page):
            fruitless_pages, fruitless_seconds = 0, 0.0
        else:
            fruitless_pages += 1
            fruitless_seconds += taken
        url = get_next_url(page, url)
        yield page
        # Before the next one is built, which then takes its place in memory.
        del page


def iter_bundles(
    fetch_bundle: Callable[[str], dict[str, Any]], url: str, *, what: str
) -> Iterator[dict[str, Any]]:
    """:func:`iter_pages` of Bundles whose entries are all matches."""
    return iter_pages(
        fetch_bundle,
        url,
        what=what,
        get_next_url=find_next_url,
        has_matches=lambda bundle: bool(bundle["entry"]),
    )


def find_next_url(bundle: dict[str, Any], url: str) -> str | None:
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
        MalformedFHIRResponseError: no history came, or its pages do not end.
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
        return iter_bundles(self._fetch_bundle, self._url, what=self._what)

    def versions(self) -> Iterator[dict[str, Any]]:
        """Yield the resources alone; deletions are left out."""
        for entry in self:
            if isinstance(resource := entry.get("resource"), dict):
                yield resource
