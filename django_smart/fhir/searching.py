"""Searches of a server or of one patient's record, read page by page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from django_smart.exceptions import FHIRRequestError
from django_smart.fhir.compartment import Record, find_patient_parameter
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import (
    Interaction,
    as_posted,
    build_operation,
    build_read,
    build_search,
    parse_query,
    write_query,
)
from django_smart.fhir.messages import (
    process_bundle_response,
    resolve_link,
    validate_bundle,
    validate_id,
)
from django_smart.fhir.paging import Page, SearchResult, SearchStream, iter_pages
from django_smart.fhir.parameters import SearchParams, build_search_query
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet

__all__ = ["PatientRecord", "iterate", "iterate_pages"]

# Length of a URL that every server and proxy accepts (IIS: 2,048 for the query).
_LONGEST_URL = 2000


def iterate(
    client: FHIRConnection,
    resource_type: str,
    query: str,
    *,
    prefer: str = "",
    by_post: bool = False,
) -> SearchStream:
    """Build the stream of :meth:`FHIRClient.iterate`; *query* is encoded."""
    interaction = build_search(resource_type, query)
    interaction = interaction.preferring(prefer)
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

    For the results of :meth:`operation`.

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
        interaction = Interaction(name="get", method="GET", path="")
        response = client.perform(interaction, url=page_url)
        page = process_bundle_response(response, type=type_, what=what)
        return Page(page, url=page_url)

    for page in iter_pages(fetch_page, url, what=what):
        yield page.bundle


class PatientRecord:
    """
    One patient's record: all methods are limited to this patient.

    Attributes:
        id: the patient's id.
        reference: the patient's reference, such as ``Patient/123``, for resources that
            you write.
    """

    def __init__(self, client: FHIRConnection, patient_id: str) -> None:
        self._client = client
        self.id = validate_id(patient_id)
        self.reference = f"Patient/{self.id}"

    def __repr__(self) -> str:
        return f"<PatientRecord at {self._client!r}>"

    def read(self) -> dict[str, Any]:
        """Read the ``Patient``."""
        return self._client.perform_read(build_read("Patient", self.id))

    def search(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        limit: int | None = None,
        **keywords: Any,
    ) -> SearchResult:
        """
        Search in this record: ``record.search("Observation", code="4548-4")``.

        Args:
            params, limit, keywords: see ``FHIRClient.search``; the patient is added.

        Raises:
            ForeignPatientError: a parameter names another patient; nothing was sent.
            FHIRRequestError: see ``FHIRClient.search``; or resources of this type do
                not belong to a patient.
        """
        return self.iterate(resource_type, params, **keywords).load(limit)

    def iterate(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        prefer: str = "",
        by_post: bool = False,
        **keywords: Any,
    ) -> SearchStream:
        """Like :meth:`search`, one page at a time; see ``FHIRClient.iterate``."""
        find_patient_parameter(resource_type)
        pairs = parse_query(build_search_query(params, keywords))
        base_url = self._client.base_url
        record = Record(patient_id=self.id, base_url=base_url, scopes=ScopeSet())
        pairs = record.select(resource_type, pairs)
        return iterate(
            self._client,
            resource_type,
            write_query(pairs),
            prefer=prefer,
            by_post=by_post,
        )

    def everything(self, /, *, limit: int | None = None, **params: Any) -> SearchResult:
        """
        Load the whole record, ``Patient/$everything``, from all pages.

        Args:
            limit: maximum number of resources; by default, all are loaded, up to 1,000.
            params: parameters such as ``_since``, ``_type``, ``_count``, ``start`` and
                ``end``.

        Raises:
            TooManyResultsError: there are more than 1,000 resources and no *limit*, or
                more than 100 MiB.
        """
        return self.iterate_everything(**params).load(limit)

    def iterate_everything(self, /, **params: Any) -> SearchStream:
        """Like :meth:`everything`, one page at a time."""
        interaction = build_operation(
            "everything", "Patient", self.id, query=build_search_query(None, params)
        )

        def fetch(url: str) -> HTTPResponse:
            return self._client.perform(interaction, url=url)

        url = self._client.build_url(interaction.path)
        return SearchStream(
            fetch, url=url, resource_type="", what="operation everything"
        )
