"""
App state: small settings that an app stores at the EHR.

Spec: SMART App Launch 2.2, "App State" (experimental).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django_smart.clients import build_fhir_client
from django_smart.conf import conf
from django_smart.exceptions import (
    AppStateError,
    AppStateUnsupportedError,
    FHIRRequestError,
    MalformedFHIRResponseError,
    ScopeSyntaxError,
)
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.interactions import Interaction
from django_smart.fhir.messages import (
    process_change_response,
    process_delete_response,
    validate_id,
    validate_resource_type,
)
from django_smart.models import Launch, TokenGrant
from django_smart.protocol.configuration import Capability, SMARTConfiguration
from django_smart.protocol.json import parse_json_object
from django_smart.protocol.messages import HTTPResponse
from django_smart.protocol.scopes import parse_scope
from django_smart.protocol.urls import get_origin
from django_smart.servers.discovery import get_configuration

__all__ = [
    "GLOBAL",
    "AppState",
    "AppStateClient",
    "build_app_state_client",
    "build_app_state_scope",
    "find_app_state_base",
]


class AppStateClient:
    """
    Creates, updates, deletes and finds the state of one app at one server.

    Only the app uses it: the EHR neither reads it nor acts on it, and data with a FHIR
    resource type of its own does not belong here (STATE-01, STATE-02).

    Args:
        client: for the base URL that :func:`find_app_state_base` returned.
        fhir_base_url: the server's FHIR base URL, for subjects.
        system: of the codes, an origin that the app owns (STATE-17).
        max_size: maximum bytes of JSON to send.

    Every method raises the errors of :class:`FHIRClient`: ``FHIRStatusError`` if the
    server refuses, such as ``FHIRPreconditionFailedError`` if someone else has changed
    the state (search again and decide again), ``TransportError``, and
    ``MalformedFHIRResponseError`` if the response is not this state.
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
        Create state, whether or not some exists.

        Args:
            values: strings by the URL of their extension, usually JSON.
            subject: reference to the user or patient that the state belongs to, such as
                ``"Patient/123"``, or ``GLOBAL`` for all users.  ``None`` is refused:
                ``request.smart.fhir_user`` is ``None`` in a launch without
                ``fhirUser``, and the state would be stored for all users.

        Raises:
            AppStateError: a code, value or subject is invalid; nothing was sent.
            AppStateError: larger than *max_size*; nothing was sent.

        Spec: STATE-05 to STATE-08.
        """
        reference = self._resolve(subject)
        resource = _build_basic(self.system, code, values, reference)
        response = self._send("create", "POST", "Basic", body=self._write(resource))
        answer = process_change_response(response, what="creation of app state")
        if answer is None:
            # Without a body, the id is in the Location, as FHIR requires.
            parts = response.headers.get("location", "").split("/")
            place = len(parts) - parts[::-1].index("Basic") if "Basic" in parts else 0
            answer = {**resource, "id": parts[place] if place < len(parts) else ""}
        etag = response.headers.get("etag", "")
        return self._parse(answer, key=(self.system, code, reference), etag=etag)

    def update(self, state: AppState, values: Mapping[str, str]) -> AppState:
        """
        Replace the values of *state* with *values*, if no one else has changed it.

        Raises:
            AppStateError: it was deleted.
            AppStateError: see ``create``; or *state* has no
                ETag.

        Spec: STATE-09, STATE-11.
        """
        headers = self._match(state)
        resource = _build_basic(state.system, state.code, values, state.subject)
        resource["id"] = state.id
        path = f"Basic/{validate_id(state.id)}"
        body = self._write(resource)
        response = self._send("update", "PUT", path, headers=headers, body=body)
        answer = process_change_response(response, what="update of app state")
        etag = response.headers.get("etag", "")
        key = (state.system, state.code, state.subject)
        return self._parse(answer or resource, key=key, id=state.id, etag=etag)

    def delete(self, state: AppState) -> None:
        """
        Delete *state*, if no one else has changed it; it cannot be changed afterward.

        Raises:
            AppStateError: it was already deleted.
            AppStateError: *state* has no ETag.

        Spec: STATE-10, STATE-12.
        """
        headers = self._match(state)
        path = f"Basic/{validate_id(state.id)}"
        response = self._send("delete", "DELETE", path, headers=headers)
        process_delete_response(response, what="deletion of app state")
        self._deleted_ids.add(state.id)

    def search(self, code: str, *, subject: str | None) -> list[AppState]:
        """
        Return all state with this code and subject.

        Args:
            subject: see ``create``.

        Raises:
            AppStateError: the code or subject is invalid; nothing was sent.

        Spec: STATE-13.
        """
        reference = self._resolve(subject)
        params = [("code", _build_token(self.system, code))]
        if reference is None:
            params.append(("subject:missing", "true"))
        else:
            params.append(("subject", reference))
        key = (self.system, code, reference)
        found = self._client.iterate("Basic", params)
        return [self._parse(resource, key=key) for resource in found]

    def _send(self, name: str, method: str, path: str, **values: Any) -> HTTPResponse:
        return self._client.perform(
            Interaction(
                name=name, method=method, path=path, resource_type="Basic", **values
            )
        )

    def _match(self, state: AppState) -> dict[str, str]:
        if state.id in self._deleted_ids:
            raise AppStateError("This state was deleted. Its id cannot be used again.")
        if not _ETAG.fullmatch(state.etag):
            raise AppStateError("The state has no ETag; search for it again.")
        return {"If-Match": state.etag}

    def _write(self, resource: Mapping[str, Any]) -> bytes:
        text = json.dumps(resource, ensure_ascii=False, separators=(",", ":"))
        try:
            body = text.encode()
        except UnicodeEncodeError:
            raise AppStateError("A value contains an unpaired surrogate.") from None
        if len(body) > self._max_size:
            raise AppStateError(
                f"The state has {len(body)} bytes; the limit is {self._max_size}."
            )
        return body

    def _parse(
        self,
        resource: Mapping[str, Any],
        *,
        key: tuple[str, str, str | None],
        id: str | None = None,  # noqa: A002  # FHIR's own name
        etag: str = "",
    ) -> AppState:
        """
        Read a ``Basic`` resource, which anyone may have written.

        Args:
            key: system, code and subject that it has to have.
            id: what its id has to be, if that is known.
            etag: of the response; by default, the version in the resource.

        Raises:
            MalformedFHIRResponseError: it is not app state (STATE-14), or not this one.
        """
        concept, subject = resource.get("code"), resource.get("subject")
        codings = concept.get("coding") if isinstance(concept, dict) else None
        reference = subject.get("reference") if isinstance(subject, dict) else None
        if resource.get("resourceType") != "Basic" or (
            not isinstance(codings, list)
            or len(codings) != 1
            or not isinstance(codings[0], dict)
            or not isinstance(codings[0].get("system"), str)
            or not isinstance(codings[0].get("code"), str)
        ):
            raise MalformedFHIRResponseError(
                "the app state does not have exactly one coding"
            )
        try:
            resource_id = validate_id(resource.get("id"))
            if subject is not None:
                # In a request, this word would be a reference like any other.
                reference = self._resolve(None if reference == GLOBAL else reference)
        except FHIRRequestError:
            raise MalformedFHIRResponseError(
                "the app state has no valid id or subject"
            ) from None
        meta = resource.get("meta")
        version = meta.get("versionId") if isinstance(meta, dict) else None
        if not etag and isinstance(version, str):
            etag = f'W/"{version}"'
        state = AppState(
            system=codings[0]["system"],
            code=codings[0]["code"],
            values=_parse_values(resource.get("extension")),
            subject=reference,
            id=resource_id,
            etag=etag if _ETAG.fullmatch(etag) else "",
        )
        is_wanted = (state.system, state.code, state.subject) == key
        if not is_wanted or id not in {None, state.id}:
            raise MalformedFHIRResponseError(
                "the server returned a different app state"
            )
        return state

    def _resolve(self, subject: object) -> str | None:
        """
        Return the absolute reference to a subject, or ``None`` for ``GLOBAL``.

        Raises:
            AppStateError: not a reference within the FHIR base URL (STATE-07).
        """
        if subject == GLOBAL:
            return None
        if not isinstance(subject, str):
            raise AppStateError("There is no subject; pass GLOBAL for global state.")
        parts = subject.removeprefix(f"{self._fhir_base_url}/").split("/")
        try:
            resource_type, resource_id = parts
            validate_resource_type(resource_type)
            validate_id(resource_id)
        except (ValueError, FHIRRequestError):
            raise AppStateError(
                "The subject is not a reference within the server's FHIR base URL."
            ) from None
        return f"{self._fhir_base_url}/{resource_type}/{resource_id}"


#: Subject of state that belongs to the whole organization.
GLOBAL = "global"

# Separators in a search would need escapes, which servers interpret differently.
_TOKEN_PART = re.compile(r"[!#%-+\--\[\]-{}~]+")
_URL = re.compile(r"[!-~]+")
# Weak, as FHIR writes them, or not (STATE-09).
_ETAG = re.compile(r'(?:W/)?"[!#-~]+"')


def find_app_state_base(configuration: SMARTConfiguration, *, base_url: str) -> str:
    """
    Return where a server stores app state: its FHIR base or an associated endpoint.

    Args:
        base_url: the FHIR base URL.

    Raises:
        AppStateUnsupportedError: the server names neither (STATE-03).
    """
    if Capability.SMART_APP_STATE in configuration.capabilities:
        return base_url.removesuffix("/")
    for endpoint in configuration.associated_endpoints:
        if Capability.SMART_APP_STATE in endpoint.capabilities:
            return endpoint.url.removesuffix("/")
    raise AppStateUnsupportedError("The server does not support app state.")


def build_app_state_client(launch: Launch, grant: TokenGrant) -> AppStateClient:
    """Return the client for the state that this app stores at *launch*'s server."""
    registration = launch.registration
    fhir_base_url = registration.server.base_url.removesuffix("/")
    base_url = find_app_state_base(
        get_configuration(registration.server, registration.client_id),
        base_url=fhir_base_url,
    )
    # This server's own configuration names the endpoint, so the token may go there.
    # App state also concerns users, and has its own rules.
    client = build_fhir_client(
        grant,
        launch=launch,
        base_url=base_url if base_url != fhir_base_url else "",
        keeps_to_record=False,
    )
    return AppStateClient(
        client,
        fhir_base_url=fhir_base_url,
        system=conf.SMART_APP_STATE_SYSTEM or get_origin(registration.redirect_uri),
    )


