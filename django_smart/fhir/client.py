"""The FHIR client: FHIR requests to one server with one grant."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from importlib import import_module
from typing import Any, BinaryIO, TypeVar, overload

from django_smart.exceptions import (
    BearerBoundaryError,
    FHIRConflictError,
    FHIRPreconditionFailedError,
    FHIRRequestError,
    FHIRStatusError,
    ForeignPatientError,
    InsufficientScopeError,
    MalformedFHIRResponseError,
    ModelVersionError,
    ResponseTooLargeError,
    SMARTError,
)
from django_smart.fhir.adapters import build_fhirclient, build_fhirpy
from django_smart.fhir.batch import Batch
from django_smart.fhir.bulk import BulkExport, start_export
from django_smart.fhir.compartment import Record, is_shared
from django_smart.fhir.connection import FHIRConnection, refuse_in_event_loop
from django_smart.fhir.guard import RecordGuard
from django_smart.fhir.interactions import (
    FHIR_JSON,
    Interaction,
    as_posted,
    build_create,
    build_delete,
    build_history,
    build_operation,
    build_patch,
    build_read,
    build_search,
    build_update,
)
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import (
    add_version,
    find_request_id,
    limit_chunks,
    parse_place,
    process_bundle_response,
    process_change_response,
    process_delete_response,
    process_read_response,
    process_resource_response,
    process_write_response,
    raise_unless_ok,
    refuse_error,
    resolve_link,
    validate_bundle,
)
from django_smart.fhir.names import iter_mappings
from django_smart.fhir.paging import (
    History,
    Page,
    SearchResult,
    SearchStream,
    iter_pages,
)
from django_smart.fhir.parameters import AnyOf, SearchParams, build_search_query
from django_smart.fhir.record import PatientRecord
from django_smart.fhir.session import FHIRSession
from django_smart.protocol.id_token import FHIR_USER_TYPES
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet, required_letter
from django_smart.protocol.urls import is_within_base

__all__ = ["FHIRClient", "find_missing_scope", "forget_capabilities"]

_T = TypeVar("_T")

Version = str | Mapping[str, Any]
Patch = Sequence[Mapping[str, Any]] | Mapping[str, Any]

# By base URL: when it was read, and the statement.
_capabilities: dict[str, tuple[float, dict[str, Any]]] = {}
_MAX_CAPABILITIES = 64
# Length of a URL that every server and proxy accepts (IIS: 2,048 for the query).
_LONGEST_URL = 2000
_IDS_AT_ONCE = 50
# Statuses of servers that let resources of a type be read, but not found by their id.
_NOT_SEARCHABLE = frozenset({400, 403, 404, 405, 422, 501})
# Where fhir.resources has its classes, by the first two numbers of FHIR's version.
# It has none of R4 itself, which differs from R4B in few types.
_MODEL_PACKAGES = {
    "3.0": "fhir.resources.STU3",
    "4.0": "fhir.resources.R4B",
    "4.3": "fhir.resources.R4B",
    "5.0": "fhir.resources",
}


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

    @cached_property
    def session(self) -> FHIRSession:
        """``requests.Session`` that any library can use with this grant."""
        return FHIRSession(self)

    as_fhirpy = build_fhirpy
    as_fhirclient = build_fhirclient

    @overload
    def read(
        self,
        resource_type: str,
        id: str,
        *,
        summary: str = "",
        elements: Sequence[str] = (),
    ) -> dict[str, Any]: ...

    @overload
    def read(
        self,
        resource_type: str,
        id: str,
        *,
        summary: str = "",
        elements: Sequence[str] = (),
        model: type[_T],
    ) -> _T: ...

    def read(
        self,
        resource_type: str,
        id: str,  # noqa: A002  # FHIR's own name
        *,
        summary: str = "",
        elements: Sequence[str] = (),
        model: type[Any] | None = None,
    ) -> Any:
        """
        Read one resource.

        Args:
            summary: ``_summary``: ``"true"``, ``"text"`` or ``"data"``.
            elements: ``_elements``: names of the requested elements.  The server may
                send more; do not write the result back.
            model: return an instance of this class, such as one from :meth:`get_model`.
        """
        interaction = build_read(resource_type, id, summary=summary, elements=elements)
        resource = self._read(interaction)
        return resource if model is None else self._convert(resource, model)

    def vread(
        self,
        resource_type: str,
        id: str,  # noqa: A002
        version_id: str,
    ) -> dict[str, Any]:
        """Read one version of a resource; ``FHIRGoneError`` if it is a deletion."""
        resource = self._read(build_read(resource_type, id, version_id=version_id))
        meta = resource.get("meta")
        if isinstance(meta, dict) and meta.get("versionId", version_id) != version_id:
            raise MalformedFHIRResponseError(
                f"the vread of {resource_type} returned a different version"
            )
        return resource

    def reread(self, resource: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Read *resource* again if it has changed; otherwise, return it unchanged.

        The read is conditional on ``meta.versionId``, so an unchanged resource is not
        sent.
        """
        interaction = build_read(
            resource.get("resourceType", ""), resource.get("id", ""), unless=resource
        )
        response = self.perform(interaction)
        if response.status_code == 304:
            return resource
        return self._process_read(response, interaction)

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
        return self._write(
            build_create(resource, if_none_exist=if_none_exist, prefer=prefer)
        )

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
        return self._write(
            build_update(resource, where=where, if_match=if_match, prefer=prefer)
        )

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
                resource (FHIRPath Patch).
            if_match, where, prefer: see :meth:`update`.

        Returns:
            See :meth:`create`.
        """
        return self._write(
            build_patch(
                resource_type, id, patch, where=where, if_match=if_match, prefer=prefer
            )
        )

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
            FHIRNotFoundError, FHIRGoneError: it does not exist or was already deleted;
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
        at: datetime | None = None,
        count: int | None = None,
        limit: int | None = None,
    ) -> History:
        """
        Return the versions of a resource, a type or the server, newest first.

        Args:
            since: only versions created at this time or later, an aware datetime.
            at: only versions that were current at this time, an aware datetime.
            count: entries per page.
            limit: maximum number of entries; by default, all are loaded, up to 1,000.

        Raises:
            TooManyResultsError: there are more than 1,000 entries and no *limit*, or
                more than 100 MiB.
        """
        interaction = build_history(resource_type, id, since=since, at=at, count=count)
        what = f"history of {resource_type or 'the server'}"

        def fetch(url: str) -> HTTPResponse:
            return self.perform(interaction, url=url)

        url = self.build_url(interaction.path)
        return History.load(fetch, url=url, what=what, limit=limit)

    def capabilities(self, *, max_age: float = 3600.0) -> dict[str, Any]:
        """
        Read the server's ``CapabilityStatement``.

        All clients of this process share it: do not change it.

        Args:
            max_age: seconds for which an earlier response is reused.
        """
        known = _capabilities.get(self.base_url)
        if known is not None and time.monotonic() - known[0] < max_age:
            return known[1]
        response = self.perform(
            Interaction(name="capabilities", method="GET", path="metadata")
        )
        statement = process_resource_response(response, what="read of the capabilities")
        # Its name in DSTU2 (FHIR-08).
        if statement["resourceType"] not in {"CapabilityStatement", "Conformance"}:
            raise MalformedFHIRResponseError("metadata is not a CapabilityStatement")
        if len(_capabilities) >= _MAX_CAPABILITIES:
            _capabilities.clear()
        _capabilities[self.base_url] = time.monotonic(), statement
        return statement

    def get_model(self, resource_type: str) -> type[Any]:
        """
        Return the class of ``fhir.resources`` for the server's FHIR version.

        The version comes from :meth:`capabilities`.  ``fhir.resources`` has no models
        for R4; its R4B models are used for both.

        Raises:
            FHIRRequestError: there is no class for this version or type.
            ImportError: ``fhir.resources`` is not installed.
        """
        version, package = self._get_version()
        if package is None:
            raise FHIRRequestError(
                f"fhir.resources has no models for FHIR version {version or 'unknown'}."
            )
        try:
            found: type[Any] = import_module(package).get_fhir_model_class(
                resource_type
            )
        except ValueError:
            raise FHIRRequestError(
                f"fhir.resources has no {resource_type} for FHIR {version}."
            ) from None
        return found

    def _get_version(self) -> tuple[str, str | None]:
        """Return the server's FHIR version, and the package with its models."""
        version = str(self.capabilities().get("fhirVersion", ""))
        return version, _MODEL_PACKAGES.get(".".join(version.split(".")[:2]))

    def _convert(self, resource: dict[str, Any], model: type[_T]) -> _T:
        """
        Make a *model* of a resource.

        Args:
            model: a class with pydantic's ``model_validate``, or one that takes the
                dict as its only argument.

        Raises:
            ModelVersionError: *model* refuses the resource, and is one of another FHIR
                than the server's.
            MalformedFHIRResponseError: it refuses the resource for another reason.
        """
        convert: Callable[[dict[str, Any]], _T] = getattr(
            model, "model_validate", model
        )
        try:
            return convert(resource)
        except (ValueError, TypeError, LookupError) as exc:
            reason = type(exc).__name__
        # Outside of the except block: the chain would quote the patient's data.
        kind = resource.get("resourceType", "resource")
        text = f"the {kind} does not match {model.__name__} ({reason})"
        package = model.__module__.rpartition(".")[0]
        if package in _MODEL_PACKAGES.values():
            version, own_package = "", None
            with suppress(SMARTError):
                version, own_package = self._get_version()
            if own_package not in {None, package}:
                its_version = import_module(package).__fhir_version__
                raise ModelVersionError(
                    f"{text} is a model for FHIR {its_version}, but the server "
                    f"uses FHIR {version}: use the model that the client's "
                    "get_model() returns"
                )
        raise MalformedFHIRResponseError(text)

    def get(self, path_or_url: str) -> dict[str, Any]:
        """
        Get the resource at a path below the base URL, or at a URL within the boundary.

        Raises:
            BearerBoundaryError: the URL is outside the boundary; nothing was sent.
            FHIRRequestError: the path or URL is invalid, or under ``patient/`` scopes,
                is not in a form that can be checked.
            ForeignPatientError: under ``patient/`` scopes, also for a URL outside the
                base URL; pages of a Bundle are read by :meth:`iterate_pages`.
        """
        interaction = Interaction(name="get", method="GET", path=path_or_url)
        return process_resource_response(self.perform(interaction), what="GET request")

    def _read(self, interaction: Interaction) -> dict[str, Any]:
        return self._process_read(self.perform(interaction), interaction)

    def _process_read(
        self, response: HTTPResponse, interaction: Interaction
    ) -> dict[str, Any]:
        resource = process_read_response(
            response,
            resource_type=interaction.resource_type,
            id=interaction.id,
        )
        return add_version(resource, response)

    def _write(self, interaction: Interaction) -> dict[str, Any]:
        return process_write_response(
            self.perform(interaction),
            interaction,
            is_within_boundary=self.is_within_boundary,
        )

    def perform(
        self,
        interaction: Interaction,
        *,
        url: str | None = None,
    ) -> HTTPResponse:
        """
        Send *interaction*, or get its continuation at *url*, if the scopes allow it.

        Raises:
            ForeignPatientError: the scopes are for one patient, and the request may go
                beyond that patient's record.
        """
        # Before reading the scopes, which may require a query.
        refuse_in_event_loop()
        self.check_scope(interaction)
        guard = self._build_guard()
        if guard is None:
            return self._perform(interaction, url=url)
        own_url = self.build_url(interaction.path)
        target = own_url if url is None else url
        is_page = url is not None and interaction.name not in {"read", "vread"}
        # The host may be in capitals, and there may be a slash at the end.
        is_own = target == own_url or (not is_page and is_within_base(target, own_url))
        if is_own and is_within_base(own_url, self.base_url):
            interaction, url = guard.prepare(interaction), None
        elif (
            not is_page
            and self.is_within_boundary(target)
            and not is_shared(interaction.resource_type)
            and not guard.record.is_open(interaction.name, interaction.resource_type)
        ):
            raise ForeignPatientError(
                "The same id at another base URL may be another patient's."
            )
        response = self._perform(interaction, url=url)
        return guard.check(interaction, response)

    def _build_guard(self) -> RecordGuard | None:
        """Return what keeps to the record, if scopes are for one patient."""
        scopes, rules = self._tokens.scopes or ScopeSet(), self._record_rules
        if rules is None or not (rules.always or scopes.are_for_patient):
            return None
        record = Record(
            patient_id=self.patient_id, base_url=self.base_url, scopes=scopes
        )
        return RecordGuard(record=record, fetch=self._perform, rules=rules)

    def _perform(
        self, interaction: Interaction, *, url: str | None = None
    ) -> HTTPResponse:
        request_id = str(uuid.uuid4())
        headers = {
            "Accept": FHIR_JSON,
            "X-Request-Id": request_id,
            **interaction.headers,
        }
        body = interaction.body
        if body is not None:
            headers["Content-Type"] = interaction.media_type
            body = body if isinstance(body, bytes) else dump_json(body)
        request = HTTPRequest(
            method=interaction.method,
            url=self.build_url(interaction.path) if url is None else url,
            headers=headers,
            body=body,
        )
        response = self._follow(
            request,
            interaction=interaction.name,
            resource_type=interaction.resource_type,
        )
        if find_request_id(response.headers):
            return response
        # For error messages; the server's own id is preferred.
        return replace(
            response, headers={**response.headers, "x-request-id": request_id}
        )

    def check_scope(self, interaction: Interaction) -> None:
        """
        Check that the granted scopes allow *interaction*.

        Raises:
            InsufficientScopeError: they do not, and ``SMART_SCOPE_CHECK`` is
                ``"raise"``.
        """
        scopes = self._tokens.scopes
        if scopes is None or self._observer is None:
            return
        missing = find_missing_scope(
            scopes, interaction.name, interaction.resource_type
        )
        if missing:
            self._observer.on_missing_scope(missing)

    @overload
    def search(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        limit: int | None = None,
        prefer: str = "",
        compartment: str = "",
        by_post: bool = False,
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
        limit: int | None = None,
        prefer: str = "",
        compartment: str = "",
        by_post: bool = False,
        **keywords: Any,
    ) -> SearchResult[dict[str, Any]]: ...

    def search(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        limit: int | None = None,
        **keywords: Any,
    ) -> SearchResult[Any]:
        """
        Search, and load all matches.

        Args:
            resource_type: ``"*"`` for resources of every type, usually with ``_type``.
            params: FHIR parameter names and values, as a mapping or pairs, which come
                before the keywords: ``[("_sort:desc", "date")]``.
            limit: maximum number of matches; by default, all are loaded, up to 1,000.
            model: return matches as instances of this class, such as one from
                :meth:`get_model`.  A string is sent as FHIR's search parameter
                ``model`` instead.
            prefer: handling of unknown parameters: ``"strict"`` for an error,
                ``"lenient"`` to ignore them.
            compartment: restrict the search to a compartment, such as
                ``"Patient/123"``.
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

    @overload
    def iterate(
        self,
        resource_type: str,
        params: SearchParams | None = None,
        /,
        *,
        prefer: str = "",
        compartment: str = "",
        by_post: bool = False,
        model: type[_T],
        **keywords: Any,
    ) -> SearchStream[_T]: ...

    @overload
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
    ) -> SearchStream[dict[str, Any]]: ...

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
    ) -> SearchStream[Any]:
        """
        Search, and read the matches page by page, for results of any size.

        Nothing is sent until you iterate, and errors are raised while iterating.  Do
        not use it in templates: it is always true and has no length.

        Args:
            params, prefer, compartment, by_post, keywords: see :meth:`search`.
        """
        convert: Callable[[dict[str, Any]], Any] | None = None
        if isinstance(keywords.get("model"), type):
            convert = partial(self._convert, model=keywords.pop("model"))
        query = build_search_query(params, keywords)
        interaction = build_search(
            resource_type, query, prefer=prefer, compartment=compartment
        )
        url = self.build_url(interaction.path)
        is_posted = by_post or len(url) > _LONGEST_URL

        def fetch(page_url: str) -> HTTPResponse:
            if page_url == url and is_posted:
                return self.perform(as_posted(interaction))
            return self.perform(interaction, url=page_url)

        return SearchStream(
            fetch, url=url, resource_type=resource_type, convert=convert
        )

    def iterate_pages(self, bundle: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """
        Yield *bundle* and the pages that its ``next`` links lead to.

        For the results of :meth:`operation` and :meth:`get`, and for a history of any
        length: ``fhir.iterate_pages(fhir.get("Observation/_history"))``.

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
        url = resolve_link(f"{self.base_url}/", str((link and link.get("url")) or ""))

        def fetch_page(page_url: str) -> Page:
            if page_url == url:
                return Page(first, url=url)
            # Without a path: only get() is about what the URL says.
            interaction = Interaction(name="get", method="GET", path="")
            response = self.perform(interaction, url=page_url)
            page = process_bundle_response(response, type=type_, what=what)
            return Page(page, url=page_url)

        for page in iter_pages(fetch_page, url, what=what):
            yield page.bundle

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
        interaction = build_operation(
            name, resource_type, id, query=query, body=body, prefer=prefer
        )
        response = self.perform(interaction)
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

    def batch(self) -> Batch:
        """Collect interactions that succeed or fail independently."""
        return Batch("batch", self)

    def transaction(self) -> Batch:
        """Collect interactions that all succeed or all fail."""
        return Batch("transaction", self)

    def resolve(
        self,
        reference: str | Mapping[str, Any],
        *,
        within: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """
        Return the target of a reference.

        Args:
            reference: a ``Reference`` of a resource, or its text: relative
                (``Patient/123``), absolute, with a version (``…/_history/2``), to a
                contained resource (``#org``) or within a Bundle (``urn:uuid:…``).
            within: the resource that contains the reference, its Bundle, or a list of
                resources, such as a search's ``included``; targets in it are not
                requested.

        Raises:
            BearerBoundaryError: the reference leads to another server; nothing was
                sent.
            FHIRRequestError: the reference has no target that can be resolved, or its
                document comes from another server and does not contain the target.
            ForeignPatientError: under ``patient/`` scopes, also for a reference to
                another base URL, unless resources of its type belong to no patient.
        """
        text = _get_reference(reference)
        found = _find_within(text, within, base_url=self.base_url)
        if found is not None:
            return found
        url = self.build_url(text)
        if not self.is_within_boundary(url):
            raise BearerBoundaryError("the reference points to another server")
        resource_type, resource_id, version_id = _parse_target(url)
        interaction = build_read(resource_type, resource_id, version_id=version_id)
        response = self.perform(interaction, url=url)
        return self._process_read(response, interaction)

    def resolve_many(
        self,
        references: Iterable[str | Mapping[str, Any]],
        *,
        within: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    ) -> list[dict[str, Any]]:
        """
        Return the targets of *references*, with one search per type where possible.

        Args:
            references, within: see :meth:`resolve`.

        Returns:
            The targets, in the order of the references.

        Raises:
            BearerBoundaryError, FHIRRequestError, ForeignPatientError: see
                :meth:`resolve`.
        """
        texts = [_get_reference(each) for each in references]
        found: dict[str, dict[str, Any]] = {}
        ids: dict[str, dict[str, str]] = {}
        for text in texts:
            target = _find_within(text, within, base_url=self.base_url)
            if target is not None:
                found[text] = target
                continue
            url = self.build_url(text)
            if self.is_within_boundary(url):
                resource_type, resource_id, _ = _parse_target(url)
                # The same id at another base is another resource.
                if url == self.build_url(f"{resource_type}/{resource_id}"):
                    ids.setdefault(resource_type, {})[resource_id] = text
        for resource_type, by_id in ids.items():
            wanted = list(by_id) if len(by_id) > 1 else []
            for start in range(0, len(wanted), _IDS_AT_ONCE):
                some = wanted[start : start + _IDS_AT_ONCE]
                for resource in self._find_by_id(resource_type, some):
                    if (resource_id := resource.get("id", "")) in by_id:
                        found[by_id[resource_id]] = resource
        # The only one of its type, with a version, at another base, or not found.
        for text in texts:
            if text not in found:
                found[text] = self.resolve(text, within=within)
        return [found[text] for text in texts]

    def _find_by_id(self, resource_type: str, ids: list[str]) -> list[dict[str, Any]]:
        """Search for resources; without a result where they may only be read."""
        query = {"_id": AnyOf(*ids), "_count": len(ids)}
        try:
            # With a limit, because a server may ignore _id.
            return self.search(resource_type, query, limit=len(ids))
        except FHIRStatusError as error:
            if error.status_code not in _NOT_SEARCHABLE:
                raise
        except (ForeignPatientError, InsufficientScopeError):
            pass  # no scope allows it, or no parameter selects the patient
        except MalformedFHIRResponseError:
            pass  # such as an error with status 200
        return []

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

    def upload(
        self,
        /,
        content: bytes | BinaryIO,
        content_type: str,
        *,
        title: str = "",
        **elements: Any,
    ) -> dict[str, Any]:
        """
        Create a ``DocumentReference`` that contains a file.

        Args:
            content: bytes or an open file.
            content_type: media type, such as ``"application/pdf"``.
            title: of the document.
            elements: other elements of the resource: ``type``, ``category``, ``date``,
                ….  By default, ``subject`` is the patient in context and ``status`` is
                ``current``.

        Returns:
            See :meth:`create`.
        """
        data = content if isinstance(content, bytes) else content.read()
        attachment = {
            "contentType": content_type,
            "data": base64.b64encode(data).decode(),
            "size": len(data),
        }
        if title:
            attachment["title"] = title
        resource = {
            "resourceType": "DocumentReference",
            "status": "current",
            **elements,
            "content": [{"attachment": attachment}],
        }
        if "subject" not in resource and self.patient_id:
            resource["subject"] = {"reference": f"Patient/{self.patient_id}"}
        return self.create(resource)

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
        scope: str = "",
        *,
        types: Sequence[str] = (),
        since: datetime | None = None,
        by_post: bool = False,
        **parameters: object,
    ) -> BulkExport:
        """
        Start a bulk export, for backend services with ``system/`` scopes.

        Args:
            scope: ``""`` for the whole server, ``"Patient"`` for all patients,
                ``"Group/<id>"`` for the patients of a group.
            types: resource types; all by default.
            since: only resources that changed since then.
            by_post: send the parameters in a body; always used with ``patient``.
            parameters: other parameters, such as ``_typeFilter``,
                ``allowPartialManifests=True``, or ``patient=["Patient/1", …]``.

        Returns:
            The export.  Iterate it when the server is ready, or store its ``state``.
            With ``patient``, iterating raises ``MalformedFHIRResponseError`` if the
            server reports that it has ignored this parameter.

        Raises:
            FHIRRequestError: the scope or a parameter is invalid; nothing was sent.
            FHIRStatusError: the server refused.
            MalformedFHIRResponseError: the response does not name a URL to poll.
            BearerBoundaryError: the export has started, but the URL to poll is outside
                the boundary; the error's ``export`` can abandon it.
            ForeignPatientError: under ``patient/`` scopes; nothing was sent.
        """
        # Before reading the scopes, which may require a query.
        refuse_in_event_loop()
        guard = self._build_guard()
        if guard is not None and not guard.record.is_open("operation", ""):
            raise ForeignPatientError("An export is not about a single patient.")
        return start_export(
            self, scope, types=types, since=since, by_post=by_post, **parameters
        )

    def resume_export(self, state: Mapping[str, Any]) -> BulkExport:
        """
        Resume an export at the position that *state* stores.

        Raises:
            FHIRRequestError: *state* is not the state of an export.
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
        Write a ``Binary`` or an attachment to *file*, in chunks.

        Under ``patient/`` scopes, it is not checked whose content it is: pass only URLs
        from a resource that you have read.

        Args:
            source: an ``Attachment`` of a resource, or a path or URL such as
                ``Binary/123``.
            accept: requested media type; by default, the attachment's, or any.
            max_size: maximum number of bytes to write.

        Returns:
            The media type of the content.

        Raises:
            BearerBoundaryError: the content is at another server; nothing was sent.
            FHIRRequestError: the attachment has no data and no valid URL.
            FHIRStatusError: the server refused; nothing was written.
            ResponseTooLargeError: the content is larger than *max_size*.
            TransportError: the response is incomplete; *file* contains a part of it.
        """
        content, media_type = _read_attachment(source, accept)
        if isinstance(content, bytes):
            if len(content) > max_size:
                raise ResponseTooLargeError("the attachment is larger than the limit")
            file.write(content)
            return media_type
        place = parse_place(content)
        interaction = Interaction(
            name="read",
            method="GET",
            path=self.build_url(content),
            resource_type=place[0] if place else "",
        )
        self.check_scope(interaction)
        with self.stream(
            "GET",
            interaction.path,
            # The content itself, not a resource that wraps it.
            headers={"Accept": media_type or "*/*"},
            interaction=interaction.name,
            resource_type=interaction.resource_type,
        ) as stream:
            raise_unless_ok(stream, what="download")
            for chunk in limit_chunks(stream.chunks, max_size):
                file.write(chunk)
            return stream.head.media_type


