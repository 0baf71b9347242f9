"""Reading and changing resources, and their history."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, overload

from django_smart.exceptions import MalformedFHIRResponseError
from django_smart.fhir.answers import add_version, process_write_response
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import (
    FHIR_JSON,
    Interaction,
    build_create,
    build_delete,
    build_history,
    build_patch,
    build_read,
    build_update,
    dump_json,
)
from django_smart.fhir.messages import (
    find_request_id,
    process_bundle_response,
    process_delete_response,
    process_read_response,
    process_resource_response,
)
from django_smart.fhir.paging import History
from django_smart.fhir.parameters import SearchParams
from django_smart.fhir.scope_check import find_missing_scope
from django_smart.fhir.typed import convert_resource
from django_smart.protocol.messages import HTTPRequest, HTTPResponse

__all__ = ["RESTConnection"]

_T = TypeVar("_T")

Version = str | Mapping[str, Any]
Patch = Sequence[Mapping[str, Any]] | Mapping[str, Any]

# By base URL: when it was read, and what came.
_capabilities: dict[str, tuple[float, dict[str, Any]]] = {}
_MAX_CAPABILITIES = 64


class RESTConnection(FHIRConnection):
    """
    The interactions with single resources.

    All of them raise, beside what their own text says:

    - ``FHIRRequestError`` for a type, id or version that is not FHIR's, and
      ``InsufficientScopeError`` for a scope that was not granted, where the site wants
      that: nothing was sent;
    - ``FHIRStatusError`` for the server's refusal, by a subclass for each status;
    - ``MalformedFHIRResponseError`` for an answer that is not FHIR JSON, or is another
      resource;
    - ``TransportError`` if no usable answer came.
    """

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
            elements: ``_elements``: names of the only elements wanted.  The server may
                send more; do not write back what came.
            model: a class that the resource is made an instance of, such as one of
                ``fhir.resources``.
        """
        interaction = build_read(resource_type, id, summary=summary, elements=elements)
        resource = self._read(interaction)
        return resource if model is None else convert_resource(resource, model)

    def vread(
        self,
        resource_type: str,
        id: str,  # noqa: A002
        version_id: str,
    ) -> dict[str, Any]:
        """Read one version of a resource (``FHIRGoneError`` for that of a deletion)."""
        resource = self._read(build_read(resource_type, id, version_id=version_id))
        meta = resource.get("meta")
        if isinstance(meta, dict) and meta.get("versionId", version_id) != version_id:
            raise MalformedFHIRResponseError(
                f"the vread of {resource_type} brought another version"
            )
        return resource

    def reread(self, resource: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Read *resource* again if it has changed; if not, return it as it is.

        Conditional on its ``meta.versionId``, so little is sent if nothing is new.
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
            if_none_exist: search parameters; if one resource matches, nothing is made
                and that one is returned.
            prefer: what comes back: ``"representation"``, ``"minimal"`` or
                ``"OperationOutcome"``; empty for the server's custom.

        Returns:
            The resource as the server keeps it; if it sent none, the members
            ``resourceType``, ``id`` and ``meta.versionId`` alone.

        Raises:
            FHIRPreconditionFailedError: several match *if_none_exist*.
            BearerBoundaryError: the answer leads out of the server.
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
        Put *resource* in the place of the one with its id.

        Args:
            if_match: the version that it was made from, as ``meta.versionId``, as ETag
                or as the resource that was read: somebody else's change in between is
                then refused, not lost.
            where: search parameters that find the resource in place of its id.
            prefer, and what is returned: as for :meth:`create`.

        Raises:
            FHIRPreconditionFailedError: it is another version by now; read it again.
            FHIRConflictError: the same, of servers that say it so.
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
            id: or ``None``, with *where*.
            patch: a list of operations (JSON Patch, RFC 6902), or a ``Parameters``
                resource (FHIRPath Patch).
            if_match, where, prefer, and what is returned: as for :meth:`update`.
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
            where: search parameters that find it in place of its id.  Some servers
                delete all that match, others refuse if it is more than one.

        Raises:
            FHIRNotFoundError, FHIRGoneError: of one that is not there, or was deleted
                before; other servers take that for a success.
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
    ) -> History:
        """
        List versions, the newest first: of one resource, of a type, or of everything.

        Nothing is sent until the result is used.

        Args:
            since: only what was made at this time or later.
            at: only what was current at some time in this instant.
            count: entries on a page.
        """
        interaction = build_history(resource_type, id, since=since, at=at, count=count)
        what = f"history of {resource_type or 'the server'}"

        def fetch_bundle(url: str) -> dict[str, Any]:
            response = self.perform(interaction, url=url)
            return process_bundle_response(response, type="history", what=what)

        return History(fetch_bundle, url=self.build_url(interaction.path), what=what)

    def capabilities(self, *, max_age: float = 3600.0) -> dict[str, Any]:
        """
        Read what the server can do, its ``CapabilityStatement``.

        Shared by all clients of this process for the server: do not change it.

        Args:
            max_age: seconds for which an earlier answer is good enough.
        """
        known = _capabilities.get(self.base_url)
        if known is not None and time.monotonic() - known[0] < max_age:
            return known[1]
        response = self.perform(
            Interaction(name="capabilities", method="GET", path="metadata")
        )
        statement = process_resource_response(response, what="read of the capabilities")
        # The name that it has in DSTU2 (FHIR-08).
        if statement["resourceType"] not in {"CapabilityStatement", "Conformance"}:
            raise MalformedFHIRResponseError("metadata is no CapabilityStatement")
        if len(_capabilities) >= _MAX_CAPABILITIES:
            _capabilities.clear()
        _capabilities[self.base_url] = time.monotonic(), statement
        return statement

    def get(self, path_or_url: str) -> dict[str, Any]:
        """
        Get the resource at a path below the base, or at a URL within the boundary.

        Raises:
            BearerBoundaryError: the URL lies outside; nothing was sent.
            FHIRRequestError: not a usable path or URL.
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
        """Send *interaction*, or what follows it at *url*, if the scopes allow it."""
        self.check_scope(interaction)
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
        # An error names it; where the server has an id of its own, that one.
        return replace(
            response, headers={**response.headers, "x-request-id": request_id}
        )

    def check_scope(self, interaction: Interaction) -> None:
        """
        Look whether the granted scopes allow *interaction*.

        Raises:
            InsufficientScopeError: they do not, and the site wants that to be an error.
        """
        if self._get_scopes is None or self._on_missing_scope is None:
            return
        missing = find_missing_scope(
            self._get_scopes(), interaction.name, interaction.resource_type
        )
        if missing:
            self._on_missing_scope(missing)
