"""SMART scopes as sets: read, compared, combined and written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django_smart.protocol.scope_grammar import (
    LaunchScope,
    OtherScope,
    ResourceScope,
    Scope,
    parse_scope,
    required_letter,
)

__all__ = [
    "LaunchScope",
    "OtherScope",
    "ResourceScope",
    "Scope",
    "ScopeSet",
    "required_letter",
]


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
