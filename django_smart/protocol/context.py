"""The launch context in a token response."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django_smart.exceptions import InsecureURLError, MalformedTokenResponseError
from django_smart.protocol.deviations import Deviation, name_type
from django_smart.protocol.urls import validate_https_url

__all__ = [
    "DEFAULT_ROLE",
    "MAX_CONTEXT_LENGTH",
    "FHIRContextItem",
    "LaunchContext",
    "check_length",
    "fill_in_context",
    "merge_parameters",
]

#: Maximum length, as JSON, of a stored token response: every page reads it.
MAX_CONTEXT_LENGTH = 64 * 1024
#: The role of an item of ``fhirContext`` without one (FCTX-04).
DEFAULT_ROLE = "launch"

# Members of a token response that are not context, and the attributes of the others.
_OAUTH_MEMBERS = {
    "access_token",
    "expires_in",
    "id_token",
    "refresh_token",
    "scope",
    "token_type",
}
_CONTEXT_MEMBERS = {
    "encounter": "encounter",
    "fhirContext": "fhir_context",
    "intent": "intent",
    "need_patient_banner": "need_patient_banner",
    "patient": "patient",
    "smart_style_url": "smart_style_url",
    "tenant": "tenant",
}

# "." and ".." are valid ids in FHIR, but path segments everywhere else.
_ID = re.compile(r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9\-.]{1,64}")
_REFERENCE = re.compile(
    rf"([A-Z][A-Za-z]{{0,63}})/{_ID.pattern}(?:/_history/{_ID.pattern})?"
)
_TYPE = re.compile(r"[A-Z][A-Za-z]{0,63}")
_ABSOLUTE_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[^\s]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class FHIRContextItem:
    """
    One item of ``fhirContext``, with at least one of the first three attributes.

    Attributes:
        reference: relative FHIR reference, perhaps with a version, on this
            authorization's server.
        canonical: canonical URL, perhaps with ``|version``; the access token is not for
            its host (FCTX-07).
        identifier: FHIR Identifier.
        type: resource type, or empty.
        role: ``launch`` by default; otherwise, an absolute URI.
        extra: other properties.
    """

    reference: str = field(default="", repr=False)
    canonical: str = field(default="", repr=False)
    identifier: Mapping[str, Any] | None = field(default=None, repr=False)
    type: str = ""
    role: str = DEFAULT_ROLE
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchContext:
    """
    The context in which the EHR opened the app.

    ``repr`` does not show it, because it is patient data.

    Attributes:
        patient, encounter: bare FHIR ids, ``None`` if absent.
        fhir_context: the well-formed items of ``fhirContext``.
        need_patient_banner: ``None`` if absent, which is not the same as ``False``.
        smart_style_url: a URL that is safe to fetch, or ``None``.
        extra: unknown members, such as ``appContext``.
        deviations: what differs from the specification, or was ignored.
    """

    patient: str | None = field(default=None, repr=False)
    encounter: str | None = field(default=None, repr=False)
    fhir_context: tuple[FHIRContextItem, ...] = field(default=(), repr=False)
    need_patient_banner: bool | None = field(default=None, repr=False)
    intent: str | None = field(default=None, repr=False)
    tenant: str | None = field(default=None, repr=False)
    smart_style_url: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    deviations: tuple[Deviation, ...] = field(default=(), compare=False)

    @classmethod
    def from_parameters(
        cls,
        parameters: Mapping[str, Any],
        *,
        insecure_hosts: frozenset[str] = frozenset(),
    ) -> LaunchContext:
        """
        Read the context from a token response.

        ``null`` and empty strings count as absent. ``Patient/123`` and a number are
        read as ``123``.

        Raises:
            MalformedTokenResponseError: ``patient`` or ``encounter`` is not a FHIR id.
                Other invalid values are omitted and listed in ``deviations``.

        Spec: SMART App Launch 2.2, "Scopes and Launch Context", Launch context arrives
        with your access_token.
        """
        found = [
            Deviation(
                code="context_empty",
                evidence=f"{name} is {name_type(parameters[name])}",
            )
            for name in _CONTEXT_MEMBERS
            if parameters.get(name, False) in (None, "")
        ]
        return cls(
            patient=_parse_id(parameters, "patient", "Patient", found),
            encounter=_parse_id(parameters, "encounter", "Encounter", found),
            fhir_context=tuple(
                _parse_fhir_context(parameters.get("fhirContext"), found)
            ),
            need_patient_banner=_parse_boolean(
                parameters, "need_patient_banner", found
            ),
            intent=_parse_text(parameters, "intent", found),
            tenant=_parse_text(parameters, "tenant", found),
            smart_style_url=_parse_url(
                parameters, "smart_style_url", found, insecure_hosts
            ),
            extra={
                name: value
                for name, value in parameters.items()
                if name not in _OAUTH_MEMBERS and name not in _CONTEXT_MEMBERS
            },
            deviations=tuple(found),
        )

    def names_another(self, newer: LaunchContext) -> bool:
        """Return whether *newer* names another patient or encounter."""
        pairs = ((self.patient, newer.patient), (self.encounter, newer.encounter))
        return any(old and new and old != new for old, new in pairs)

    def items_with_role(self, role: str = DEFAULT_ROLE) -> tuple[FHIRContextItem, ...]:
        """Return the items of ``fhirContext`` with *role*."""
        return tuple(item for item in self.fhir_context if item.role == role)


def fill_in_context(
    parameters: Mapping[str, Any], claims: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a token response with the context that only *claims* have."""
    return {**parameters} | {
        name: claims[name]
        for name in _CONTEXT_MEMBERS.keys() & claims.keys()
        if parameters.get(name) in (None, "")
    }