def _read_attachment(
    source: str | Mapping[str, Any], accept: str = ""
) -> tuple[bytes | str, str]:
    """
    Read an ``Attachment``, or the URL of content.

    Returns:
        The content, or its URL; and its media type, empty if unknown.

    Raises:
        FHIRRequestError: it has no valid data and no URL.

    Spec: FHIR R4, data type Attachment; "RESTful API", Binary.
    """
    if isinstance(source, str):
        return source, accept
    media_type = accept or str(source.get("contentType") or "")
    data, url = source.get("data"), source.get("url")
    if isinstance(data, str) and (data or not url):
        try:
            content = base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise FHIRRequestError(
                "The attachment's data is not valid base64."
            ) from None
        return content, media_type
    if not isinstance(url, str) or not url:
        raise FHIRRequestError("The attachment has neither data nor a URL.")
    return url, media_type


def forget_capabilities(base_url: str) -> None:
    """Make :meth:`FHIRClient.capabilities` read the server's statement again."""
    _capabilities.pop(base_url.removesuffix("/"), None)


def find_missing_scope(scopes: ScopeSet, interaction: str, resource_type: str) -> str:
    """
    Return the scope that *interaction* needs and *scopes* lack, or "".

    A scope with parameters counts, because only the resources show which ones it
    allows.  The server decides about interactions without a scope, such as most
    operations.

    Args:
        resource_type: empty for the whole server, for which any type's scope suffices.

    Spec: SMART App Launch 2.2, "Scopes for requesting FHIR Resources".
    """
    letter = required_letter(interaction)
    if not letter:
        return ""
    granted = scopes.resource_scopes
    names = {"*", resource_type.lower()}
    for scope in granted:
        if letter in scope.letters and (
            not resource_type or scope.type.lower() in names
        ):
            return ""
    is_person = interaction == "read" and resource_type in FHIR_USER_TYPES
    if is_person and "fhirUser" in scopes:
        # Possibly the signed-in person, whom this scope lets an app read (IDT-07).
        return ""
    level = granted[0].level if granted else "patient"
    return f"{level}/{resource_type or '*'}.{letter}"


