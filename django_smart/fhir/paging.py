"""Searches and histories: streamed one page at a time, or loaded completely."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NoReturn, TypeVar

from django_smart.exceptions import (
    FHIRRequestError,
    MalformedFHIRResponseError,
    TooManyResultsError,
)
from django_smart.fhir.messages import (
    get_issues,
    process_bundle_response,
    reports_error,
    resolve_link,
)
from django_smart.protocol.messages import HTTPResponse

__all__ = [
    "History",
    "Page",
    "SearchPage",
    "SearchResult",
    "SearchStream",
    "iter_pages",
    "refuse_stream",
]

_P = TypeVar("_P", bound="Page")

# Most matches that are loaded without limit=.
_MAX_RESULTS = 1_000
# Limits of one result, so that no server can make it endless.  The seconds only count
# the server's time: callers may take as long as they like with each page.
_MAX_PAGES = 10_000
_MAX_SECONDS = 3600
# Pages in a row without a new match.
_MAX_FRUITLESS_PAGES = 50
_COUNT_ALONE = re.compile(r"[?&](_summary=count|_count=0)(&|$)")
_NO_TOTAL = re.compile(rf"{_COUNT_ALONE.pattern}|[?&]_total=estimate(&|$)")
# The same for results that are loaded completely, while somebody waits.
_WHOLE = {"max_pages": 1_000, "max_seconds": 300}
# Of their pages together: few matches can come with very much else.
_MAX_MIB = 100
# Resources to remember for finding duplicates.  They occur if data changes between
# two pages, so neighboring pages suffice and memory use stays small.
_REMEMBERED = 2_000
# Issue types that say that a search stopped early: FHIR's group "transient", and
# "too-costly".  Some servers send them as warnings.
_STOPPED = (
    *("transient", "lock-error", "no-store", "exception", "timeout", "incomplete"),
    *("throttled", "too-costly"),
)


class Page:
    """
    One page as received; ``entry`` and ``link`` of its Bundle are always lists.

    Attributes:
        bundle: the ``Bundle`` as received.
        matches: the items of the result on this page.
        new: those of them that no earlier page had.
        size: bytes in which it came.
    """

    __slots__ = ("_url", "bundle", "matches", "new", "size")

    def __init__(self, bundle: dict[str, Any], *, url: str, size: int = 0) -> None:
        self.bundle = bundle
        self.size = size
        self.matches: list[dict[str, Any]] = bundle["entry"]
        self.new = self.matches
        self._url = url

    @property
    def total(self) -> int | None:
        """Matches on all pages according to the server, if it says."""
        total = self.bundle.get("total")
        is_number = isinstance(total, int) and not isinstance(total, bool)
        return total if is_number else None

    def get_key(self, match: dict[str, Any]) -> str:
        """The version that an entry holds; empty if it does not say."""
        resource = match.get("resource")
        meta = resource.get("meta") if isinstance(resource, dict) else None
        version = meta.get("versionId") if isinstance(meta, dict) else None
        key = _get_key(resource) if version and isinstance(resource, dict) else ""
        return key and f"{key}/{version}"

    @property
    def issues(self) -> list[dict[str, object]]:
        """The issues of the server's outcomes on this page."""
        resources = (entry.get("resource") for entry in self.bundle["entry"])
        return [issue for each in resources for issue in get_issues(each)]

    @property
    def is_cut_off(self) -> bool:
        """Return whether it announces another page without naming it."""
        has_next = any(link.get("relation") == "next" for link in self.bundle["link"])
        return has_next and self.next_url is None

    @property
    def next_url(self) -> str | None:
        """Absolute URL of the next page; the boundary is checked later."""
        for link in self.bundle["link"]:
            target = link.get("url")
            if link.get("relation") == "next" and isinstance(target, str) and target:
                return resolve_link(self._url, target)
        return None


def iter_pages(
    fetch_page: Callable[[str], _P],
    first_url: str,
    *,
    what: str,
    max_pages: int = _MAX_PAGES,
    max_seconds: float = _MAX_SECONDS,
) -> Iterator[_P]:
    """
    Yield the page at *first_url* and those that its ``next`` links lead to.

    Args:
        fetch_page: gets a page by its absolute URL, within the boundary.

    Raises:
        MalformedFHIRResponseError: the pages form a loop, too many of them have no new
            match, or there are too many; or none has a match, although the server
            reports some, or an error.
    """
    is_odd = False
    issues: list[dict[str, object]] = []
    urls: set[bytes] = set()
    seen = _Seen()
    fruitless_pages = 0
    seconds = 0.0
    url: str | None = first_url
    while url is not None:
        digest = hashlib.sha256(url.encode()).digest()
        if digest in urls:
            raise MalformedFHIRResponseError(f"the pages of the {what} form a loop")
        if len(urls) >= max_pages or seconds >= max_seconds:
            raise MalformedFHIRResponseError(
                f"the {what} does not end within {max_pages} pages and {max_seconds} s"
            )
        if fruitless_pages >= _MAX_FRUITLESS_PAGES:
            raise MalformedFHIRResponseError(
                f"the {what} returned {fruitless_pages} pages in a row without a new "
                "match"
            )
        urls.add(digest)
        started = monotonic()
        page = fetch_page(url)
        seconds += monotonic() - started
        page.new = list(seen.keep_new(page.matches, page.get_key))
        if page.new:
            fruitless_pages = 0
        else:
            fruitless_pages += 1
            # It reports matches that it neither contains nor links to.
            is_odd = is_odd or page.is_cut_off or (page.total or 0) > len(page.matches)
            issues = issues or page.issues
        url = page.next_url
        yield page
        # Before the next page is built, which then replaces it in memory.
        del page
    is_empty = fruitless_pages == len(urls)
    if is_empty and is_odd and not _COUNT_ALONE.search(first_url):
        raise MalformedFHIRResponseError(
            f"the {what} returned no matches, but reported an error or a possible "
            "error",
            issues=issues,
        )


