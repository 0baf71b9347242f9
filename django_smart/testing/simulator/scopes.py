"""
Scopes as the simulated EHR reads them.

Spec: SMART App Launch 2.2, "Scopes and Launch Context".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from django_smart.testing.simulator.search import RESOURCE_TYPES

__all__ = ["ResourceScope", "ScopeError", "covers", "parse_scope", "split_scope"]

_RESOURCE = re.compile(r"(patient|user|system)/(\*|[A-Za-z]+)\.([^?]+)(?:\?(.+))?")
_V2_LETTERS = re.compile(r"(?=.)c?r?u?d?s?")
_V1_LETTERS = {"read": "rs", "write": "cud", "*": "cruds"}
_LAUNCH = re.compile(r"launch(/[a-z]+)?(\?role=[^&\s]+)?")
_PLAIN = frozenset({"openid", "fhirUser", "profile", "online_access", "offline_access"})
# RFC 6749 section 3.3: printable ASCII without space, quote and backslash.
_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class ScopeError(ValueError):
    """A scope that this server does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceScope:
    """``level/type.letters?params``; v1 suffixes are turned into v2 letters."""

    level: str
    resource_type: str
    letters: str
    params: tuple[tuple[str, str], ...] = ()

    def applies_to(self, resource_type: str, letter: str) -> bool:
        """Return whether type and interaction match; ``params`` are ignored."""
        return letter in self.letters and self.resource_type in {"*", resource_type}

    def covers(self, other: ResourceScope) -> bool:
        """Return whether this scope includes *other*."""
        return (
            self.level == other.level
            and self.resource_type in {"*", other.resource_type}
            and set(other.letters) <= set(self.letters)
            and set(self.params) <= set(other.params)
        )


def split_scope(scope: str) -> list[str]:
    """
    The items of a scope string, in order.

    Raises:
        ScopeError: a character that RFC 6749 section 3.3 does not allow, or
            separators other than one space.
    """
    items = scope.split(" ")
    for item in items:
        if not _TOKEN.fullmatch(item):
            raise ScopeError("scope is not a list of tokens with one space between")
    return items


def parse_scope(item: str) -> ResourceScope | None:
    """
    Read one scope; None for a scope that is not about resources.

    Raises:
        ScopeError: this server does not know the scope.
    """
    if item in _PLAIN or _LAUNCH.fullmatch(item):
        return None
    match = _RESOURCE.fullmatch(item)
    if match is None:
        raise ScopeError(f"unknown scope: {item}")
    level, resource_type, suffix, query = match.groups()
    if resource_type != "*" and resource_type not in RESOURCE_TYPES:
        raise ScopeError(f"unknown resource type in scope: {item}")
    letters = _V1_LETTERS.get(suffix, suffix)
    if not _V2_LETTERS.fullmatch(letters):
        raise ScopeError(f"unknown suffix in scope: {item}")
    if query and suffix in _V1_LETTERS:
        raise ScopeError(f"a v1 scope has no search parameters: {item}")
    params = tuple(parse_qsl(query or "", keep_blank_values=True))
    return ResourceScope(
        level=level, resource_type=resource_type, letters=letters, params=params
    )


def covers(granted: list[str], item: str) -> bool:
    """Return whether *granted* includes the scope *item*, literally or by meaning."""
    if item in granted:
        return True
    wanted = parse_scope(item)
    if wanted is None:
        return False
    held = [parse_scope(one) for one in granted]
    # Several scopes may cover it together, a letter each.
    return all(
        any(scope is not None and scope.covers(part) for scope in held)
        for part in (replace(wanted, letters=letter) for letter in wanted.letters)
    )