def merge_parameters(
    older: Mapping[str, Any],
    newer: Mapping[str, Any],
    *,
    insecure_hosts: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """
    Return the context of *older* updated with that of *newer* (REF-06).

    A member that is ``null``, empty or invalid changes nothing; members that are not
    context, such as ``scope``, are not updated.

    Args:
        older, newer: token responses; *older* may already be merged.

    Raises:
        MalformedTokenResponseError: as for :meth:`LaunchContext.from_parameters`.

    Spec: SMART App Launch 2.2, "Refresh access token", Response.
    """
    readable = LaunchContext.from_parameters(newer, insecure_hosts=insecure_hosts)
    said = {**readable.extra} | {
        name: newer[name]
        for name, attribute in _CONTEXT_MEMBERS.items()
        if getattr(readable, attribute) not in (None, ())
    }
    return {**older} | {n: v for n, v in said.items() if v not in (None, "")}


def check_length(parameters: Mapping[str, Any]) -> None:
    """
    Refuse a context that is too long to store.

    Args:
        parameters: a token response without its tokens.

    Raises:
        MalformedTokenResponseError: longer than ``MAX_CONTEXT_LENGTH``.
    """
    length = len(json.dumps(parameters))
    if length > MAX_CONTEXT_LENGTH:
        raise MalformedTokenResponseError(
            f"The token response has {length} characters besides its tokens; "
            f"the limit is {MAX_CONTEXT_LENGTH}."
        )


def _parse_id(
    parameters: Mapping[str, Any],
    name: str,
    resource_type: str,
    found: list[Deviation],
) -> str | None:
    """Read a bare id; some servers send a prefixed one, or a number."""
    value = parameters.get(name)
    if value is None or value == "":
        return None
    text = str(value) if type(value) is int else value
    if isinstance(text, str):
        bare = text.removeprefix(f"{resource_type}/")
        if _ID.fullmatch(bare):
            if bare != value:
                form = "a reference" if text != bare else name_type(value)
                found.append(
                    Deviation(code="context_id_form", evidence=f"{name} is {form}")
                )
            return bare
    raise MalformedTokenResponseError(f"{name} is not a valid id of a FHIR resource.")


def _parse_text(
    parameters: Mapping[str, Any], name: str, found: list[Deviation]
) -> str | None:
    value = parameters.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        found.append(
            Deviation(code="context_ignored", evidence=f"{name} is {name_type(value)}")
        )
        return None
    return value


def _parse_boolean(
    parameters: Mapping[str, Any], name: str, found: list[Deviation]
) -> bool | None:
    value = parameters.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return value
    words = {"true": True, "false": False}
    # Some servers send it as a string.
    said = words.get(value.lower()) if isinstance(value, str) else None
    code = "context_ignored" if said is None else "banner_not_boolean"
    found.append(Deviation(code=code, evidence=f"{name} is {name_type(value)}"))
    return said


def _parse_url(
    parameters: Mapping[str, Any],
    name: str,
    found: list[Deviation],
    insecure_hosts: frozenset[str],
) -> str | None:
    value = _parse_text(parameters, name, found)
    if value is None:
        return None
    try:
        return validate_https_url(value, insecure_hosts=insecure_hosts, what=name)
    except InsecureURLError as exc:
        found.append(Deviation(code="context_ignored", evidence=str(exc)))
        return None


def _parse_fhir_context(
    value: object, found: list[Deviation]
) -> Iterator[FHIRContextItem]:
    """Read the valid items; record a reason for each invalid one."""
    if value is None:
        return
    if not isinstance(value, list):
        evidence = f"fhirContext is {name_type(value)}"
        found.append(Deviation(code="context_ignored", evidence=evidence))
        return
    for number, entry in enumerate(value):
        item = _parse_item(entry)
        if isinstance(item, FHIRContextItem):
            yield item
        else:
            evidence = f"fhirContext[{number}] {item}"
            found.append(Deviation(code="context_ignored", evidence=evidence))


def _parse_item(entry: object) -> FHIRContextItem | str:
    """Read one item, or return what is wrong with it (FCTX-01 to FCTX-06)."""
    if not isinstance(entry, dict):
        return "is not an object"
    for name in ("reference", "canonical", "type", "role"):
        if not isinstance(entry.get(name, ""), str):
            return f"has a {name} that is not a string"
    identifier = entry.get("identifier")
    if not isinstance(identifier, dict | None):
        return "has an identifier that is not an object"
    item = FHIRContextItem(
        reference=entry.get("reference", ""),
        canonical=entry.get("canonical", ""),
        identifier=identifier,
        type=entry.get("type", ""),
        role=entry.get("role", DEFAULT_ROLE),
        extra={
            name: entry[name]
            for name in entry
            if name not in ("reference", "canonical", "identifier", "type", "role")
        },
    )
    return _find_problem(item) or item


def _find_problem(item: FHIRContextItem) -> str:
    """Return which rule *item* breaks; empty if none."""
    if not (item.reference or item.canonical or item.identifier):
        return "has no reference, canonical or identifier"
    match = _REFERENCE.fullmatch(item.reference)
    if item.reference and match is None:
        return "has a reference that is not relative"
    if item.type and not _TYPE.fullmatch(item.type):
        return "has a type that is not a resource type"
    if item.role != DEFAULT_ROLE and not _ABSOLUTE_URI.fullmatch(item.role):
        return "has a role that is neither launch nor an absolute URI"
    resource_type = match[1] if match else item.type
    if resource_type in ("Patient", "Encounter") and item.role == DEFAULT_ROLE:
        return f"names a {resource_type} with the role launch"
    return ""
