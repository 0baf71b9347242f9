"""Searches in the record of one patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django_smart.exceptions import ForeignPatientError
from django_smart.fhir.compartment import find_patient_parameter
from django_smart.fhir.interactions import build_operation, build_read
from django_smart.fhir.messages import validate_id
from django_smart.fhir.paging import SearchResult, SearchStream
from django_smart.fhir.parameters import (
    Reference,
    SearchParams,
    build_search_query,
)
from django_smart.fhir.perform import Performer
from django_smart.fhir.searching import iterate
from django_smart.protocol.messages import HTTPResponse

__all__ = ["PatientRecord"]


class PatientRecord:
    """
    One patient's record: all methods are limited to this patient.

    Attributes:
        id: the patient's id.
        reference: the patient's reference, such as ``Patient/123``, for resources that
            you write.
    """

    def __init__(self, client: Performer, patient_id: str) -> None:
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
    ) -> SearchResult[dict[str, Any]]:
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
    ) -> SearchStream[dict[str, Any]]:
        """Like :meth:`search`, one page at a time; see ``FHIRClient.iterate``."""
        pairs = self._select(resource_type, params, keywords)
        return iterate(
            self._client,
            resource_type,
            pairs,
            keywords,
            prefer=prefer,
            compartment=compartment,
            by_post=by_post,
        )

    def everything(
        self, /, *, limit: int | None = None, **params: Any
    ) -> SearchResult[dict[str, Any]]:
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

    def iterate_everything(self, /, **params: Any) -> SearchStream[dict[str, Any]]:
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

    def _select(
        self,
        resource_type: str,
        params: SearchParams | None,
        keywords: dict[str, Any],
    ) -> list[tuple[str, object]]:
        """Put the patient before *params*, and take them out of *keywords*."""
        name = find_patient_parameter(resource_type)
        pairs = list(params.items() if isinstance(params, Mapping) else params or ())
        for given, value in (*pairs, *keywords.items()):
            self._check(name, given, value)
        # An id alone means a patient in "patient"; in the others it could be anything.
        own = self.id if name in {"patient", "_id"} else self.reference
        keywords.pop(name, None)
        return [(name, own), *(pair for pair in pairs if pair[0] != name)]

    def _check(self, name: str, given: str, value: object) -> None:
        """Refuse a parameter that would search for another patient."""
        # FHIR is case-sensitive here; not every server is.
        bare = given.partition(":")[0].partition("__")[0].removesuffix("_").lower()
        # FHIR has the last two side by side.
        if bare in {name, "patient", "subject"}:
            base_url = self._client.base_url
            mine = {self.id, self.reference, f"{base_url}/{self.reference}"}
            is_one = isinstance(value, str | Reference) and bare == given
            if not is_one or str(value) not in mine:
                raise ForeignPatientError(
                    f'"{given}" selects a patient, but this record already has one.'
                )
