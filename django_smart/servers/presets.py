"""
What is known of vendors: values for the columns of a server.

Only what a vendor publishes and what differs from the safe defaults is written here; a
vendor without an entry of values was looked at and needs none.
"""

from __future__ import annotations

from typing import TypedDict

from ..models import FHIRServer

__all__ = ["PRESETS", "ServerColumns", "get_preset_values"]


class ServerColumns(TypedDict, total=False):
    """Columns of :class:`~django_smart.models.FHIRServer` that a preset fills in."""

    bearer_boundary: str
    discovery_headers: dict[str, str]
    introspection_mode: str


#: Stands for the client id, which the server of some vendors wants to see.
_CLIENT_ID = "{client_id}"

PRESETS: dict[str, ServerColumns] = {
    FHIRServer.Preset.EPIC: {
        # The endpoints can be set for each client; without the header the general ones
        # are answered.  (fhir.epic.com, OAuth 2.0 Specification, "Additional Header
        # Requirements".)
        "discovery_headers": {"Epic-Client-ID": _CLIENT_ID},
    },
    # Advertises client_secret_basic and private_key_jwt (RS384, ES384), S256, POST to
    # the authorization endpoint, scopes of both versions and offline_access beside
    # online_access: the defaults fit.  (SMART configuration of the sandbox,
    # fhir-ehr-code.cerner.com, July 2026.)
    FHIRServer.Preset.ORACLE_HEALTH: {},
    # Advertises S256, POST to the authorization endpoint, scopes of both versions and
    # an issuer on another host than the endpoints', which discovery tells: the defaults
    # fit.
    # (SMART configuration of api.platform.athenahealth.com, August 2026.)
    FHIRServer.Preset.ATHENAHEALTH: {},
    FHIRServer.Preset.ECLINICALWORKS: {
        # Introspection takes the client's credentials by Basic; signatures are RS384
        # alone, the default.  (fhir.eclinicalworks.com, Getting started, "Token
        # introspection" and "Backend, Authentication".)
        "introspection_mode": FHIRServer.IntrospectionMode.CLIENT,
    },
    FHIRServer.Preset.SMART_LAUNCHER: {
        # The base URL holds the simulated launch in its path; the links to the next
        # page lead to the same origin outside of it.  (SMART App Launch 2.2, "Example
        # App Launch for Symmetric Client Auth".)
        "bearer_boundary": FHIRServer.BearerBoundary.ORIGIN,
    },
}


def get_preset_values(preset: str, *, client_id: str) -> ServerColumns:
    """
    Columns that *preset* fills in.

    Args:
        preset: one of ``FHIRServer.Preset``; one that is not known fills in nothing.
        client_id: for servers that answer each client differently.
    """
    values = PRESETS.get(preset, {}).copy()
    if headers := values.get("discovery_headers"):
        values["discovery_headers"] = {
            name: client_id if value == _CLIENT_ID else value
            for name, value in headers.items()
        }
    return values
