"""SMART scopes: their syntax, and the requests that a set of them allows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.resources import files
from urllib.parse import unquote

from django_smart.exceptions import ScopeSyntaxError

__all__ = [
    "LaunchScope",
    "OtherScope",
    "ResourceScope",
    "Scope",
    "ScopeSet",
    "is_for_service",
    "parse_scope",
    "parse_stored_scopes",
    "read_compartment_table",
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
# Servers return granted scopes in other letter cases, too (Epic). Level and suffix mean
# the same in any case, and no two FHIR types differ only by case, so this is safe.
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
    Return the scope letter that allows a FHIR *interaction* (``"vread"`` needs
    ``"r"``), or "" for one that scopes do not cover.

    ``batch`` and ``transaction`` have none: each of their entries needs its own
    (SCOPE-16).
    """
    return _INTERACTION_LETTERS.get(interaction, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceScope:
    """
    Access to resources, such as ``patient/Observation.rs?category=laboratory``.

    Attributes:
        text: as written.
        level: ``patient``, ``user`` or ``system``.
        type: FHIR resource type, or ``*``.
        letters: letters of ``cruds``, in that order.
        query: parameters that limit the access: decoded, sorted, without duplicates.
    """

    text: str
    level: str = field(compare=False)
    type: str = field(compare=False)
    letters: str = field(compare=False)
    query: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def is_v1(self) -> bool:
        """Whether it uses the syntax of SMART App Launch 1."""
        suffix = self.text.partition("?")[0].rpartition(".")[2]
        return suffix.lower() in _V1_LETTERS

    def with_letters(self, letters: Iterable[str]) -> ResourceScope:
        """Return the same scope in v2 syntax with other *letters*, at least one."""
        ordered = "".join(letter for letter in _LETTERS if letter in letters)
        query = self.text.partition("?")[2]
        text = f"{self.level}/{self.type}.{ordered}" + (f"?{query}" if query else "")
        return replace(self, text=text, letters=ordered)

    def to_v1(self) -> ResourceScope:
        """
        Return the narrowest scope in v1 syntax that includes this one.

        v1 has only ``read`` (``rs``) and ``write`` (``cud``), so ``.r`` becomes
        ``.read``.

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
    OpenID scopes, extensions, and a server's own scopes.

    Attributes:
        text: as written.
        name: without the URI prefix of OpenID or SMART scopes (SCOPE-18).
    """

    text: str
    name: str = field(default="", compare=False)


Scope = ResourceScope | LaunchScope | OtherScope


@cache
def read_compartment_table() -> tuple[list[str], ...]:
    """Return the rows of ``compartment.tsv``, which begin with the types of R4."""
    text = files(__package__).joinpath("compartment.tsv").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return tuple(line.split("\t") for line in lines)


@cache
def _list_types() -> frozenset[str]:
    return frozenset({"*", *(name for name, *_ in read_compartment_table())})


def is_for_service(scope: Scope) -> bool:
    """Return whether a backend service can use *scope* (BACK-04, SCOPE-17)."""
    if isinstance(scope, ResourceScope):
        return scope.level == "system"
    return isinstance(scope, OtherScope) and scope.name not in _KNOWN


def _parse_query(query: str) -> tuple[tuple[str, str], ...] | None:
    """
    Return the parameters of a granular scope for comparison; ``None`` if malformed.
    """
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
        text: without whitespace.
        strict: raise for a scope outside the grammar, or for a type that R4 does not
            have, instead of returning it, if need be as an opaque ``OtherScope``.

    Raises:
        ScopeSyntaxError: *strict*, and *text* does not follow the grammar, or has an
            unknown type.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context".
    """
    name = text.removeprefix(_SMART_PREFIX).removeprefix(_OPENID_PREFIX)
    scope = _parse_resource_scope(name, text, strict=strict) or _parse_launch_scope(
        name, text, strict=strict
    )
    known = scope or name in _KNOWN or _EXTENSION.fullmatch(name)
    if strict and not (known and _TOKEN.fullmatch(text)):
        raise ScopeSyntaxError(
            f"{text!r} is not a SMART scope: expected level/Type.cruds with "
            "letters in that order, launch or launch/type in lowercase, an "
            "OpenID Connect scope, online_access or offline_access, a URI, or "
            f"a name that starts with two underscores.{_suggest(text)}",
            scope=text,
        )
    if strict and isinstance(scope, ResourceScope) and scope.type not in _list_types():
        raise ScopeSyntaxError(
            f"{text!r} is about {scope.type}, which FHIR R4 does not have."
            f"{_suggest(text)}",
            scope=text,
        )
    return scope or OtherScope(text=text, name=name)


def _suggest(text: str) -> str:
    """Suggest spaces, or the nearest type and the letters in order."""
    if re.search("[,;]", text):
        return " Separate scopes by spaces."
    name, mark, query = text.partition("?")
    head, _, letters = name.rpartition(".")
    level, _, kind = head.partition("/")
    near = get_close_matches(kind, _list_types(), n=1)
    ordered = "".join(each for each in _LETTERS if each in letters)
    if letters in _V1_LETTERS or set(letters) != set(ordered):
        ordered = letters
    candidate = f"{level}/{''.join(near)}.{ordered}{mark}{query}"
    return f" Did you mean {candidate}?" if _RESOURCE.fullmatch(candidate) else ""


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
    Scopes in their original order, without duplicates.

    Two sets are equal if they contain the same scopes as written, in any order.
    ``str()`` returns the wire string.
    """

    scopes: tuple[Scope, ...] = ()

    @classmethod
    def parse(cls, text: str, *, strict: bool = False) -> ScopeSet:
        """
        Parse a scope string; any whitespace separates scopes.

        Args:
            strict: refuse scopes outside the grammar, and types that R4 does not have,
                for input of an operator.
                Otherwise, they are kept as ``OtherScope``, for scopes that a server
                granted.

        Raises:
            ScopeSyntaxError: *strict*, and a scope is refused.

        Spec: SMART App Launch 2.2, "Scopes and Launch Context".
        """
        return cls._unique(parse_scope(item, strict=strict) for item in text.split())

    @classmethod
    def _unique(cls, scopes: Iterable[Scope]) -> ScopeSet:
        return cls(tuple(dict.fromkeys(scopes)))

    def __str__(self) -> str:
        return " ".join(scope.text for scope in self.scopes)

    def __iter__(self) -> Iterator[Scope]:
        return iter(self.scopes)

    def __len__(self) -> int:
        return len(self.scopes)

    def __contains__(self, item: object) -> bool:
        # In any form: "openid" is also in a set that has its URI (SCOPE-18).
        return isinstance(item, str) and _identity(
            parse_scope(item, strict=False)
        ) in map(_identity, self.scopes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScopeSet):
            return NotImplemented
        return frozenset(self.scopes) == frozenset(other.scopes)

    def __hash__(self) -> int:
        return hash(frozenset(self.scopes))

    def __or__(self, other: ScopeSet) -> ScopeSet:
        return ScopeSet._unique((*self.scopes, *other.scopes))

    @property
    def are_for_patient(self) -> bool:
        """Whether one of them is for one patient's record (SCOPE-12)."""
        return any(scope.level == "patient" for scope in self.resource_scopes)

    @property
    def resource_scopes(self) -> tuple[ResourceScope, ...]:
        """The scopes that give access to resources."""
        return tuple(s for s in self.scopes if isinstance(s, ResourceScope))

    def covers(self, other: ScopeSet | str) -> bool:
        """
        Return whether this grant allows all of *other*.

        A wildcard covers every type, and several scopes can cover one together; a scope
        narrowed by parameters covers only the same parameters (SCOPE-06, SCOPE-10);
        one level never covers another (SCOPE-12).
        """
        return not self.missing(other)

    def missing(self, required: ScopeSet | str) -> ScopeSet:
        """Return the part of *required* that this grant does not cover."""
        return _select(required, self, covered=False)

    def limited_to(self, granted: ScopeSet) -> ScopeSet:
        """
        Return the scopes, with their letters, that both these and *granted* cover.

        That is the access of both (REF-05), but for scopes that only overlap: one for
        all types with parameters, and one for a type without them.
        """
        if set(self.scopes) <= set(granted.scopes):  # as usual
            return self
        covered = _select(self, granted, covered=True)
        return covered | covered.missing(_select(granted, self, covered=True))

    def to_v2(self) -> ScopeSet:
        """
        Return the same access with letters instead of ``read``, ``write`` and ``*``.
        """
        return ScopeSet._unique(
            scope.with_letters(scope.letters)
            if isinstance(scope, ResourceScope) and scope.is_v1
            else scope
            for scope in self.scopes
        )


# For columns, of which a process sees few different values, again and again.
parse_stored_scopes = lru_cache(maxsize=64)(ScopeSet.parse)


def _select(scopes: ScopeSet | str, granted: ScopeSet, *, covered: bool) -> ScopeSet:
    """Return the parts of *scopes* that *granted* covers, or those it does not."""
    others = {_identity(scope) for scope in granted}
    # By what they are about: a server can send thousands of them.
    allowed: dict[object, set[str]] = {}
    for grant in granted.resource_scopes:
        key = (grant.level, grant.type.lower(), grant.query)
        allowed.setdefault(key, set()).update(grant.letters)
    selected: list[Scope] = []
    for scope in ScopeSet.parse(scopes) if isinstance(scopes, str) else scopes:
        if not isinstance(scope, ResourceScope):
            if (_identity(scope) in others) is covered:
                selected.append(scope)
            continue
        found = [
            allowed.get((scope.level, type_, query), set())
            for type_ in ("*", scope.type.lower())
            for query in ((), scope.query)
        ]
        reached = set().union(*found)
        letters = [each for each in scope.letters if (each in reached) is covered]
        if len(letters) == len(scope.letters):
            selected.append(scope)
        elif letters:
            selected.append(scope.with_letters(letters))
    return ScopeSet(tuple(selected))


def _identity(scope: Scope) -> object:
    """Return the key for comparing scopes in whatever form they are written."""
    if isinstance(scope, LaunchScope):
        return ("launch", scope.type, scope.role)
    if isinstance(scope, OtherScope):
        return scope.name
    return (scope.level, scope.type, frozenset(scope.letters), scope.query)
