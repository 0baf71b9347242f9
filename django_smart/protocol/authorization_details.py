"""``authorization_details``: one token for several FHIR endpoints (experimental)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from django_smart.exceptions import InsecureURLError, MalformedTokenResponseError
from django_smart.protocol.context import LaunchContext, merge_parameters
from django_smart.protocol.scopes import ScopeSet
from django_smart.protocol.urls import normalize_base_url, validate_https_url

__all__ = ["AuthorizationDetail", "parse_authorization_details"]

_TYPE = "smart_on_fhir"
# Members that an entry can override; all others are those of the whole response.
_OWN_MEMBERS = ("patient", "encounter", "fhirContext")


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthorizationDetail:
    """
    The access that a token gives to some FHIR endpoints.

    Attributes:
        locations: FHIR base URLs that may be sent the token.
        fhir_versions: such as ``4.0.1``.
        scopes: granted there.
        context: of the launch, there.
    """

    locations: tuple[str, ...]
    fhir_versions: tuple[str, ...]
    scopes: ScopeSet = field(repr=False)
    context: LaunchContext = field(repr=False)


def parse_authorization_details(
    parameters: Mapping[str, Any],
    *,
    scopes: ScopeSet,
    insecure_hosts: frozenset[str] = frozenset(),
) -> tuple[AuthorizationDetail, ...]:
    """
    Read the member ``authorization_details`` of a token response.

    Entries of another type, and invalid ones, are ignored: they give no access, and the
    token is valid for the launch's FHIR server in any case.

    Args:
        parameters: the whole response, whose context applies if an entry has none.
        scopes: of the whole response, likewise.

    Spec: SMART App Launch 2.2, "Obtain access token", Response,
    ``authorization_details``; RFC 9396.
    """
    return tuple(_parse_entries(parameters, scopes, insecure_hosts))


def _parse_entries(
    parameters: Mapping[str, Any], scopes: ScopeSet, insecure_hosts: frozenset[str]
) -> Iterator[AuthorizationDetail]:
    entries = parameters.get("authorization_details")
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("type") != _TYPE:
            continue
        locations = _get_strings(entry, "locations")
        versions = _get_strings(entry, "fhirVersions")
        scope = entry.get("scope")
        if not locations or not versions or not isinstance(scope, str | None):
            continue
        own = {name: entry[name] for name in _OWN_MEMBERS if name in entry}
        try:
            for location in locations:
                validate_https_url(location, insecure_hosts=insecure_hosts)
                normalize_base_url(location)
            context = LaunchContext.from_parameters(
                merge_parameters(parameters, own), insecure_hosts=insecure_hosts
            )
        except (InsecureURLError, MalformedTokenResponseError):
            continue
        yield AuthorizationDetail(
            locations=locations,
            fhir_versions=versions,
            scopes=scopes if scope is None else ScopeSet.parse(scope),
            context=context,
        )


def _get_strings(entry: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of strings; anything else is an empty list."""
    value = entry.get(name)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return ()
