"""The FHIR client: everything that an app asks a server for with one grant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, overload

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRRequestError,
    ForeignPatientError,
    ResponseTooLargeError,
)
from django_smart.fhir.adapters import build_fhirclient, build_fhirpy
from django_smart.fhir.attachments import read_attachment, write_stream
from django_smart.fhir.batch import Batch
from django_smart.fhir.bulk import BulkExport, start_export
from django_smart.fhir.compartment import PatientRecord
from django_smart.fhir.interactions import (
    Interaction,
    as_posted,
    build_operation,
    build_read,
    build_search,
)
from django_smart.fhir.messages import (
    process_bundle_response,
    process_change_response,
    process_search_response,
)
from django_smart.fhir.parameters import SearchParams, build_search_query
from django_smart.fhir.references import find_within, get_reference, parse_target
from django_smart.fhir.rest import RESTConnection
from django_smart.fhir.scope_check import is_for_one_patient
from django_smart.fhir.search import SearchResult
from django_smart.fhir.session import FHIRSession
from django_smart.fhir.typed import convert_resource

if TYPE_CHECKING:
    from fhirclient.client import FHIRClient as SMARTClient
    from fhirpy import SyncFHIRClient

__all__ = ["FHIRClient"]

_T = TypeVar("_T")

# Characters of a URL that every server and proxy takes (IIS: 2,048 for the query).
_LONGEST_URL = 2000


class FHIRClient(RESTConnection):
    """
    FHIR REST at one server, on plain dicts.

    May be used by several threads, apart from ``session``.

    Spec: SMART App Launch 2.2, "Access FHIR API" (FHIR-01 to FHIR-08); FHIR R4,
    "RESTful API".
    """

    @cached_property
    def session(self) -> FHIRSession:
        """``requests.Session`` that any library can use with this grant."""
        return FHIRSession(self)

    def as_fhirpy(self) -> SyncFHIRClient:
        """
        A ``fhirpy.SyncFHIRClient`` that uses this grant.

        Raises:
            ImportError: ``fhirpy`` is not installed.
        """
        return build_fhirpy(self)

    def as_fhirclient(self) -> SMARTClient:
        """
        A ``fhirclient.client.FHIRClient`` that uses this grant.

        Raises:
            ImportError: ``fhirclient`` is not installed.
        """
        return build_fhirclient(self)

    @overload
    def search(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        prefer: str = "",
        model: type[_T],
        **keywords: Any,
    ) -> SearchResult[_T]: ...

    @overload
    def search(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        prefer: str = "",
        **keywords: Any,
    ) -> SearchResult[dict[str, Any]]: ...

    def search(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        prefer: str = "",
        **keywords: Any,
    ) -> SearchResult[Any]:
        """
        Search; nothing is sent until the result is used.

        By GET, or by POST to ``_search`` where the URL would be too long for some
        servers.

        Args:
            params: names exactly as FHIR has them, as a mapping or pairs, before the
                keywords: ``[("_sort:desc", "date")]``.
            model: a class that the matches are made instances of, such as one of
                ``fhir.resources``.  Text is the search parameter of this name.
            prefer: what the server does with a parameter it does not know: ``"strict"``
                for an error, ``"lenient"`` to search without it.
            keywords: ``_`` for a hyphen within the name, and after ``__`` a modifier
                (``name__exact``), a comparison (``birthdate__ge``), the type of a
                reference (``subject__Patient``) or a parameter of what it leads to
                (``patient__family``).  A list repeats the parameter, for "and";
                ``AnyOf`` of ``django_smart.fhir`` is "or".

        Raises:
            FHIRRequestError: not a resource type, or a parameter without a value.
        """
        model = keywords.get("model")
        if isinstance(model, type):
            del keywords["model"]
        query = build_search_query(params, keywords)
        interaction = build_search(resource_type, query, prefer=prefer)
        url = self.build_url(interaction.path)

        def fetch_bundle(page_url: str) -> dict[str, Any]:
            if page_url == url and len(url) > _LONGEST_URL:
                response = self.perform(as_posted(interaction))
            else:
                response = self.perform(interaction, url=page_url)
            return process_search_response(response, resource_type=resource_type)

        return SearchResult(
            fetch_bundle,
            url=url,
            resource_type=resource_type,
            convert=partial(convert_resource, model=model)
            if isinstance(model, type)
            else None,
        )

    def operation(
        self,
        name: str,
        resource_type: str | None = None,
        id: str | None = None,  # noqa: A002
        params: SearchParams | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        prefer: str = "",
        **keywords: Any,
    ) -> dict[str, Any]:
        """
        Call an operation: on the server, a type, or a resource.

        ``fhir.operation("everything", "Patient", "123", _count=50)``,
        ``fhir.operation("lastn", "Observation", patient="123", max=3)``,
        ``fhir.operation("translate", "ConceptMap", body=parameters)``.

        Args:
            name: with or without its ``$``.
            params, keywords: sent in the URL of a GET, as for :meth:`search`.
            body: sent by POST, as operations need it that change something or take more
                than simple values: a ``Parameters``, or the only resource they take.
            prefer: as for :meth:`create`.

        Returns:
            The resource that came; ``Parameters`` without content if none did.  The
            further pages of a Bundle are what :meth:`get` makes of its ``next`` links.

        Raises:
            FHIRRequestError, FHIRStatusError, MalformedFHIRResponseError,
            TransportError: as for :meth:`read`.
        """
        query = build_search_query(params, keywords)
        interaction = build_operation(
            name, resource_type, id, query=query, body=body, prefer=prefer
        )
        response = self.perform(interaction)
        what = f"operation {name}"
        answer = process_change_response(response, what=what)
        return {"resourceType": "Parameters"} if answer is None else answer

    def batch(self) -> Batch:
        """Collect interactions that succeed or fail each for itself."""
        return self._build_batch("batch")

    def transaction(self) -> Batch:
        """Collect interactions that happen together, or not at all."""
        return self._build_batch("transaction")

    def _build_batch(self, kind: Literal["batch", "transaction"]) -> Batch:
        def send(interaction: Interaction) -> dict[str, Any]:
            return process_bundle_response(
                self.perform(interaction), type=f"{kind}-response", what=kind
            )

        return Batch(
            kind,
            send=send,
            check=self.check_scope,
            is_within_boundary=self.is_within_boundary,
        )

    def resolve(
        self,
        reference: str | Mapping[str, Any],
        *,
        within: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """
        Get what a reference leads to.

        Args:
            reference: a ``Reference`` as it stands in a resource, or its text: relative
                (``Patient/123``), absolute, with a version (``…/_history/2``), to a
                contained resource (``#org``) or within a Bundle (``urn:uuid:…``).
            within: the resource that the reference stands in, its Bundle, or both:
                what is there is not asked for.

        Raises:
            BearerBoundaryError: it leads to another server; nothing was sent.
            FHIRRequestError: it has no target that could be looked up.
            FHIRStatusError, MalformedFHIRResponseError, TransportError: as for
                :meth:`read`.
        """
        text = get_reference(reference)
        found = find_within(text, within, base_url=self.base_url)
        if found is not None:
            return found
        url = self.build_url(text)
        if not self.is_within_boundary(url):
            raise BearerBoundaryError("the reference leads to another server")
        resource_type, resource_id, version_id = parse_target(url)
        interaction = build_read(resource_type, resource_id, version_id=version_id)
        response = self.perform(interaction, url=url)
        return self._process_read(response, interaction)

    def patient(self, id: str | None = None) -> PatientRecord:  # noqa: A002
        """
        Keep to the record of one patient.

        Args:
            id: of the patient; by default the one in context.

        Raises:
            ForeignPatientError: the scopes are for the patient in context alone, and
                *id* is another one's.
            FHIRRequestError: not an id, or there is no patient in context.
        """
        patient_id = self.patient_id if id is None else id
        if patient_id is None:
            raise FHIRRequestError("There is no patient in context; name one.")
        scopes = self._get_scopes() if self._get_scopes is not None else None
        if patient_id != self.patient_id and scopes and is_for_one_patient(scopes):
            raise ForeignPatientError("The access is to another patient's record.")
        return PatientRecord(self, patient_id)

    def export(
        self,
        scope: str = "",
        *,
        types: Sequence[str] = (),
        since: datetime | None = None,
        **parameters: object,
    ) -> BulkExport:
        """
        Begin a bulk export; for backend services, with ``system/`` scopes.

        Args:
            scope: ``""`` for all that the server has, ``"Patient"`` for all patients,
                ``"Group/<id>"`` for those of a group.
            types: of resources; all by default.
            since: only what was changed since then.
            parameters: further ones, such as ``_typeFilter``.

        Returns:
            To be iterated, once the server is ready; its ``state`` can be kept.

        Raises:
            FHIRRequestError: not a usable scope or parameter; nothing was sent.
            FHIRStatusError: the server refused.
            MalformedFHIRResponseError: it did not tell where to ask.
        """
        return start_export(self, scope, types=types, since=since, **parameters)

    def resume_export(self, state: Mapping[str, Any]) -> BulkExport:
        """
        Go on with an export, as far as *state* says that it was read.

        Raises:
            FHIRRequestError: *state* is not that of an export.
        """
        return BulkExport(self, state)

    def download(
        self,
        source: str | Mapping[str, Any],
        file: BinaryIO,
        *,
        accept: str = "",
        max_size: int = 1024**3,
    ) -> str:
        """
        Write a ``Binary`` or an attachment to *file*, piece by piece.

        Args:
            source: an ``Attachment`` as it stands in a resource, or a path or URL such
                as ``Binary/123``.
            accept: media type wanted; by default that of the attachment, else any.
            max_size: bytes that are written at most.

        Returns:
            The media type of what was written.

        Raises:
            BearerBoundaryError: it is at another server; nothing was sent.
            FHIRRequestError: the attachment has neither data nor a usable URL.
            FHIRStatusError: the server's refusal; nothing was written.
            ResponseTooLargeError: larger than *max_size*.
            TransportError: no whole answer; what was written is a part.
        """
        attachment = read_attachment(source, accept)
        if attachment.data is not None:
            if len(attachment.data) > max_size:
                raise ResponseTooLargeError("the attachment is larger than allowed")
            file.write(attachment.data)
            return attachment.media_type
        url = self.build_url(attachment.url)
        interaction = attachment.build_interaction()
        self.check_scope(interaction)
        with self.stream(
            interaction.method,
            url,
            headers=interaction.headers,
            interaction=interaction.name,
            resource_type=interaction.resource_type,
        ) as stream:
            return write_stream(stream, file, max_size=max_size)