class _Results(list[dict[str, Any]]):
    """
    A result that was loaded completely; using it sends nothing.

    Attributes:
        total: number of matches according to the server, or those received if more.
        is_complete: false if ``limit=`` cut off matches, or if the server left some out
            of a page or named no URL for the next one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.is_complete = True
        self._received = 0

    def first(self) -> dict[str, Any] | None:
        """Return the first match, or ``None``."""
        return self[0] if self else None

    def _load(self, pages: Iterator[_P], *, limit: int | None, what: str) -> None:
        """
        Load *pages* until there are no more, or *limit* is reached.

        Raises:
            TooManyResultsError: there are too many, and no limit; or they are too
                large.
        """
        if limit is not None and limit < 1:
            raise FHIRRequestError("A limit must be at least 1.")
        most = _MAX_RESULTS if limit is None else limit
        size = self._received = 0
        for page in pages:
            size += page.size
            self._received += len(page.matches)
            if size > _MAX_MIB * 1024**2:
                raise TooManyResultsError(
                    f"The {what} has more than {_MAX_MIB} MiB: read it with iterate(), "
                    "iterate_everything() or iterate_pages()."
                )
            self.total = max(self.total, page.total or 0)
            self.is_complete = self.is_complete and not page.is_cut_off
            self._add(page)
            if limit is None and len(self) > most:
                raise TooManyResultsError(
                    f"The {what} has more than {most} matches: pass limit=, or read "
                    "them with iterate(), iterate_everything() or iterate_pages()."
                )
            if limit is not None and len(self) >= limit:
                if len(self) > limit or page.next_url is not None:
                    self.is_complete = False
                break
        self.total = max(self.total, len(self))
        del self[most:]

    def _add(self, page: Any) -> None:
        self += page.new


class History(_Results):
    """
    Versions, newest first.

    A list of entries: ``resource`` is the version and is absent from a deletion;
    ``request`` (``method``, ``url``) and ``response`` describe what created it.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def __repr__(self) -> str:
        return f"<History: {self._what}>"

    @classmethod
    def load(
        cls,
        fetch: Callable[[str], HTTPResponse],
        *,
        url: str,
        what: str,
        limit: int | None = None,
    ) -> History:
        """*fetch* gets a page by its absolute URL, within the boundary."""
        history = cls(what)

        def fetch_page(url: str) -> Page:
            response = fetch(url)
            bundle = process_bundle_response(response, type="history", what=what)
            return Page(bundle, url=url, size=len(response.body))

        pages = iter_pages(fetch_page, url, what=what, **_WHOLE)
        history._load(pages, limit=limit, what=what)
        return history

    def versions(self) -> list[dict[str, Any]]:
        """Return only the resources, without deletions."""
        resources = (entry.get("resource") for entry in self)
        return [each for each in resources if isinstance(each, dict)]


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

    def __init__(
        self, bundle: dict[str, Any], *, resource_type: str, url: str, size: int = 0
    ) -> None:
        """*resource_type* is empty to take everything that was sent."""
        super().__init__(bundle, url=url, size=size)
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
            is_other = its_type != resource_type
            is_outcome = its_type == "OperationOutcome"
            if mode == "outcome" or (is_outcome and resource_type != its_type):
                self.outcomes.append(resource)
            elif resource_type and (mode == "include" or (mode is None and is_other)):
                self.included.append(resource)
            else:
                self.resources.append(resource)

    def __repr__(self) -> str:
        return f"<SearchPage: {len(self.resources)} resources>"

    def get_key(self, match: dict[str, Any]) -> str:
        """The resource, of which another version may come on a later page."""
        return _get_key(match)

    @property
    def is_cut_off(self) -> bool:
        """As for any page; also if there are errors, or entries without a resource."""
        read = (*self.resources, *self.included, *self.outcomes)
        return (
            super().is_cut_off
            or len(self.bundle["entry"]) > len(read)
            or any(reports_error(each, codes=_STOPPED) for each in self.outcomes)
        )