def _get_reference(reference: object) -> str:
    """
    Return the text of a reference or a ``Reference``.

    Raises:
        FHIRRequestError: it has none, for example with only an identifier.
    """
    text = reference.get("reference") if isinstance(reference, Mapping) else reference
    if not isinstance(text, str) or not text:
        raise FHIRRequestError("The reference has no target that can be resolved.")
    return text


def _parse_target(url: str) -> tuple[str, str, str | None]:
    """
    Return the resource type, id and version (or ``None``) in *url*.

    Raises:
        FHIRRequestError: it names no resource.
    """
    place = parse_place(url)
    if place is None or "?" in url:
        raise FHIRRequestError("The reference does not name a resource with an id.")
    return place[0], place[1], place[2] or None


def _find_within(
    reference: str,
    within: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    base_url: str,
) -> dict[str, Any] | None:
    """
    Look for the target in the given resources and Bundles.

    Args:
        within: the resource that contains the reference, its Bundle, or a list with
            these and other resources of the server, such as a search's ``included``.
            Only one of them may have a target for a reference with ``#``; the same
            resource may be in the list twice.
        base_url: base of relative references, unless a Bundle in *within* shows where
            the resource with the reference comes from.

    Raises:
        FHIRRequestError: it could only be there, and is not.

    Spec: FHIR R4, "References", "Bundle", Resolving references in Bundles.
    """
    resources = [within] if isinstance(within, Mapping) else list(within)
    bundles = [each for each in resources if each.get("resourceType") == "Bundle"]
    sources = [each for each in resources if each.get("resourceType") != "Bundle"]
    if reference.startswith("#"):
        # The same id is something else in each resource.
        targets = [
            each
            for source in sources
            for each in (source, *iter_mappings(source.get("contained")))
            if reference[1:] == ("" if each is source else each.get("id"))
        ]
        if targets and all(each == targets[0] for each in targets):
            return dict(targets[0])
        raise FHIRRequestError(
            "The reference is to a contained resource: pass the resource that "
            "contains it, and no other with the same contained id, as within=."
        )
    if not isinstance(within, Mapping):
        bundles.append({"entry": [{"resource": each} for each in sources]})
    known: dict[str, list[Mapping[str, Any]]] = {}
    for source in sources:
        known.setdefault(_get_key(source), []).append(source)
    bases = set()
    for bundle in bundles:
        base = _find_base(bundle, known, base_url)
        bases.add(base if bundle.get("type") == "document" else base_url)
        found = _find_entry(reference, bundle, base, base_url=base_url)
        if found is not None:
            return found
    if bases - {base_url} and ":" not in reference:
        raise FHIRRequestError(
            "The reference is to a resource of another server, which the document "
            "does not contain."
        )
    if reference.lower().startswith("urn:"):
        raise FHIRRequestError(
            "The reference is to an entry of a Bundle: pass the Bundle as within=."
        )
    return None


