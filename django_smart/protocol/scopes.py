"""SMART scopes: how one is written, and which requests a set of them allows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from django_smart.exceptions import ScopeSyntaxError

__all__ = [
    "LaunchScope",
    "OtherScope",
    "ResourceScope",
    "Scope",
    "ScopeSet",
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


@dataclass(frozen=True, slots=True, eq=False)
class ScopeSet:
    """
    Scopes in the order they were written, each once.

    Two sets are equal if they hold the same scopes as written, in any order.  ``str()``
    gives the wire string.
    """

    scopes: tuple[Scope, ...] = ()

    @classmethod
    def parse(cls, text: str, *, strict: bool = False) -> ScopeSet:
        """
        Read a scope string; runs of white space separate as one space does.

        Args:
            strict: refuse what the grammar does not know, for what an operator enters.
                Otherwise such scopes are kept as ``OtherScope``, for what a server
                granted.

        Raises:
            ScopeSyntaxError: *strict*, and a scope does not follow the grammar.

        Spec: SMART App Launch 2.2, "Scopes and Launch Context".
        """
        return cls(
            tuple(
                parse_scope(item, strict=strict) for item in dict.fromkeys(text.split())
            )
        )

    def __str__(self) -> str:
        return " ".join(scope.text for scope in self.scopes)

    def __iter__(self) -> Iterator[Scope]:
        return iter(self.scopes)

    def __len__(self) -> int:
        return len(self.scopes)

    def __contains__(self, item: object) -> bool:
        return any(item == scope.text for scope in self.scopes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScopeSet):
            return NotImplemented
        return frozenset(self.scopes) == frozenset(other.scopes)

    def __hash__(self) -> int:
        return hash(frozenset(self.scopes))

    def __or__(self, other: ScopeSet) -> ScopeSet:
        return ScopeSet(tuple(dict.fromkeys((*self.scopes, *other.scopes))))

    @property
    def resource_scopes(self) -> tuple[ResourceScope, ...]:
        """Those that give access to resources."""
        return tuple(s for s in self.scopes if isinstance(s, ResourceScope))

    def covers(self, other: ScopeSet | str) -> bool:
        """
        Whether all of *other* is allowed by this grant.

        A wildcard covers each type and several scopes cover one together; a scope
        narrowed by parameters covers only the same parameters (SCOPE-06, SCOPE-10);
        levels never stand for each other (SCOPE-12).
        """
        return not self.missing(other)

    def missing(self, required: ScopeSet | str) -> ScopeSet:
        """What of *required* this grant does not cover, cut down to missing letters."""
        return _select(required, self, covered=False)

    def missing_from(self, granted: ScopeSet | str) -> ScopeSet:
        """What of this request *granted* does not cover."""
        return _as_set(granted).missing(self)

    def limited_to(self, granted: ScopeSet) -> ScopeSet:
        """What of these scopes *granted* covers, cut down to the covered letters."""
        return _select(self, granted, covered=True)

    def shortest(self) -> ScopeSet:
        """The same access in the fewest scopes of v2 syntax (SCOPE-07)."""
        merged: dict[object, Scope] = {}
        for scope in self.to_v2():
            key: object = scope
            if isinstance(scope, ResourceScope):
                key = (scope.level, scope.type.lower(), scope.query)
                known = merged.get(key)
                if isinstance(known, ResourceScope):
                    scope = known.with_letters(known.letters + scope.letters)
            merged[key] = scope
        kept = list(merged.values())
        for scope in tuple(kept):
            rest = ScopeSet(tuple(other for other in kept if other is not scope))
            if rest.covers(ScopeSet((scope,))):
                kept.remove(scope)
        return ScopeSet(tuple(kept))

    def to_v2(self) -> ScopeSet:
        """The same access with letters in place of ``read``, ``write`` and ``*``."""
        return ScopeSet(
            tuple(
                dict.fromkeys(
                    scope.with_letters(scope.letters)
                    if isinstance(scope, ResourceScope) and scope.is_v1
                    else scope
                    for scope in self.scopes
                )
            )
        )

    def to_v1(self) -> ScopeSet:
        """
        The least access of v1 syntax that includes this one.

        v1 knows only ``read`` (``rs``) and ``write`` (``cud``), so ``.r`` asks for
        ``.read``.

        Raises:
            ScopeSyntaxError: a scope is narrowed by parameters, which v1 cannot say.
        """
        return ScopeSet(
            tuple(
                dict.fromkeys(
                    scope.to_v1() if isinstance(scope, ResourceScope) else scope
                    for scope in self.scopes
                )
            )
        )


def _as_set(scopes: ScopeSet | str) -> ScopeSet:
    return scopes if isinstance(scopes, ScopeSet) else ScopeSet.parse(scopes)


def _select(scopes: ScopeSet | str, granted: ScopeSet, *, covered: bool) -> ScopeSet:
    """The parts of *scopes* that *granted* covers, or those it does not."""
    grants = granted.resource_scopes
    others = {_identity(scope) for scope in granted}
    selected: list[Scope] = []
    for scope in _as_set(scopes):
        if not isinstance(scope, ResourceScope):
            if (_identity(scope) in others) is covered:
                selected.append(scope)
            continue
        letters = [
            letter
            for letter in scope.letters
            if any(grant.allows(scope, letter) for grant in grants) is covered
        ]
        if len(letters) == len(scope.letters):
            selected.append(scope)
        elif letters:
            selected.append(scope.with_letters(letters))
    return ScopeSet(tuple(selected))


def _identity(scope: Scope) -> object:
    """By what scopes that are not about resources are compared."""
    if isinstance(scope, LaunchScope):
        return ("launch", scope.type, scope.role)
    return scope.name if isinstance(scope, OtherScope) else scope
