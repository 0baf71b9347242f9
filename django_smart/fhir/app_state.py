"""
App state: small settings that an app keeps at the EHR.

Spec: SMART App Launch 2.2, "App State" (experimental).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django_smart.exceptions import (
    AppStateDeletedError,
    AppStateError,
    AppStateTooLargeError,
    MalformedFHIRResponseError,
)
from django_smart.fhir.basic import (
    GLOBAL,
    AppState,
    build_app_state_scope,
    build_basic,
    build_token,
    find_app_state_base,
    is_etag,
    parse_basic,
    resolve_subject,
)
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.messages import (
    process_change_response,
    process_delete_response,
    validate_id,
)
from django_smart.protocol.messages import HTTPRequest, HTTPResponse

__all__ = [
    "GLOBAL",
    "AppState",
    "AppStateClient",
    "build_app_state_scope",
    "find_app_state_base",
]

_FHIR_JSON = "application/fhir+json"


class AppStateClient:
    """
    Creates, changes, deletes and finds the state of one app at one server.

    For the app alone: the EHR neither reads it nor acts on it, and what FHIR has a
    resource for belongs there (STATE-01, STATE-02).

    Args:
        client: for the base that :func:`find_app_state_base` found.
        fhir_base_url: the server's FHIR base, which subjects belong to.
        system: of the codes, an origin that the app owns (STATE-17).
        max_size: bytes of JSON that are sent at most.

    Every method raises what :class:`FHIRClient` does: ``FHIRStatusError`` for the
    server's refusal, of which ``FHIRPreconditionFailedError`` tells that somebody else
    has changed the state (search again, and decide anew), ``TransportError``, and
    ``MalformedFHIRResponseError`` if the answer is not this state.
    """

    def __init__(
        self,
        client: FHIRClient,
        *,
        fhir_base_url: str,
        system: str,
        max_size: int = 256 * 1024,
    ) -> None:
        self._client = client
        self._fhir_base_url = fhir_base_url.removesuffix("/")
        self._max_size = max_size
        self._deleted_ids: set[str] = set()
        self.system = system

    def create(
        self, code: str, values: Mapping[str, str], *, subject: str | None
    ) -> AppState:
        """
        Create state, whatever there is already.

        Args:
            values: texts by the URL of their extension, mostly JSON.
            subject: reference to whom it is of, such as ``"Patient/123"``, or
                ``GLOBAL``.  ``None`` is refused: it is what a launch without a person
                has, and would write one person's state for everybody.

        Raises:
            AppStateError: not a usable code, value or subject; nothing was sent.
            AppStateTooLargeError: more than *max_size*; nothing was sent.

        Spec: STATE-05 to STATE-08.
        """
        reference = self._resolve(subject)
        resource = build_basic(self.system, code, values, reference)
        response = self._send("POST", "Basic", "create", body=self._write(resource))
        answer = process_change_response(response, what="creation of app state")
        if answer is None:
            # Nothing to read; the id stands in the Location, as FHIR demands.
            parts = response.headers.get("location", "").split("/")
            place = len(parts) - parts[::-1].index("Basic") if "Basic" in parts else 0
            answer = {**resource, "id": parts[place] if place < len(parts) else ""}
        state = self._parse(answer, etag=response.headers.get("etag", ""))
        _check(state, key=(self.system, code, reference))
        return state

    def update(self, state: AppState, values: Mapping[str, str]) -> AppState:
        """
        Put *values* in the place of those of *state*, if nobody else has changed it.

        Raises:
            AppStateDeletedError: it was deleted.
            AppStateError, AppStateTooLargeError: as ``create``; or *state* has no ETag.

        Spec: STATE-09, STATE-11.
        """
        headers = self._match(state)
        resource = build_basic(state.system, state.code, values, state.subject)
        resource["id"] = state.id
        path = f"Basic/{validate_id(state.id)}"
        body = self._write(resource)
        response = self._send("PUT", path, "update", headers=headers, body=body)
        answer = process_change_response(response, what="update of app state")
        etag = response.headers.get("etag", "")
        changed = self._parse(answer or resource, etag=etag)
        _check(changed, key=(state.system, state.code, state.subject), id=state.id)
        return changed

    def delete(self, state: AppState) -> None:
        """
        Delete *state*, if nobody else has changed it; it takes no change afterwards.

        Raises:
            AppStateDeletedError: it was deleted before.
            AppStateError: *state* has no ETag.

        Spec: STATE-10, STATE-12.
        """
        headers = self._match(state)
        path = f"Basic/{validate_id(state.id)}"
        response = self._send("DELETE", path, "delete", headers=headers)
        process_delete_response(response, what="deletion of app state")
        self._deleted_ids.add(state.id)
        # Frozen against everybody else: the mark goes where the value goes.
        object.__setattr__(state, "is_deleted", True)

    def search(self, code: str, *, subject: str | None) -> list[AppState]:
        """
        All state of this code and subject.

        Args:
            subject: as for ``create``.

        Raises:
            AppStateError: not a usable code or subject; nothing was sent.

        Spec: STATE-13.
        """
        reference = self._resolve(subject)
        params = [("code", build_token(self.system, code))]
        if reference is None:
            params.append(("subject:missing", "true"))
        else:
            params.append(("subject", reference))
        states = []
        for resource in self._client.search("Basic", params):
            state = self._parse(resource)
            _check(state, key=(self.system, code, reference))
            states.append(state)
        return states

    def _send(
        self,
        method: str,
        path: str,
        interaction: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> HTTPResponse:
        content = {"Content-Type": _FHIR_JSON} if body is not None else {}
        request = HTTPRequest(
            method=method,
            url=self._client.build_url(path),
            headers={"Accept": _FHIR_JSON, **content, **(headers or {})},
            body=body,
        )
        return self._client.send_authorized(
            request, interaction=interaction, resource_type="Basic"
        )

    def _match(self, state: AppState) -> dict[str, str]:
        if state.is_deleted or state.id in self._deleted_ids:
            raise AppStateDeletedError("This state was deleted.")
        if not is_etag(state.etag):
            raise AppStateError("The state has no ETag; search for it again.")
        return {"If-Match": state.etag}

    def _write(self, resource: Mapping[str, Any]) -> bytes:
        text = json.dumps(resource, ensure_ascii=False, separators=(",", ":"))
        try:
            body = text.encode()
        except UnicodeEncodeError:
            raise AppStateError("A value has half a surrogate pair.") from None
        if len(body) > self._max_size:
            raise AppStateTooLargeError(
                f"The state has {len(body)} bytes, more than {self._max_size}."
            )
        return body

    def _parse(self, resource: Mapping[str, Any], *, etag: str = "") -> AppState:
        return parse_basic(resource, fhir_base_url=self._fhir_base_url, etag=etag)

    def _resolve(self, subject: str | None) -> str | None:
        return resolve_subject(subject, fhir_base_url=self._fhir_base_url)


def _check(
    state: AppState,
    *,
    key: tuple[str, str, str | None],
    id: str | None = None,  # noqa: A002  # FHIR's own name
) -> None:
    """Somebody else's state must not pass for what was asked for."""
    if (state.system, state.code, state.subject) != key or id not in {None, state.id}:
        raise MalformedFHIRResponseError("the server brought other app state")
