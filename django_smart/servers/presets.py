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
        # returned. Client ID and secret are URL-encoded before they go with Basic.
        # (fhir.epic.com, OAuth 2.0 Specification, "Additional Header Requirements" and
        # "Client Secret Authentication", read on 2026-12-01.)
        "discovery_headers": {"Epic-Client-ID": "{client_id}"},
        "basic_credentials": "form_encoded",
    },
    # Advertises client_secret_basic and private_key_jwt (RS384, ES384), S256, POST to
    # the authorization endpoint, scopes of both versions and offline_access besides
    # online_access: the defaults are right. (SMART configuration of the sandbox,
    # fhir-ehr-code.cerner.com, July 2026. The vendor's older documentation asks apps to
    # sign in outside of frames; whether it still does is not known:
    # cerner/fhir.cerner.com, content/authorization.md, read on 2026-12-01.)
    FHIRServer.Preset.ORACLE_HEALTH: {},
    FHIRServer.Preset.ATHENAHEALTH: {
        # Introspection requires the client's credentials; its SMART configuration does
        # not say so. (docs.athenahealth.com, "Additional OAuth Endpoints", read on
        # 2026-12-01.)
        "introspection_mode": "client",
    },
    FHIRServer.Preset.ECLINICALWORKS: {
        # Introspection requires the client's credentials with Basic; signatures are
        # RS384 only, the default. (fhir.eclinicalworks.com, Getting started, "Token
        # introspection" and "Backend, Authentication", read on 2026-11-27.) The limit
        # and the lifetime of refresh tokens are known from third parties only.
        "introspection_mode": "client",
    },
    # Advertises S256, POST to the authorization endpoint, scopes of both versions and
    # an issuer that ends in a slash, which is compared unchanged: the defaults are
    # right. (SMART configuration of greenfield-prod-apis.meditech.com, August 2026.)
    FHIRServer.Preset.MEDITECH: {},
    # Advertises S256, scopes of both versions, RS256, RS384 and ES384; its launches
    # name the base URL with a slash, which is sent back unchanged: the defaults are
    # right. (medplum/medplum, packages/server/src/fhir/smart.ts, read on
    # 2026-12-01.)
    FHIRServer.Preset.MEDPLUM: {},
    FHIRServer.Preset.OPENEMR: {
        # Introspection requires the client's credentials; its SMART configuration does
        # not say so. Refresh tokens last for three months, of which 90 days are safe.
        # (openemr/openemr, Documentation/api/AUTHENTICATION.md, "Token Introspection"
        # and "Token Lifetime", read on 2026-12-01.)
        "introspection_mode": "client",
        "refresh_token_lifetime": 7776000,
    },
    # Advertises S256, POST to the authorization endpoint and scopes of both versions:
    # the defaults are right. (SMART configurations of NextGen Enterprise and Office,
    # api-evangelist/nextgen-healthcare, July 2026, read on 2026-12-01.)
    FHIRServer.Preset.NEXTGEN: {},
    # Lists its authentication methods under a nonstandard name, which is ignored:
    # the defaults are right. Each customer sets how long tokens last. (SMART
    # configuration of sandbox CP00101 and authentication,
    # api-evangelist/allscripts-healthcare-solutions, September 2026, read on
    # 2026-12-01.)
    FHIRServer.Preset.VERADIGM: {},
    # Supports S256 and scopes of both versions: the defaults are right. A deviation in
    # the SMART configuration of version 3 needs an override. (CMSgov/
    # bluebutton-web-server, apps/wellknown, read on 2026-12-01.)
    FHIRServer.Preset.BLUE_BUTTON: {},
    FHIRServer.Preset.VA_LIGHTHOUSE: {
        # The scopes are patient/<type>.read, one for each type. (developer.va.gov as
        # reported in department-of-veterans-affairs/vets-api-clients, issue 152, and by
        # apps that connect to the sandbox, May 2026; read on 2026-12-01.)
        "scope_syntax": "v1",
    },
    FHIRServer.Preset.KEYCLOAK: {
        # Assertions name the issuer or the URL of the token, introspection or PAR
        # endpoint; that of the revocation endpoint is refused. (keycloak/keycloak,
        # JWTClientValidator.getExpectedAudiences, read on 2026-12-01.)
        "assertion_audience": "token_endpoint",
    },
    FHIRServer.Preset.SPRING: {
        # "OPTIONAL as per specification but REQUIRED by this implementation".
        # (spring-projects/spring-authorization-server,
        # JwtClientAssertionAuthenticationConverter, read on 2026-12-01.)
        "client_id_with_assertion": True,
    },
    FHIRServer.Preset.ENTRA: {
        # "client_id: required", also with a certificate. A refresh without scope was
        # refused, although the page calls the parameter optional. A refresh token lasts
        # for 90 days, and each refresh returns a new one.
        # (learn.microsoft.com, "Microsoft identity platform and OAuth 2.0 authorization
        # code flow" and "Refresh tokens in the Microsoft identity platform", read on
        # 2026-12-01; question 192699, 2020-12-09.)
        "client_id_with_assertion": True,
        "refresh_token_lifetime": 7776000,
        "send_scope_on_refresh": True,
    },
    FHIRServer.Preset.SMART_LAUNCHER: {
        # The base URL contains the simulated launch in its path; links to the next page
        # have the same origin but another path. (smart-on-fhir/smart-launcher-v2,
        # backend/routes/fhir/proxy.ts, read on 2026-12-01.)
        "bearer_boundary": "origin",
    },
}