def _find_base(
    bundle: Mapping[str, Any],
    known: Mapping[str, Sequence[Mapping[str, Any]]],
    base_url: str,
) -> str:
    """
    Return the base of a relative reference in *bundle*.

    It is that of the resource with the reference, which is one of *known*, or the only
    one of a document of another server; empty if that has several.
    """
    found = set()
    for full_url, resource in _get_entries(bundle):
        # Without a URL, an entry shows no base.
        base = _get_base(full_url, resource)
        if base and resource in known.get(_get_key(resource), ()):
            return base
        found |= {base} - {""}
    if bundle.get("type") != "document" or not found or base_url in found:
        return base_url
    return found.pop() if len(found) == 1 else ""


def _find_entry(
    reference: str, bundle: Mapping[str, Any], base: str, *, base_url: str
) -> dict[str, Any] | None:
    """Look in *bundle*, in which a relative reference is below *base*."""
    entries = list(_get_entries(bundle))
    target, _, version = reference.partition("/_history/")
    if "://" not in target and not target.lower().startswith("urn:"):
        target = f"{base}/{target.removeprefix('/')}"
    matches = [
        resource
        for full_url, resource in entries
        if (full_url or f"{base_url}/{_get_key(resource)}") == target
        and version in {"", _get_meta(resource).get("versionId")}
    ]
    # Of several versions, the last one is meant.
    return max(
        matches,
        key=lambda each: str(_get_meta(each).get("lastUpdated", "")),
        default=None,
    )


def _get_entries(bundle: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in iter_mappings(bundle.get("entry")):
        resource = entry.get("resource")
        if isinstance(resource, dict):
            yield str(entry.get("fullUrl", "")), resource


def _get_base(full_url: str, resource: Mapping[str, Any]) -> str:
    """Return the FHIR base URL of *resource*, or "" if its URL does not show it."""
    base, _, id_ = full_url.rpartition(f"/{resource.get('resourceType')}/")
    return base if id_ == resource.get("id", id_) else ""


def _get_key(resource: Mapping[str, Any]) -> str:
    return f"{resource.get('resourceType')}/{resource.get('id')}"


def _get_meta(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = resource.get("meta")
    return meta if isinstance(meta, Mapping) else {}