def build_app_state_scope(
    level: str, *, system: str, code: str, letters: str = "cuds"
) -> str:
    """
    Return the scope for the state of one code, such as ``user/Basic.cuds?code=…|…``.

    Args:
        level: ``user`` or ``patient``.
        letters: of ``cruds``, in this order.

    Raises:
        AppStateError: not a valid scope, or a system or code that it cannot contain.

    Spec: STATE-16.
    """
    token = _build_token(system, code)
    scope = f"{level}/Basic.{letters}?code={token}"
    try:
        parse_scope(scope, strict=True)
    except ScopeSyntaxError as exc:
        raise AppStateError(f"This is not a scope for app state: {exc}") from exc
    if "&" in token or "?" in letters or level not in {"user", "patient"}:
        raise AppStateError("App state is accessed with a user/ or patient/ scope.")
    return scope


@dataclass(frozen=True, kw_only=True, slots=True)
class AppState:
    """
    State as stored at the server; :meth:`AppStateClient.update` returns the next one.

    Attributes:
        system, code: kind of the state; they do not change.
        values: strings by the URL of their extension.  Anyone with the scope may have
            written them: check them, and always escape them in pages.
        subject: absolute reference, or ``None`` for the whole organization.
        id: of the ``Basic`` resource.
        etag: of the version that was read, for ``If-Match``; may be empty.
    """

    system: str
    code: str
    values: Mapping[str, str] = field(repr=False)
    subject: str | None = field(repr=False)
    id: str
    etag: str = ""

    def read_json(self, url: str) -> dict[str, Any]:
        """
        Parse the value at *url* as one JSON object of limited depth (STATE-14).

        Raises:
            KeyError: there is no such value.
            MalformedFHIRResponseError: it is not a JSON object.
        """
        body = self.values[url].encode("utf-8", "replace")
        return parse_json_object(
            body, error=MalformedFHIRResponseError, what="app state"
        )


