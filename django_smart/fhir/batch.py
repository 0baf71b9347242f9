"""
Batches and transactions: many interactions in one request.

Spec: FHIR R4, "RESTful API", batch/transaction.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec

from django_smart.exceptions import FHIRStatusError, MalformedFHIRResponseError
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.interactions import (
    FHIR_JSON,
    Interaction,
    build_create,
    build_delete,
    build_patch,
    build_read,
    build_search,
    build_update,
)
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import (
    parse_etag,
    parse_place,
    process_bundle_response,
    process_delete_response,
    process_read_response,
    process_write_response,
    reports_error,
)
from django_smart.fhir.parameters import SearchParams, build_search_query
from django_smart.protocol.messages import HTTPResponse

__all__ = ["Batch", "BatchAnswer"]

_P = ParamSpec("_P")

_STATUS = re.compile(r"\s*([1-5][0-9]{2})(?:\s.*)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchAnswer:
    """
    The response to one entry.

    Attributes:
        status_code: HTTP status of this entry.
        resource: the returned resource, or ``None``.
        reference: the resource's reference, such as ``Patient/123``; empty if the
            server did not send it, or if it is outside the server.
        version_id: the resource's version; empty if the server did not send it.
        error: the error that the interaction alone would have raised, for a status of
            400 or above, a write with an error, a different resource, or a read or
            search without one; otherwise, ``None``.
    """

    status_code: int
    resource: dict[str, Any] | None = field(default=None, repr=False)
    reference: str = field(default="", repr=False)
    version_id: str = field(default="", repr=False)
    error: FHIRStatusError | MalformedFHIRResponseError | None = field(
        default=None, repr=False
    )

    def get(self) -> dict[str, Any] | None:
        """
        Return the resource.

        Raises:
            FHIRStatusError: the server refused this entry.
            MalformedFHIRResponseError: the server returned a different resource, or
                none for a read or search, or reported an error with a status below 400.
        """
        if self.error is not None:
            raise self.error
        return self.resource


def _adding(
    build: Callable[_P, Interaction],
) -> Callable[Concatenate[Batch, _P], None]:
    """Make a method that adds what *build* builds."""

    @wraps(build)
    def add(self: Batch, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        self._add(build(*args, **kwargs))

    return add


class Batch:
    """
    Collects interactions and sends them in one request.

    The entries of a batch succeed or fail independently; those of a transaction all
    succeed or all fail.  The methods take the arguments of those of ``FHIRClient``, and
    check them immediately::

        transaction = request.smart.fhir.transaction()
        observation = transaction.create({"resourceType": "Observation", ...})
        transaction.create({"resourceType": "DiagnosticReport",
                            "result": [{"reference": observation}], ...})
        for answer in transaction.send():
            print(answer.status_code, answer.reference)
    """

    def __init__(
        self, kind: Literal["batch", "transaction"], client: FHIRConnection
    ) -> None:
        self.kind = kind
        self.client = client
        self._interactions: list[Interaction] = []
        self._entries: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.kind} of {len(self)}>"

    def __len__(self) -> int:
        return len(self._entries)

    read = _adding(build_read)
    update = _adding(build_update)
    patch = _adding(build_patch)
    delete = _adding(build_delete)

    def vread(self, resource_type: str, id: str, version_id: str) -> None:  # noqa: A002
        """Add a read of one version."""
        self._add(build_read(resource_type, id, version_id=version_id))

    def search(
        self, resource_type: str, params: SearchParams | None = None, /, **keywords: Any
    ) -> None:
        """Add a search; its response is the first page, a Bundle."""
        query = build_search_query(params, keywords)
        self._add(build_search(resource_type, query))

    def create(
        self,
        resource: Mapping[str, Any],
        *,
        if_none_exist: SearchParams | None = None,
    ) -> str:
        """Add a create; return a reference to it that other entries can use."""
        full_url = f"urn:uuid:{uuid.uuid4()}"
        self._add(build_create(resource, if_none_exist=if_none_exist), full_url)
        return full_url

    def send(self) -> list[BatchAnswer]:
        """
        Send the collected entries in one request; nothing is sent without entries.

        Returns:
            A response for each entry, in the order in which they were added.

        Raises:
            FHIRStatusError: the server refused the whole Bundle.
            InsufficientScopeError: the scopes do not allow an entry, and
                ``SMART_SCOPE_CHECK`` is ``"raise"``; nothing was sent.
            MalformedFHIRResponseError: the server did not respond to each entry.
            TransportError: no usable response; the outcome is unknown.
        """
        if not self._entries:
            return []
        for interaction in self._interactions:
            self.client.check_scope(interaction)
        bundle = {
            "resourceType": "Bundle",
            "type": self.kind,
            "entry": self._entries,
        }
        response = self.client.perform(
            Interaction(name=self.kind, method="POST", path="", body=bundle)
        )
        answer = process_bundle_response(
            response, type=f"{self.kind}-response", what=self.kind
        )
        entries = answer["entry"]
        if len(entries) != len(self._interactions):
            raise MalformedFHIRResponseError(
                f"the {self.kind} of {len(self._interactions)} entries "
                f"returned {len(entries)} responses"
            )
        return [
            self._read_answer(interaction, entry)
            for interaction, entry in zip(self._interactions, entries, strict=True)
        ]

    def _add(self, interaction: Interaction, full_url: str = "") -> None:
        entry = interaction.as_entry()
        if full_url:
            entry = {"fullUrl": full_url, **entry}
        self._interactions.append(interaction)
        self._entries.append(entry)

    def _read_answer(
        self, interaction: Interaction, entry: dict[str, Any]
    ) -> BatchAnswer:
        """Read an entry as the response that the interaction alone would have had."""
        told = entry.get("response")
        told = told if isinstance(told, dict) else {}
        match = _STATUS.fullmatch(str(told.get("status", "")))
        if match is None:
            raise MalformedFHIRResponseError(
                f"a response in the {self.kind} has no status"
            )
        status_code, resource = int(match[1]), entry.get("resource")
        resource = resource if isinstance(resource, dict) else None
        outcome = told.get("outcome")
        # 201 says that it was stored.
        is_refused = status_code >= 400 or (
            interaction.method != "GET"
            and status_code != 201
            and reports_error(outcome)
        )
        content = outcome if outcome and is_refused else resource
        location = str(told.get("location") or "")
        is_here = "://" not in location or self.client.is_within_boundary(location)
        response = HTTPResponse(
            status_code=status_code,
            headers={
                "content-type": FHIR_JSON,
                "etag": str(told.get("etag") or ""),
                "location": location if is_here and parse_place(location) else "",
            },
            body=b"" if content is None else dump_json(content),
            url=self.client.build_url(interaction.path),
        )
        try:
            found = _process(interaction, response)
        except (FHIRStatusError, MalformedFHIRResponseError) as error:
            # What did not come with an error is another resource.
            kept = resource if status_code >= 400 else None
            return BatchAnswer(status_code=status_code, resource=kept, error=error)
        return BatchAnswer(
            status_code=status_code,
            resource=resource,
            reference=f"{found['resourceType']}/{found['id']}" if found else "",
            version_id=found.get("meta", {}).get("versionId", "")
            or parse_etag(told.get("etag")),
        )


def _process(interaction: Interaction, response: HTTPResponse) -> dict[str, Any]:
    """Return what is known of the only resource that an entry is about."""
    what = f"{interaction.name} of {interaction.resource_type}"
    match interaction.name:
        case "read" | "vread":
            return process_read_response(response, interaction)
        case "search":
            process_bundle_response(response, type="searchset", what=what)
            return {}
        case "delete":
            process_delete_response(response, what=what)
            return {}
    return process_write_response(
        response, interaction, is_within_boundary=lambda url: True, may_be_silent=True
    )
