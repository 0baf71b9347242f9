"""The grammar of one SMART scope, version 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from django_smart.exceptions import ScopeSyntaxError

__all__ = [
    "LaunchScope",
    "OtherScope",
    "ResourceScope",
    "Scope",
    "parse_scope",
    "required_letter",
]

_LETTERS = "cruds"
_V1_LETTERS = {"read": "rs", "write": "cud", "*": "cruds"}
_SMART_PREFIX = "http://smarthealthit.org/fhir/scopes/"
_OPENID_PREFIX = "http://openid.net/specs/openid-connect-core-1_0#"
_KNOWN = {
    "openid", "fhirUser", "profile", "email", "address", "phone",
    "online_access", "offline_access",
}  # fmt: skip

# RFC 6749 section 3.3.
_TOKEN = re.compile(r"[!#-\[\]-~]+")
_RESOURCE = re.compile(
    r"(?P<level>patient|user|system)/(?P<type>\*|[A-Z][A-Za-z]*)\."
    r"(?:(?P<v1>read|write|\*)|(?P<v2>(?=[cruds])c?r?u?d?s?)(?:\?(?P<query>.+))?)"
)
# Granted scopes come in other letter cases too (Epic).  Level and suffix mean the
# same in any case, and no two FHIR types differ by case alone, so nothing is guessed.
_ANY_CASE_RESOURCE = re.compile(_RESOURCE.pattern, re.ASCII | re.IGNORECASE)
_LAUNCH = re.compile(r"launch(?:/(?P<type>[a-z]+)(?:\?role=(?P<role>[^&]+))?)?")
_ANY_CASE_LAUNCH = re.compile(_LAUNCH.pattern, re.ASCII | re.IGNORECASE)
_EXTENSION = re.compile(r"__.+|[A-Za-z][A-Za-z0-9+.-]*:.+")

_INTERACTION_LETTERS = {
    "create": "c",
    "read": "r",
    "vread": "r",
    "history": "r",
    "history-instance": "r",
    "update": "u",
    "patch": "u",
    "delete": "d",
    "search": "s",
    "search-type": "s",
    "search-system": "s",
    "history-type": "s",
    "history-system": "s",
}


def required_letter(interaction: str) -> str:
    """
    The scope letter that allows a FHIR *interaction* (``"vread"`` needs ``"r"``).

    ``batch`` and ``transaction`` have none: each of their entries needs its own
    (SCOPE-16).

    Raises:
        ValueError: not an interaction that scopes speak of.
    """
    try:
        return _INTERACTION_LETTERS[interaction]
    except KeyError:
        raise ValueError(
            f"No scope letter for the interaction {interaction!r}"
        ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceScope:
    """
    Access to resources, such as ``patient/Observation.rs?category=laboratory``.

    Attributes:
        text: as written.
        level: ``patient``, ``user`` or ``system``.
        type: FHIR resource type, or ``*``.
        letters: some of ``cruds``, in that order.
        query: parameters the access is narrowed by: decoded, sorted, none twice.
    """

    text: str
    level: str = field(compare=False)
    type: str = field(compare=False)
    letters: str = field(compare=False)
    query: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def is_v1(self) -> bool:
        """Whether it is written in the syntax of SMART App Launch 1."""
        suffix = self.text.partition("?")[0].rpartition(".")[2]
        return suffix.lower() in _V1_LETTERS

    @property
    def is_experimental(self) -> bool:
        """Whether it uses modifiers, chaining or ``_filter`` (SCOPE-09)."""
        return any(
            ":" in name or "." in name or name == "_filter" for name, _ in self.query
        )

    def allows(self, other: ResourceScope, letter: str) -> bool:
        """Whether this grant includes *letter* of the scope *other*."""
        return (
            letter in self.letters
            and self.level == other.level
            and self.type.lower() in ("*", other.type.lower())
            and self.query in ((), other.query)
        )

    def with_letters(self, letters: Iterable[str]) -> ResourceScope:
        """The same scope in v2 syntax with other *letters*; at least one."""
        ordered = "".join(letter for letter in _LETTERS if letter in letters)
        query = self.text.partition("?")[2]
        text = f"{self.level}/{self.type}.{ordered}" + (f"?{query}" if query else "")
        return replace(self, text=text, letters=ordered)

    def to_v1(self) -> ResourceScope:
        """
        The narrowest scope of v1 syntax that includes this one.

        Raises:
            ScopeSyntaxError: it is narrowed by parameters, which v1 cannot say.
        """
        if self.query:
            raise ScopeSyntaxError(
                f"{self.text!r} has search parameters, which v1 scopes cannot express.",
                scope=self.text,
            )
        reads = not {"r", "s"}.isdisjoint(self.letters)
        writes = not {"c", "u", "d"}.isdisjoint(self.letters)
        suffix = "*" if reads and writes else "read" if reads else "write"
        text = f"{self.level}/{self.type}.{suffix}"
        return replace(self, text=text, letters=_V1_LETTERS[suffix])


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchScope:
    """
    A request for context: ``launch``, ``launch/patient``, ``launch/list?role=…``.

    Attributes:
        text: as written.
        type: resource type in lower case; empty for ``launch`` itself.
        role: URI or empty.
    """

    text: str
    type: str = field(default="", compare=False)
    role: str = field(default="", compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherScope:
    """
    ``openid`` and its like, extensions, and what a server invented.

    Attributes:
        text: as written.
        name: without the URI prefix of OpenID or SMART scopes (SCOPE-18).
    """

    text: str
    name: str = field(default="", compare=False)


Scope = ResourceScope | LaunchScope | OtherScope


def _parse_query(query: str) -> tuple[tuple[str, str], ...] | None:
    """Parameters of a granular scope in comparable form; ``None`` if malformed."""
    pairs = set()
    for item in query.split("&"):
        name, _, value = item.partition("=")
        if not name or not value:
            return None
        pairs.add((unquote(name), unquote(value)))
    return tuple(sorted(pairs))


def _parse_resource_scope(
    name: str, text: str, *, strict: bool
) -> ResourceScope | None:
    """Read *name* (without prefix) as a resource scope; ``None`` if it is not one."""
    match = (_RESOURCE if strict else _ANY_CASE_RESOURCE).fullmatch(name)
    if match is None:
        return None
    query = _parse_query(match["query"]) if match["query"] else ()
    if query is None:
        return None
    v1, v2 = match["v1"], match["v2"]
    return ResourceScope(
        text=text,
        level=match["level"].lower(),
        type=match["type"],
        letters=_V1_LETTERS[v1.lower()] if v1 else v2.lower(),
        query=query,
    )


def parse_scope(text: str, *, strict: bool) -> Scope:
    """
    Read one scope.

    Args:
        text: without white space.
        strict: raise for what the grammar does not know, rather than to keep it as an
            opaque ``OtherScope``.

    Raises:
        ScopeSyntaxError: *strict*, and *text* does not follow the grammar.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context".
    """
    name = text.removeprefix(_SMART_PREFIX).removeprefix(_OPENID_PREFIX)
    scope = _parse_resource_scope(name, text, strict=strict) or _parse_launch_scope(
        name, text, strict=strict
    )
    known = scope or name in _KNOWN or _EXTENSION.fullmatch(name)
    if strict and not (known and _TOKEN.fullmatch(text)):
        raise ScopeSyntaxError(
            f"{text!r} is not a SMART scope: expected level/Type.cruds with letters in "
            "that order, launch or launch/type in lower case, a scope of OpenID "
            "Connect, online_access or offline_access, a URI, or a name that starts "
            "with two underscores.",
            scope=text,
        )
    return scope or OtherScope(text=text, name=name)


def _parse_launch_scope(name: str, text: str, *, strict: bool) -> LaunchScope | None:
    """Read *name* (without prefix) as a launch scope; ``None`` if it is not one."""
    match = (_LAUNCH if strict else _ANY_CASE_LAUNCH).fullmatch(name)
    if match is None:
        return None
    return LaunchScope(
        text=text,
        type=(match["type"] or "").lower(),
        role=unquote(match["role"] or ""),
    )
