"""The launch context that comes beside an access token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django_smart.exceptions import InsecureURLError, MalformedTokenResponseError
from django_smart.protocol.urls import validate_https_url

__all__ = [
    "DEFAULT_ROLE",
    "MAX_CONTEXT_LENGTH",
    "FHIRContextItem",
    "LaunchContext",
    "check_length",
    "merge_parameters",
]

#: Characters, as JSON, of what is kept of token responses: pages read it each time.
MAX_CONTEXT_LENGTH = 64 * 1024
#: The role of an item of ``fhirContext`` that names none (FCTX-04).
DEFAULT_ROLE = "launch"

# Members of a token response that are no context.
_OAUTH_MEMBERS = {
    "access_token",
    "expires_in",
    "id_token",
    "refresh_token",
    "scope",
    "token_type",
}
_CONTEXT_MEMBERS = {
    "encounter",
    "fhirContext",
    "intent",
    "need_patient_banner",
    "patient",
    "smart_style_url",
    "tenant",
}
_CONTEXT_FIELDS = (
    "patient",
    "encounter",
    "fhir_context",
    "need_patient_banner",
    "intent",
    "tenant",
    "smart_style_url",
)

# "." and ".." are ids by the letter of FHIR, and path segments to everyone else.
_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9\-.]{1,64}")
_REFERENCE = re.compile(rf"([A-Z][A-Za-z]{{0,63}})/({_ID.pattern})")
_TYPE = re.compile(r"[A-Z][A-Za-z]{0,63}")
_ABSOLUTE_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:[^\s]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class FHIRContextItem:
    """
    One item of ``fhirContext``: at least one of the first three is there.

    Attributes:
        reference: relative FHIR reference, at this authorization's own server.
        canonical: canonical URL, perhaps with ``|version``; the access token is not for
            its host (FCTX-07).
        identifier: FHIR Identifier.
        type: resource type, or empty.
        role: ``launch`` unless it says otherwise, then an absolute URI.
        extra: other properties.
    """

    reference: str = field(default="", repr=False)
    canonical: str = field(default="", repr=False)
    identifier: Mapping[str, Any] | None = field(default=None, repr=False)
    type: str = ""
    role: str = DEFAULT_ROLE
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """As it came."""
        known = {
            "reference": self.reference,
            "canonical": self.canonical,
            "identifier": self.identifier,
            "type": self.type,
            "role": "" if self.role == DEFAULT_ROLE else self.role,
        }
        return {name: value for name, value in known.items() if value} | {**self.extra}


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchContext:
    """
    What the EHR said about where and for whom the app was opened.

    ``repr`` shows nothing of it: it is patient data.

    Attributes:
        patient, encounter: bare FHIR ids, ``None`` if absent.
        fhir_context: the well-formed items of ``fhirContext``.
        need_patient_banner: ``None`` if absent, which is not the same as ``False``.
        smart_style_url: an URL that is safe to fetch, else ``None``.
        extra: members nobody here knows, such as ``appContext``.
        problems: what was dropped and why, without its values.
    """

    patient: str | None = field(default=None, repr=False)
    encounter: str | None = field(default=None, repr=False)
    fhir_context: tuple[FHIRContextItem, ...] = field(default=(), repr=False)
    need_patient_banner: bool | None = field(default=None, repr=False)
    intent: str | None = field(default=None, repr=False)
    tenant: str | None = field(default=None, repr=False)
    smart_style_url: str | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_parameters(
        cls,
        parameters: Mapping[str, Any],
        *,
        insecure_hosts: frozenset[str] = frozenset(),
    ) -> LaunchContext:
        """
        Read the context out of a token response, or out of :meth:`to_json`.

        ``null`` and empty strings count as absent.  ``Patient/123`` reads as ``123``.

        Raises:
            MalformedTokenResponseError: ``patient`` or ``encounter`` is not a FHIR id.
                Everything else that is wrong is left out and listed in ``problems``.

        Spec: SMART App Launch 2.2, "Scopes and Launch Context", Launch context arrives
        with your access_token.
        """
        problems: list[str] = []
        return cls(
            patient=_parse_id(parameters, "patient", "Patient"),
            encounter=_parse_id(parameters, "encounter", "Encounter"),
            fhir_context=tuple(
                _parse_fhir_context(parameters.get("fhirContext"), problems)
            ),
            need_patient_banner=_parse_boolean(
                parameters, "need_patient_banner", problems
            ),
            intent=_parse_text(parameters, "intent", problems),
            tenant=_parse_text(parameters, "tenant", problems),
            smart_style_url=_parse_style_url(parameters, problems, insecure_hosts),
            extra={
                name: value
                for name, value in parameters.items()
                if name not in _OAUTH_MEMBERS and name not in _CONTEXT_MEMBERS
            },
            problems=tuple(problems),
        )

    def to_json(self) -> dict[str, Any]:
        """The members that are there, for a JSON column."""
        known: dict[str, Any] = {
            "patient": self.patient,
            "encounter": self.encounter,
            "fhirContext": [item.to_json() for item in self.fhir_context] or None,
            "need_patient_banner": self.need_patient_banner,
            "intent": self.intent,
            "tenant": self.tenant,
            "smart_style_url": self.smart_style_url,
        }
        return {**self.extra} | {
            name: value for name, value in known.items() if value is not None
        }

    def updated_by(self, newer: LaunchContext) -> LaunchContext:
        """This context with what *newer* holds in place of its own (REF-06)."""
        given = {
            name: value
            for name in _CONTEXT_FIELDS
            if (value := getattr(newer, name)) not in (None, ())
        }
        return replace(
            self,
            **given,
            extra={**self.extra, **newer.extra},
            problems=newer.problems,
        )

    def names_another(self, newer: LaunchContext) -> bool:
        """Whether *newer* names another patient or encounter than this one does."""
        pairs = ((self.patient, newer.patient), (self.encounter, newer.encounter))
        return any(old and new and old != new for old, new in pairs)

    def items_with_role(self, role: str = DEFAULT_ROLE) -> tuple[FHIRContextItem, ...]:
        """The items of ``fhirContext`` that play *role*."""
        return tuple(item for item in self.fhir_context if item.role == role)


def merge_parameters(
    older: Mapping[str, Any],
    newer: Mapping[str, Any],
    *,
    insecure_hosts: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """
    The context of *older* with what *newer* says in place of it (REF-06).

    A member that is ``null``, empty or unreadable says nothing; those that are no
    context, such as ``scope``, stay as they are.

    Args:
        older, newer: token responses; *older* may be one that was merged before.

    Raises:
        MalformedTokenResponseError: as :meth:`LaunchContext.from_parameters`, or both
            together are too long.

    Spec: SMART App Launch 2.2, "Refresh access token", Response.
    """
    readable = LaunchContext.from_parameters(newer, insecure_hosts=insecure_hosts)
    said = readable.to_json().items()
    merged = {**older} | {n: value for n, value in said if value not in (None, "")}
    check_length(merged)
    return merged


def check_length(parameters: Mapping[str, Any]) -> None:
    """
    Refuse more than can be kept.

    Args:
        parameters: a token response less its tokens.

    Raises:
        MalformedTokenResponseError: longer than ``MAX_CONTEXT_LENGTH``.
    """
    length = len(json.dumps(parameters))
    if length > MAX_CONTEXT_LENGTH:
        raise MalformedTokenResponseError(
            f"The token response has {length} characters beside its tokens, more than "
            f"{MAX_CONTEXT_LENGTH}."
        )


def _parse_id(
    parameters: Mapping[str, Any], name: str, resource_type: str
) -> str | None:
    """A bare id; a prefixed one is what some servers send."""
    value = parameters.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str):
        bare = value.removeprefix(f"{resource_type}/")
        if _ID.fullmatch(bare):
            return bare
    raise MalformedTokenResponseError(f"{name} is not the id of a FHIR resource.")


def _parse_text(
    parameters: Mapping[str, Any], name: str, problems: list[str]
) -> str | None:
    value = parameters.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        problems.append(f"{name} is not a string")
        return None
    return value


def _parse_boolean(
    parameters: Mapping[str, Any], name: str, problems: list[str]
) -> bool | None:
    value = parameters.get(name)
    if isinstance(value, str):
        # Some servers quote it.
        value = {"true": True, "false": False}.get(value.lower(), value)
    if value is None or isinstance(value, bool):
        return value
    problems.append(f"{name} is not a boolean")
    return None


def _parse_style_url(
    parameters: Mapping[str, Any], problems: list[str], insecure_hosts: frozenset[str]
) -> str | None:
    value = _parse_text(parameters, "smart_style_url", problems)
    if value is None:
        return None
    try:
        return validate_https_url(
            value, insecure_hosts=insecure_hosts, what="smart_style_url"
        )
    except InsecureURLError as exc:
        problems.append(str(exc))
        return None


def _parse_fhir_context(
    value: object, problems: list[str]
) -> Iterator[FHIRContextItem]:
    """The items that keep the rules; a reason for each that does not."""
    if value is None:
        return
    if not isinstance(value, list):
        problems.append("fhirContext is not a list")
        return
    for number, entry in enumerate(value):
        item = _parse_item(entry)
        if isinstance(item, FHIRContextItem):
            yield item
        else:
            problems.append(f"fhirContext[{number}] {item}")


def _parse_item(entry: object) -> FHIRContextItem | str:
    """One item, or what is wrong with it (FCTX-01 to FCTX-06)."""
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
    """Which rule *item* breaks; empty if none."""
    if not (item.reference or item.canonical or item.identifier):
        return "has neither reference nor canonical nor identifier"
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