def _build_token(system: str, code: str) -> str:
    """
    Build the value of a search by code.

    Raises:
        AppStateError: one of them is empty or would need an escape.
    """
    if not _TOKEN_PART.fullmatch(system) or not _TOKEN_PART.fullmatch(code):
        raise AppStateError(
            "A system or code is empty or contains whitespace or one of |,$\\"
        )
    return f"{system}|{code}"


def _build_basic(
    system: str, code: str, values: Mapping[str, object], reference: str | None
) -> dict[str, Any]:
    """
    Build the resource, without ``id`` and ``meta`` (STATE-05).

    Args:
        values: strings by the URL of their extension.
        reference: absolute, or ``None`` for global state.

    Raises:
        AppStateError: a system, code, URL or value is invalid (STATE-08).
    """
    _build_token(system, code)
    for url, value in values.items():
        if not _URL.fullmatch(url):
            raise AppStateError("An extension has no valid URL.")
        if not isinstance(value, str) or not value:
            raise AppStateError("An app state value must be a non-empty string.")
    resource: dict[str, Any] = {"resourceType": "Basic"}
    if reference is not None:
        resource["subject"] = {"reference": reference}
    resource["code"] = {"coding": [{"system": system, "code": code}]}
    if values:
        resource["extension"] = [
            {"url": url, "valueString": value} for url, value in values.items()
        ]
    return resource


def _parse_values(extensions: object) -> dict[str, str]:
    """Return strings by URL; refuse anything else, which an update would lose."""
    values: dict[str, str] = {}
    if extensions is None:
        return values
    if not isinstance(extensions, list):
        raise MalformedFHIRResponseError("the extensions of app state are not a list")
    for extension in extensions:
        members = extension if isinstance(extension, dict) else {}
        url, value = members.get("url"), members.get("valueString")
        if (
            not isinstance(url, str)
            or not isinstance(value, str)
            or members.keys() - {"id", "url", "valueString"}
            or url in values
        ):
            raise MalformedFHIRResponseError(
                "the app state contains more than plain strings"
            )
        values[url] = value
    return values
