"""The FHIR client: FHIR requests to one server with one grant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from typing import Any

from django_smart.exceptions import (
    FHIRConflictError,
    FHIRPreconditionFailedError,
    FHIRRequestError,
    ForeignPatientError,
    MalformedFHIRResponseError,
)
from django_smart.fhir.adapters import build_fhirclient, build_fhirpy
from django_smart.fhir.attachments import download
from django_smart.fhir.batch import Batch
from django_smart.fhir.bulk import BulkExport, start_export
from django_smart.fhir.connection import FHIRConnection, refuse_in_event_loop
from django_smart.fhir.interactions import (
    Interaction,
    Patch,
    Version,
    build_create,
    build_delete,
    build_history,
    build_operation,
    build_patch,
    build_read,
    build_update,
)
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import (
    process_change_response,
    process_delete_response,
    process_resource_response,
    process_write_response,
    refuse_error,
)
from django_smart.fhir.paging import History, SearchResult, SearchStream
from django_smart.fhir.parameters import SearchParams, build_search_query
from django_smart.fhir.references import resolve
from django_smart.fhir.searching import PatientRecord, iterate, iterate_pages
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import ScopeSet

__all__ = ["FHIRClient"]


class FHIRClient(FHIRConnection):
    """
    FHIR REST client for one server; resources are plain dicts.

    In addition to the errors that they document, all methods raise:

    - ``FHIRRequestError`` for an invalid type, id or version, or for a call in an
      event loop (``fhir_sync_in_async``); nothing was sent;
    - ``InsufficientScopeError`` for a missing scope, if ``SMART_SCOPE_CHECK`` is
      ``"raise"``; nothing was sent;
    - ``ForeignPatientError`` under ``patient/`` scopes, if the request was not sent or
      the response was discarded because it may concern another patient; ``request``,
      ``stream``, ``download`` and ``session`` do not check this;
    - ``BearerBoundaryError`` for a URL to which the token may not be sent;
    - ``FHIRStatusError`` if the server refuses, as a subclass for each status;
    - ``MalformedFHIRResponseError`` for a response that is not FHIR JSON, or is a
      different resource;
    - ``TransportError`` if there is no usable response.

    Threads may share it, except for ``session``.

    Spec: SMART App Launch 2.2, "Access FHIR API" (FHIR-01 to FHIR-08); FHIR R4,
    "RESTful API".
    """

    as_fhirpy = build_fhirpy
    as_fhirclient = build_fhirclient
    download = download
    iterate_pages = iterate_pages
    resolve = resolve

    def read(self, resource_type: str, id: str) -> dict[str, Any]:  # noqa: A002
        """Read one resource."""
        return self.perform_read(build_read(resource_type, id))

    def vread(
        self,
        resource_type: str,
        id: str,  # noqa: A002
        version_id: str,
    ) -> dict[str, Any]:
        """Read one version of a resource; ``FHIRNotFoundError`` if it is a deletion."""
        return self.perform_read(build_read(resource_type, id, version_id=version_id))

    def create(
        self,
        resource: Mapping[str, Any],
        *,
        if_none_exist: SearchParams | None = None,
        prefer: str = "",
    ) -> dict[str, Any]:
        """
        Create a resource.

        Args:
            if_none_exist: search parameters; if one resource matches, it is returned
                and nothing is created.
            prefer: response to request: ``"representation"``, ``"minimal"`` or
                ``"OperationOutcome"``; empty for the server's default.

        Returns:
            The resource as stored; if the server sent none, only the members
            ``resourceType``, ``id`` and, if known, ``meta.versionId``.

        Raises:
            FHIRPreconditionFailedError: several resources match *if_none_exist*.
            BearerBoundaryError: the response points to another server.
            MalformedFHIRResponseError: the response does not say which resource was
                stored, or only that the request was accepted (202), or reports an error
                with a status of success.
        """
        return self._write(build_create(resource, if_none_exist=if_none_exist), prefer)

    def update(
        self,
        resource: Mapping[str, Any],
        *,
        if_match: Version | None = None,
        where: SearchParams | None = None,
        prefer: str = "",
    ) -> dict[str, Any]:
        """
        Replace the resource that has the id of *resource*.

        Args:
            if_match: the version that your changes are based on: a ``meta.versionId``,
                an ETag or the resource that was read.  If someone else has changed it
                since, the update is refused.
            where: search parameters that find the resource, instead of its id.
            prefer: see :meth:`create`.

        Returns:
            See :meth:`create`.

        Raises:
            FHIRPreconditionFailedError: the resource has changed; read it again.
            FHIRConflictError: the same, from servers that use this status.
        """
        interaction = build_update(resource, where=where, if_match=if_match)
        return self._write(interaction, prefer)

    def patch(
        self,
        resource_type: str,
        id: str | None,  # noqa: A002
        patch: Patch,
        *,
        if_match: Version | None = None,
        where: SearchParams | None = None,
        prefer: str = "",
    ) -> dict[str, Any]:
        """
        Change parts of a resource.

        Args:
            id: the resource's id, or ``None`` with *where*.
            patch: a list of operations (JSON Patch, RFC 6902), or a ``Parameters``
                resource (FHIRPath Patch), which needs ``user/`` or ``system/`` scopes.
            if_match, where, prefer: see :meth:`update`.

        Returns:
            See :meth:`create`.
        """
        interaction = build_patch(
            resource_type, id, patch, where=where, if_match=if_match
        )
        return self._write(interaction, prefer)

    def delete(
        self,
        resource_type: str,
        id: str | None = None,  # noqa: A002
        *,
        where: SearchParams | None = None,
        if_match: Version | None = None,
    ) -> None:
        """
        Delete a resource.

        Args:
            where: search parameters that find the resource, instead of its id.  If
                several match, some servers delete all of them and others refuse.

        Raises:
            FHIRNotFoundError: it does not exist or was already deleted;
                other servers report success.
            MalformedFHIRResponseError: an error with a status of success.
        """
        interaction = build_delete(resource_type, id, where=where, if_match=if_match)
        response = self.perform(interaction)
        process_delete_response(response, what=f"delete of {resource_type}")

    def history(
        self,
        resource_type: str | None = None,
        id: str | None = None,  # noqa: A002
        *,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> History:
        """
        Return the versions of a resource, a type or the server, newest first.

        Args:
            since: only versions created at this time or later, an aware datetime.
            limit: maximum number of entries; by default, all are loaded, up to 1,000.

        Raises:
            TooManyResultsError: there are more than 1,000 entries and no *limit*, or
                more than 100 MiB.
        """
        interaction = build_history(resource_type, id, since=since)
        what = f"history of {resource_type or 'the server'}"

        def fetch(url: str) -> HTTPResponse:
            return self.perform(interaction, url=url)

        url = self.build_url(interaction.path)
        return History.load(fetch, url=url, what=what, limit=limit)

    def _write(self, interaction: Interaction, prefer: str) -> dict[str, Any]:
        interaction = interaction.preferring(prefer)
        return process_write_response(
            self.perform(interaction),
            interaction,
            is_within_boundary=self.is_within_boundary,
        )

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
        Search, and load all matches.

        Args:
            params: FHIR parameter names and values, as a mapping or pairs, which come
                before the keywords: ``[("_sort:desc", "date")]``.
            limit: maximum number of matches; by default, all are loaded, up to 1,000.
            prefer: handling of unknown parameters: ``"strict"`` for an error,
                ``"lenient"`` to ignore them.
            by_post: send the search by POST to ``_search``, so that no URL contains the
                search values.  Long searches always use POST.
            keywords: search parameters.  Write ``_`` for a hyphen in the name; ``__``
                adds a modifier (``name__exact``), a comparison (``birthdate__ge``), the
                type of a reference (``subject__Patient``) or a chained parameter
                (``patient__family``).  With a list, all values must match; with
                ``AnyOf`` of ``django_smart.fhir``, at least one must.

        Returns:
            A list of the resources.

        Raises:
            FHIRRequestError: the resource type is invalid, or a parameter has no value.
            TooManyResultsError: there are more than 1,000 matches and no *limit*, or
                more than 100 MiB.
            FHIRStatusError, MalformedFHIRResponseError, TransportError: see
                :class:`FHIRClient`; for any of the pages.
            BearerBoundaryError: a ``next`` link leads outside the boundary.
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
        """
        Search, and read the matches page by page, for results of any size.

        Nothing is sent until you iterate, and errors are raised while iterating.  Do
        not use it in templates: it is always true and has no length.

        Args:
            params, prefer, by_post, keywords: see :meth:`search`.
        """
        return iterate(
            self,
            resource_type,
            build_search_query(params, keywords),
            prefer=prefer,
            by_post=by_post,
        )

    def operation(
        self,
        /,
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
        Call an operation on the server, a type or a resource.

        ``fhir.operation("everything", "Patient", "123", _count=50)``,
        ``fhir.operation("lastn", "Observation", patient="123", max=3)``,
        ``fhir.operation("translate", "ConceptMap", body=parameters)``.

        Args:
            name: with or without its ``$``.
            params, keywords: parameters in the URL of a GET; see :meth:`search`.
            body: sends a POST, for operations that change something or have complex
                parameters: a ``Parameters``, or the single resource of the operation.
            prefer: see :meth:`create`.

        Returns:
            The returned resource; :func:`get_output` reads its parts.  If there is
            none, ``Parameters``, which contain the ``Content-Location`` of an
            asynchronous operation (202).  To read all pages of a Bundle, use
            :meth:`iterate_pages`.

        Raises:
            MalformedFHIRResponseError: also an ``OperationOutcome`` with an error, but
                not of ``validate``.
        """
        query = build_search_query(params, keywords)
        interaction = build_operation(name, resource_type, id, query=query, body=body)
        response = self.perform(interaction.preferring(prefer))
        answer = None
        # What comes with 202 is about the request: nothing was done yet.
        if response.status_code != 202:
            what = f"operation {name}"
            answer = process_change_response(response, what=what)
            # Its result is an outcome, also if the resource is not valid.
            if name.removeprefix("$") != "validate":
                refuse_error(response, answer, what=what)
        if answer is None:
            answer = {"resourceType": "Parameters"}
            if location := response.headers.get("content-location"):
                value = {"name": "Content-Location", "valueUrl": location}
                answer["parameter"] = [value]
        return answer

    def capabilities(self) -> dict[str, Any]:
        """Read the server's ``CapabilityStatement``, which rarely changes."""
        response = self.perform(
            Interaction(name="capabilities", method="GET", path="metadata")
        )
        statement = process_resource_response(response, what="read of the capabilities")
        # Its name in DSTU2 (FHIR-08).
        if statement["resourceType"] not in {"CapabilityStatement", "Conformance"}:
            raise MalformedFHIRResponseError("metadata is not a CapabilityStatement")
        return statement

    def batch(self) -> Batch:
        """Collect interactions that succeed or fail independently."""
        return Batch("batch", self)

    def transaction(self) -> Batch:
        """Collect interactions that all succeed or all fail."""
        return Batch("transaction", self)

    def modify(
        self,
        resource_type: str,
        id: str,  # noqa: A002
        change: Callable[[dict[str, Any]], Mapping[str, Any] | None],
        *,
        tries: int = 3,
        prefer: str = "",
    ) -> dict[str, Any]:
        """
        Read a resource, change it and write it back, without losing others' changes.

        The update is sent with ``If-Match``.  If someone else changed the resource in
        the meantime, everything is repeated.

        Args:
            change: called with the resource, which it can change in place; or it
                returns the resource to write.  It is called again for each attempt.  If
                nothing changed, nothing is written.
            tries: maximum number of attempts.
            prefer: see :meth:`create`.

        Returns:
            See :meth:`create`.

        Raises:
            FHIRRequestError: the server does not send versions.
            FHIRConflictError, FHIRPreconditionFailedError: someone else was faster each
                time.
        """
        while True:
            tries -= 1
            read = self.read(resource_type, id)
            copy = deepcopy(read)
            returned = change(copy)
            changed = copy if returned is None else returned
            # Not with ==, which considers 7.10 and 7.1 equal.
            if dump_json(changed) == dump_json(read):
                return read
            try:
                return self.update(changed, if_match=read, prefer=prefer)
            except (FHIRConflictError, FHIRPreconditionFailedError):
                if tries <= 0:
                    raise

    def patient(self, id: str | None = None) -> PatientRecord:  # noqa: A002
        """
        Return a client for the record of one patient.

        Args:
            id: of the patient; by default, the patient in context.

        Raises:
            ForeignPatientError: the scopes are only for the patient in context, and
                *id* is another patient.
            FHIRRequestError: *id* is invalid, or there is no patient in context.
        """
        patient_id = self.patient_id if id is None else id
        if patient_id is None:
            raise FHIRRequestError("There is no patient in context; pass one.")
        scopes = self._tokens.scopes or ScopeSet()
        levels = {scope.level for scope in scopes.resource_scopes}
        # All access is limited to the patient in context (SCOPE-12).
        if patient_id != self.patient_id and levels == {"patient"}:
            raise ForeignPatientError(
                "The access token is for another patient's record."
            )
        return PatientRecord(self, patient_id)

    def export(
        self,
        /,
        scope: str = "",
        *,
        types: Sequence[str] = (),
        since: datetime | None = None,
        **parameters: object,
    ) -> BulkExport:
        """
        Start a bulk export, for backend services with ``system/`` scopes.

        Args:
            scope: ``""`` for the whole server, ``"Patient"`` for all patients,
                ``"Group/<id>"`` for the patients of a group.
            types: resource types; all by default.
            since: only resources that changed since then.
            parameters: other parameters, such as ``_typeFilter`` or
                ``patient=["Patient/1", …]``.

        Returns:
            The export.  Iterate it when the server is ready, or store its ``state``.

        Raises:
            FHIRRequestError: the scope or a parameter is invalid; nothing was sent.
            FHIRStatusError: the server refused.
            MalformedFHIRResponseError: the response does not name a URL to poll.
            ForeignPatientError: under ``patient/`` scopes; nothing was sent.
        """
        # Before reading the scopes, which may require a query.
        refuse_in_event_loop()
        guard = self._build_guard()
        if guard is not None and not guard.record.is_open("operation", ""):
            raise ForeignPatientError("An export is not about a single patient.")
        return start_export(self, scope, types=types, since=since, **parameters)

    def resume_export(self, state: Mapping[str, Any]) -> BulkExport:
        """
        Resume an export at the position that *state* stores.

        Raises:
            FHIRRequestError: *state* is not the state of an export.
        """
        return BulkExport(self, state)