class _Seen:
    """Finds resources that an earlier page already contained."""

    def __init__(self) -> None:
        self._recent: set[str] = set()
        self._older: set[str] = set()

    def keep_new(
        self,
        items: list[dict[str, Any]],
        get_key: Callable[[dict[str, Any]], str],
    ) -> Iterator[dict[str, Any]]:
        """Yield each item with a key once, unless its duplicate comes much later."""
        for item in items:
            key = get_key(item)
            if key and (key in self._recent or key in self._older):
                continue
            self._recent.add(key)
            if len(self._recent) >= _REMEMBERED:
                self._recent, self._older = set(), self._recent
            yield item


def _get_key(resource: dict[str, Any]) -> str:
    """Type and id; empty without an id."""
    id_ = resource.get("id")
    return f"{resource.get('resourceType')}/{id_}" if id_ is not None else ""


class SearchResult(_Results):
    """
    The matching resources: a list, complete when ``search()`` returns it.

    Attributes:
        total: number of matches according to the server, or those received if more.
        is_complete: false if ``limit=`` cut off matches, or if the server reported an
            error or a larger total, left some out of a page or named no URL for the
            next one.
        included: resources from ``_include`` and ``_revinclude``, each once.
        outcomes: ``OperationOutcome`` resources in the result (FHIR-07); one is added
            if the total is larger.
        resource_type: the searched type; empty for a complete record.
    """

    def __init__(self, resource_type: str) -> None:
        super().__init__()
        self.resource_type = resource_type
        self.included: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []
        self._inclusions = _Seen()

    def __repr__(self) -> str:
        return f"<SearchResult: {self.resource_type}>"

    def _compare_total(self) -> None:
        """Say so if the server reports more matches than it has sent."""
        if self.is_complete and self.total > self._received:
            text = f"The server reported {self.total} matches and sent {self._received}"
            issue = {"severity": "warning", "code": "incomplete", "diagnostics": text}
            self.outcomes.append({"resourceType": "OperationOutcome", "issue": [issue]})
            self.is_complete = False

    def _add(self, page: SearchPage) -> None:
        super()._add(page)
        self.included += self._inclusions.keep_new(page.included, _get_key)
        self.outcomes += page.outcomes


def refuse_stream() -> NoReturn:
    """Refuse what only a complete result has."""
    raise FHIRRequestError(
        "A stream can only be iterated, and only in Python. For a template, for len() "
        "and for slices, use search(), which loads the complete result."
    )


class SearchStream:
    """
    Matching resources, with one page in memory at a time.

    Iterating yields them one by one and follows ``next`` links; iterating again sends
    the search again.  Errors are raised while iterating.

    Raises:
        BearerBoundaryError: a ``next`` link leads outside the boundary.
        FHIRStatusError: the server refused a page.
        MalformedFHIRResponseError: not a searchset, or endless pages; after the last
            match, if the server left out others (see ``is_complete`` of
            :class:`SearchResult`).
    """

    def __init__(
        self,
        fetch: Callable[[str], HTTPResponse],
        *,
        url: str,
        resource_type: str,
        what: str = "",
    ) -> None:
        """*fetch* gets a page by its absolute URL, within the boundary."""
        self._fetch = fetch
        self._url = url
        self._what = what or f"search of {resource_type}"
        self._is_opening = False
        self.resource_type = resource_type

    def __repr__(self) -> str:
        return f"<SearchStream: {self.resource_type}>"

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        # Without it, Django's "length" would be 0.
        if self._is_opening:
            # list() and tuple() ask for a length hint before the first item.
            self._is_opening = False
            raise TypeError("the length of a stream is unknown")
        refuse_stream()

    def __getitem__(self, index: object) -> dict[str, Any]:
        refuse_stream()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._is_opening = True
        return self._iterate()

    def pages(self) -> Iterator[SearchPage]:
        """
        Yield the pages, with included resources and the server's outcomes.

        Raises:
            MalformedFHIRResponseError: no page had a match, but the server reports with
                status 200 that the search failed or has matches; otherwise as when
                iterating.
        """
        is_cut_off = False
        issues: list[dict[str, object]] = []
        for page in iter_pages(self._fetch_page, self._url, what=self._what):
            if page.is_cut_off:
                is_cut_off = True
                issues = issues or page.issues
            yield page
            # Before the next page is built, which then replaces it in memory.
            del page
        if is_cut_off:
            raise MalformedFHIRResponseError(
                f"the {self._what} is incomplete", issues=issues
            )

    def load(self, limit: int | None = None) -> SearchResult:
        """Load everything, like ``FHIRClient.search``."""
        result = SearchResult(self.resource_type)
        pages = iter_pages(self._fetch_page, self._url, what=self._what, **_WHOLE)
        result._load(pages, limit=limit, what=self._what)
        # Everything of a record has no total that all servers agree on.
        if self.resource_type and not _NO_TOTAL.search(self._url):
            result._compare_total()
        return result

    def _iterate(self) -> Iterator[dict[str, Any]]:
        self._is_opening = False
        for page in self.pages():
            yield from page.new
            del page

    def _fetch_page(self, url: str) -> SearchPage:
        response = self._fetch(url)
        bundle = process_bundle_response(response, type="searchset", what=self._what)
        return SearchPage(
            bundle,
            resource_type=self.resource_type,
            url=url,
            size=len(response.body),
        )
