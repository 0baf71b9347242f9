"""
What is known about vendors: values of quirks.

Contains only values that a vendor publishes and that differ from the safe defaults; a
vendor with an empty entry was examined and needs none.
"""

from __future__ import annotations

from typing import Any

from ..models import FHIRServer

__all__ = ["PRESETS"]

#: Quirks by preset.
PRESETS: dict[str, dict[str, Any]] = {
    FHIRServer.Preset.EPIC: {
        # Endpoints can differ between clients; without the header, the general ones are
        # returned. (fhir.epic.com, OAuth 2.0 Specification, "Additional Header
        # Requirements".)
        "discovery_headers": {"Epic-Client-ID": "{client_id}"},
    },
    # Advertises client_secret_basic and private_key_jwt (RS384, ES384), S256, POST to
    # the authorization endpoint, scopes of both versions and offline_access besides
    # online_access: the defaults are right. (SMART configuration of the sandbox,
    # fhir-ehr-code.cerner.com, July 2026.)
    FHIRServer.Preset.ORACLE_HEALTH: {},
    FHIRServer.Preset.ATHENAHEALTH: {
        # Introspection requires the client's credentials; its SMART configuration does
        # not say so. (docs.athenahealth.com, "Additional OAuth Endpoints", 2026.)
        "introspection_mode": "client",
    },
    FHIRServer.Preset.ECLINICALWORKS: {
        # Introspection requires the client's credentials with Basic; signatures are
        # RS384 only, the default. (fhir.eclinicalworks.com, Getting started, "Token
        # introspection" and "Backend, Authentication".)
        "introspection_mode": "client",
    },
    # Advertises S256, POST to the authorization endpoint, scopes of both versions and
    # an issuer that ends in a slash, which is compared unchanged: the defaults are
    # right. (SMART configuration of greenfield-prod-apis.meditech.com, August 2026.)
    FHIRServer.Preset.MEDITECH: {},
    # Advertises S256, scopes of both versions, RS256, RS384 and ES384; its launches
    # name the base URL with a slash, which is sent back unchanged: the defaults are
    # right. (medplum/medplum, packages/server/src/fhir/smart.ts, 2026.)
    FHIRServer.Preset.MEDPLUM: {},
    FHIRServer.Preset.SMART_LAUNCHER: {
        # The base URL contains the simulated launch in its path; links to the next page
        # have the same origin but another path. (SMART App Launch 2.2, "Example App
        # Launch for Symmetric Client Auth".)
        "bearer_boundary": "origin",
    },
}
