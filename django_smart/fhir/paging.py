"""Bundles with several pages: streamed one at a time, or loaded completely."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any, Generic, NoReturn, TypeVar

from django_smart.exceptions import (
    FHIRRequestError,
    MalformedFHIRResponseError,
    StreamedResultError,
    TooManyResultsError,
)
from django_smart.fhir.messages import resolve_link

__all__ = ["MAX_RESULTS", "WHOLE", "History", "Page", "Results", "Stream", "iter_pages"]

_T = TypeVar("_T")
_P = TypeVar("_P", bound="Page")

MAX_RESULTS = 1_000
"Most matches that are loaded without ``limit=``."

# Limits of one result, so that no server can make it endless.  The seconds only count
# the server's time: callers may take as long as they like with each page.
_MAX_PAGES = 10_000
_MAX_SECONDS = 3600
# Pages in a row without a match.
_MAX_FRUITLESS_PAGES = 50
_MAX_FRUITLESS_SECONDS = 60
_COUNT_ALONE = re.compile(r"[?&](_summary=count|_count=0)(&|$)")
WHOLE = {"max_pages": 1_000, "max_seconds": 300}
"The same limit for results that are loaded completely, while somebody waits."


class Page:
    """
    One page as received; ``entry`` and ``link`` of its Bundle are always lists.

    Attributes:
        bundle: the ``Bundle`` as received.
        matches: the items of the result on this page.
    """

    __slots__ = ("_url", "bundle", "matches")

    def __init__(self, bundle: dict[str, Any], *, url: str) -> None:
        self.bundle = bundle
        self.matches: list[dict[str, Any]] = bundle["entry"]
        self._url = url

    @property
    def total(self) -> int | None:
        """Matches on all pages according to the server, if it says."""
        total = self.bundle.get("total")
        is_number = isinstance(total, int) and not isinstance(total, bool)
        return total if is_number else None

    @property
    def is_cut_off(self) -> bool:
        """Return whether it announces another page without naming it."""
        has_next = any(link.get("relation") == "next" for link in self.bundle["link"])
        return has_next and self.next_url is None

    @property
    def is_odd(self) -> bool:
        """Return whether it reports matches that it neither contains nor links to."""
        return self.is_cut_off or (self.total or 0) > len(self.matches)

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
        MalformedFHIRResponseError: the pages form a loop, too many of them have no
            match, or there are too many; or none has a match, although the server
            reports some, or an error.
    """
    is_odd = False
    seen: set[bytes] = set()
    fruitless_pages = 0
    seconds = fruitless_seconds = 0.0
    url: str | None = first_url
    while url is not None:
        digest = hashlib.sha256(url.encode()).digest()
        if digest in seen:
            raise MalformedFHIRResponseError(f"the pages of the {what} form a loop")
        if len(seen) >= max_pages or seconds >= max_seconds:
            raise MalformedFHIRResponseError(
                f"the {what} does not end within {max_pages} pages and {max_seconds} s"
            )
        if (
            fruitless_pages >= _MAX_FRUITLESS_PAGES
            or fruitless_seconds >= _MAX_FRUITLESS_SECONDS
        ):
            raise MalformedFHIRResponseError(
                f"the {what} returned {fruitless_pages} pages in a row without a match"
            )
        seen.add(digest)
        started = monotonic()
        page = fetch_page(url)
        taken = monotonic() - started
        seconds += taken
        if page.matches:
            fruitless_pages, fruitless_seconds = 0, 0.0
        else:
            fruitless_pages += 1
            fruitless_seconds += taken
            is_odd = is_odd or page.is_odd
        url = page.next_url
        yield page
        # Before the next page is built, which then replaces it in memory.
        del page
    is_empty = fruitless_pages == len(seen)
    if is_empty and is_odd and not _COUNT_ALONE.search(first_url):
        raise MalformedFHIRResponseError(
            f"the {what} returned no matches, but reported an error or a possible error"
        )


class Stream(Generic[_T]):
    """
    Items that are read while iterating, so their number is unknown.

    It is true, and ``len()`` raises: without ``__len__``, Django's ``length`` would be
    0.  Its subclasses are not iterators: each iteration of a search sends it again, and
    that of a bulk export resumes at its state.
    """

    _is_opening = False

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        if self._is_opening:
            # list() and tuple() ask for a length hint before the first item.
            self._is_opening = False
            raise TypeError("the length of a stream is unknown")
        self._refuse()

    def __getitem__(self, index: object) -> _T:
        self._refuse()

    def __iter__(self) -> Iterator[_T]:
        self._is_opening = True
        return self._begin()

    def _begin(self) -> Iterator[_T]:
        self._is_opening = False
        yield from self._iterate()

    def _iterate(self) -> Iterator[_T]:
        raise NotImplementedError

    def _refuse(self) -> NoReturn:
        raise StreamedResultError(
            "A stream can only be iterated, and only in Python. For a "
            "template, for len() and for slices, use search(), which loads "
            "the complete result."
        )


class Results(list[_T]):
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

    def first(self) -> _T | None:
        """Return the first match, or ``None``."""
        return self[0] if self else None

    def _load(
        self,
        pages: Iterator[_P],
        *,
        limit: int | None,
        what: str,
        read: Callable[[_P], Iterable[_T]],
    ) -> None:
        """
        Load *pages* until there are no more, or *limit* is reached.

        Raises:
            TooManyResultsError: there are too many, and no limit.
        """
        if limit is not None and limit < 1:
            raise FHIRRequestError("A limit must be at least 1.")
        most = MAX_RESULTS if limit is None else limit
        for page in pages:
            self.total = max(self.total, page.total or 0)
            self.is_complete = self.is_complete and not page.is_cut_off
            self.extend(read(page))
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


class History(Results[dict[str, Any]]):
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
        fetch_bundle: Callable[[str], dict[str, Any]],
        *,
        url: str,
        what: str,
        limit: int | None = None,
    ) -> History:
        """*fetch_bundle* gets a page by its absolute URL, within the boundary."""
        history = cls(what)
        pages = iter_pages(
            lambda url: Page(fetch_bundle(url), url=url), url, what=what, **WHOLE
        )
        history._load(pages, limit=limit, what=what, read=lambda page: page.matches)
        return history

    def versions(self) -> list[dict[str, Any]]:
        """Return only the resources, without deletions."""
        resources = (entry.get("resource") for entry in self)
        return [each for each in resources if isinstance(each, dict)]
