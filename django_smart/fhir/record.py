"""Searches in the record of one patient."""

from __future__ import annotations

from typing import Any

from django_smart.fhir.compartment import Record, find_patient_parameter
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import build_operation, build_read
from django_smart.fhir.messages import validate_id
from django_smart.fhir.paging import SearchResult, SearchStream
from django_smart.fhir.parameters import SearchParams, build_search_query
from django_smart.fhir.requests import parse_query, write_query
from django_smart.fhir.searching import iterate
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet

__all__ = ["PatientRecord"]


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
        compartment: str = "",
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
            compartment=compartment,
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
