"""The result of a search: loaded completely, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from django_smart.exceptions import MalformedFHIRResponseError
from django_smart.fhir.messages import reports_error
from django_smart.fhir.paging import WHOLE, Page, Results, Stream, iter_pages

__all__ = ["SearchPage", "SearchResult", "SearchStream"]

_T = TypeVar("_T")

# Resources to remember for finding duplicates.  They occur if data changes between
# two pages, so neighboring pages suffice and memory use stays small.
_REMEMBERED = 2_000
# Issue types that say that a search stopped early: FHIR's group "transient", and
# "too-costly".  Some servers send them as warnings.
_STOPPED = (
    *("transient", "lock-error", "no-store", "exception", "timeout", "incomplete"),
    *("throttled", "too-costly"),
)


class SearchPage(Page):
    """
    One page of a search.

    Attributes:
        bundle: the ``Bundle`` as received; ``entry`` and ``link`` are always lists.
        matches, resources: the matches.
        included: resources from ``_include`` or ``_revinclude``.
        outcomes: ``OperationOutcome`` resources, for example a note that results were
            withheld (FHIR-07).
    """

    __slots__ = ("included", "outcomes", "resources")

    def __init__(self, bundle: dict[str, Any], *, resource_type: str, url: str) -> None:
        """
        *resource_type* is ``*`` for a search of every type, and empty to take
        everything that was sent.
        """
        super().__init__(bundle, url=url)
        self.resources: list[dict[str, Any]] = []
        self.matches = self.resources
        self.included: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []
        for entry in bundle["entry"]:
            resource = entry.get("resource")
            if not isinstance(resource, dict):
                continue
            search = entry.get("search")
            mode = search.get("mode") if isinstance(search, dict) else None
            its_type = resource.get("resourceType", resource_type)
            is_other = resource_type != "*" and its_type != resource_type
            is_outcome = its_type == "OperationOutcome"
            if mode == "outcome" or (is_outcome and resource_type != its_type):
                self.outcomes.append(resource)
            elif resource_type and (mode == "include" or (mode is None and is_other)):
                self.included.append(resource)
            else:
                self.resources.append(resource)

    def __repr__(self) -> str:
        return f"<SearchPage: {len(self.resources)} resources>"

    @property
    def is_cut_off(self) -> bool:
        """As for any page; also if there are errors, or entries without a resource."""
        read = (*self.resources, *self.included, *self.outcomes)
        return (
            super().is_cut_off
            or len(self.bundle["entry"]) > len(read)
            or any(reports_error(each, codes=_STOPPED) for each in self.outcomes)
        )


class Seen:
    """Finds resources that an earlier page already contained."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._older: set[str] = set()

    def keep_new(self, resources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield each resource once, unless its duplicate comes much later."""
        for resource in resources:
            key = f"{resource.get('resourceType')}/{resource.get('id')}"
            if "id" in resource and (key in self._recent or key in self._older):
                continue
            self._recent.add(key)
            if len(self._recent) >= _REMEMBERED:
                self._recent, self._older = set(), self._recent
            yield resource


class SearchResult(Results[_T]):
    """
    The matching resources: a list, complete when ``search()`` returns it.

    Attributes:
        total: number of matches according to the server, or those received if more.
        is_complete: false if ``limit=`` cut off matches, or if the server reported an
            error, left some out of a page or named no URL for the next one.
        included: resources from ``_include`` and ``_revinclude``, each once.
        outcomes: ``OperationOutcome`` resources in the result (FHIR-07).
        resource_type: the searched type; empty for a complete record.
    """

    def __init__(self, resource_type: str) -> None:
        super().__init__()
        self.resource_type = resource_type
        self.included: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"<SearchResult: {self.resource_type}>"

    def _read(self, stream: SearchStream[_T]) -> Callable[[SearchPage], Iterable[_T]]:
        matches, inclusions = Seen(), Seen()

        def read(page: SearchPage) -> Iterable[_T]:
            self.included += inclusions.keep_new(page.included)
            self.outcomes += page.outcomes
            return map(stream.convert, matches.keep_new(page.resources))

        return read


class SearchStream(Stream[_T]):
    """
    Matching resources, with one page in memory at a time.

    Iterating yields them one by one and follows ``next`` links; iterating again sends
    the search again.  Errors are raised while iterating.

    Raises:
        BearerBoundaryError: a ``next`` link leads outside the boundary.
        FHIRStatusError: the server refused a page.
        MalformedFHIRResponseError: not a searchset, endless pages or the wrong model;
            after the last match, if the server left out others (see ``is_complete`` of
            :class:`SearchResult`).
    """

    def __init__(
        self,
        fetch_bundle: Callable[[str], dict[str, Any]],
        *,
        url: str,
        resource_type: str,
        what: str = "",
        convert: Callable[[dict[str, Any]], _T] | None = None,
    ) -> None:
        """
        *fetch_bundle* gets a page by its absolute URL, within the boundary; *convert*
        converts a resource to the yielded value.
        """
        self._fetch_bundle = fetch_bundle
        self._url = url
        self._what = what or f"search of {resource_type}"
        self._convert = convert
        self.resource_type = resource_type

    def __repr__(self) -> str:
        return f"<SearchStream: {self.resource_type}>"

    def convert(self, resource: dict[str, Any]) -> _T:
        """Convert a resource to the yielded value."""
        return self._convert(resource) if self._convert else cast("_T", resource)

    def pages(self) -> Iterator[SearchPage]:
        """
        Yield the pages, with included resources and the server's outcomes.

        Raises:
            MalformedFHIRResponseError: no page had a match, but the server reports with
                status 200 that the search failed or has matches; otherwise as when
                iterating.
        """
        is_cut_off = False
        for page in iter_pages(self._fetch_page, self._url, what=self._what):
            is_cut_off = is_cut_off or page.is_cut_off
            yield page
            # Before the next page is built, which then replaces it in memory.
            del page
        if is_cut_off:
            raise MalformedFHIRResponseError(f"the {self._what} is incomplete")

    def load(self, limit: int | None = None) -> SearchResult[_T]:
        """Load everything, like ``FHIRClient.search``."""
        result: SearchResult[_T] = SearchResult(self.resource_type)
        pages = iter_pages(self._fetch_page, self._url, what=self._what, **WHOLE)
        result._load(pages, limit=limit, what=self._what, read=result._read(self))
        return result

    def _iterate(self) -> Iterator[_T]:
        seen = Seen()
        for page in self.pages():
            yield from map(self.convert, seen.keep_new(page.resources))
            del page

    def _fetch_page(self, url: str) -> SearchPage:
        bundle = self._fetch_bundle(url)
        return SearchPage(bundle, resource_type=self.resource_type, url=url)
