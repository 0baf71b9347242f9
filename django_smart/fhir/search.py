"""The result of a search: lazy, page by page, within the bearer's boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, cast

from django_smart.fhir.paging import find_next_url, iter_pages

__all__ = ["SearchPage", "SearchResult"]

_T = TypeVar("_T")

# Resources to remember when looking for duplicates: they come where the data changed
# between two pages, so the neighbours are enough, and memory stays that of a page.
_REMEMBERED = 2_000


class SearchPage:
    """
    One page of a search.

    Attributes:
        bundle: the ``Bundle`` as received; ``entry`` and ``link`` are always lists.
        resources: what was searched for.
        included: what came with it, by ``_include`` or ``_revinclude``.
        outcomes: ``OperationOutcome`` resources, such as a note that results are
            withheld (FHIR-07).
    """

    __slots__ = ("_url", "bundle", "included", "outcomes", "resources")

    def __init__(self, bundle: dict[str, Any], *, resource_type: str, url: str) -> None:
        self.bundle = bundle
        self._url = url
        self.resources: list[dict[str, Any]] = []
        self.included: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []
        for entry in bundle["entry"]:
            resource = entry.get("resource")
            if not isinstance(resource, dict):
                continue
            search = entry.get("search")
            mode = search.get("mode") if isinstance(search, dict) else None
            its_type = resource.get("resourceType", resource_type)
            is_other = its_type != resource_type
            is_outcome = its_type == "OperationOutcome"
            if mode == "outcome" or (is_outcome and is_other):
                self.outcomes.append(resource)
            elif mode == "include" or (mode is None and is_other):
                self.included.append(resource)
            else:
                self.resources.append(resource)

    def __repr__(self) -> str:
        return f"<SearchPage: {len(self.resources)} resources>"

    @property
    def total(self) -> int | None:
        """Matches on all pages as the server tells, if it does."""
        total = self.bundle.get("total")
        is_number = isinstance(total, int) and not isinstance(total, bool)
        return total if is_number else None

    @property
    def next_url(self) -> str | None:
        """Absolute URL of the next page; not yet checked against the boundary."""
        return find_next_url(self.bundle, self._url)


class Seen:
    """Tells resources apart from those that came on a page before, up to a number."""

    def __init__(self, max_count: int | None = None) -> None:
        self._left = max_count
        self._recent: set[str] = set()
        self._older: set[str] = set()

    def is_full(self) -> bool:
        """Whether as many were kept as are wanted."""
        return self._left == 0

    def keep_new(self, resources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each resource once, if its second coming is not too far behind."""
        for resource in resources:
            if self._left == 0:
                return
            key = f"{resource.get('resourceType')}/{resource.get('id')}"
            if "id" in resource and (key in self._recent or key in self._older):
                continue
            self._recent.add(key)
            if len(self._recent) >= _REMEMBERED:
                self._recent, self._older = set(), self._recent
            if self._left is not None:
                self._left -= 1
            yield resource


class SearchResult(Generic[_T]):
    """
    Resources that match, asked for when they are needed.

    Iterating yields them one by one and follows ``next`` links; the first page is kept,
    later ones are not.  Like a queryset it is true if there is a match, which asks the
    server.

    Raises (while it is used):
        BearerBoundaryError: a ``next`` link leads out of the boundary.
        FHIRStatusError: the server refused a page.
        MalformedFHIRResponseError: no searchset, endless pages, or another model.
    """

    def __init__(
        self,
        fetch_bundle: Callable[[str], dict[str, Any]],
        *,
        url: str,
        resource_type: str,
        convert: Callable[[dict[str, Any]], _T] | None = None,
    ) -> None:
        """
        *fetch_bundle* gets a page by its absolute URL, boundary checked; *convert*
        turns a resource into what is yielded.
        """
        self._fetch_bundle = fetch_bundle
        self._url = url
        self._first_page: SearchPage | None = None
        self._convert = convert
        #: Of matches to be yielded; ``None`` for all.
        self.max_count: int | None = None
        self.resource_type = resource_type

    def __repr__(self) -> str:
        return f"<SearchResult: {self.resource_type}>"

    def __bool__(self) -> bool:
        return next(self._iter_resources(), None) is not None

    def __iter__(self) -> Iterator[_T]:
        resources = self._iter_resources()
        if self._convert is None:
            return cast("Iterator[_T]", resources)
        return map(self._convert, resources)

    @property
    def total(self) -> int | None:
        """Number of matches as the server tells; ``None`` if it does not."""
        return self._get_first_page().total

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """``OperationOutcome`` resources of the first page (FHIR-07)."""
        return self._get_first_page().outcomes

    def bundle(self) -> dict[str, Any]:
        """Return the first page as received."""
        return self._get_first_page().bundle

    def first(self) -> _T | None:
        """Return the first match, or ``None``; empty pages are passed over."""
        return next(iter(self), None)

    def limit(self, count: int) -> SearchResult[_T]:
        """
        The same result, which ends after *count* matches at most.

        Pages that hold none of them are not asked for.  It does not tell the server
        how large a page to make, as ``_count`` does.
        """
        if count < 0:
            raise ValueError("a limit is not negative")
        limited: SearchResult[_T] = SearchResult(
            self._fetch_bundle,
            url=self._url,
            resource_type=self.resource_type,
            convert=self._convert,
        )
        limited._first_page = self._first_page
        limits = [count] if self.max_count is None else [count, self.max_count]
        limited.max_count = min(limits)
        return limited

    def convert(self, resource: dict[str, Any]) -> _T:
        """Make of a resource what is yielded."""
        return self._convert(resource) if self._convert else cast("_T", resource)

    def included(self) -> Iterator[dict[str, Any]]:
        """
        Yield what came along by ``_include`` and ``_revinclude``, from all pages.

        Pages after the first are asked for anew; to have matches and what came with
        them in one go, look at each of :meth:`pages`.
        """
        seen = Seen()
        for page in self.pages():
            yield from seen.keep_new(page.included)

    def pages(self) -> Iterator[SearchPage]:
        """Yield page after page, one at a time in memory."""
        return iter_pages(
            self._fetch_page,
            self._url,
            what=f"search of {self.resource_type}",
            get_next_url=lambda page, _: page.next_url,
            has_matches=lambda page: bool(page.resources),
        )

    def _iter_resources(self) -> Iterator[dict[str, Any]]:
        seen = Seen(self.max_count)
        if seen.is_full():
            return
        for page in self.pages():
            yield from seen.keep_new(page.resources)
            del page
            if seen.is_full():
                return

    def _get_first_page(self) -> SearchPage:
        if self._first_page is None:
            bundle = self._fetch_bundle(self._url)
            self._first_page = self._build_page(bundle, self._url)
        return self._first_page

    def _fetch_page(self, url: str) -> SearchPage:
        if url == self._url:
            return self._get_first_page()
        return self._build_page(self._fetch_bundle(url), url)

    def _build_page(self, bundle: dict[str, Any], url: str) -> SearchPage:
        return SearchPage(bundle, resource_type=self.resource_type, url=url)
