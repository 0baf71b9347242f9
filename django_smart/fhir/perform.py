"""Sends interactions, if the scopes and the patient's record allow them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import cached_property
from typing import Any

from django_smart.exceptions import ForeignPatientError
from django_smart.fhir.compartment import Record, is_shared
from django_smart.fhir.connection import FHIRConnection, refuse_in_event_loop
from django_smart.fhir.guard import RecordGuard
from django_smart.fhir.interactions import FHIR_JSON, Interaction
from django_smart.fhir.json import dump_json
from django_smart.fhir.messages import find_request_id, process_read_response
from django_smart.fhir.session import FHIRSession
from django_smart.protocol.id_token import FHIR_USER_TYPES
from django_smart.protocol.messages import HTTPRequest, HTTPResponse
from django_smart.protocol.scopes import ScopeSet, required_letter
from django_smart.protocol.urls import is_within_base

__all__ = ["Performer", "find_missing_scope"]


class Performer(FHIRConnection):
    """A connection that knows what FHIR's interactions are, and checks each of them."""

    @cached_property
    def session(self) -> FHIRSession:
        """``requests.Session`` that any library can use with this grant."""
        return FHIRSession(self)

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

    def perform_read(
        self, interaction: Interaction, *, url: str | None = None
    ) -> dict[str, Any]:
        """Return the resource that *interaction* reads, at its own address or *url*."""
        return process_read_response(self.perform(interaction, url=url), interaction)

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
