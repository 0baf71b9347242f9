"""
The discovery documents.

Spec: SMART App Launch 2.2, "FHIR Authorization Endpoint and Capabilities Discovery";
OpenID Connect Discovery 1.0; FHIR R4 ``CapabilityStatement``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_smart.testing.simulator.assertions import ALGORITHMS
from django_smart.testing.simulator.exchange import fhir_response, json_response
from django_smart.testing.simulator.search import get_parameters

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

    from django_smart.testing.simulator.ehr import EHRSimulator
    from django_smart.testing.simulator.exchange import Exchange

__all__ = [
    "jwks",
    "metadata",
    "openid_configuration",
    "smart_configuration",
    "smart_style",
]

_CAPABILITIES = [
    "launch-ehr",
    "launch-standalone",
    "authorize-post",
    "client-public",
    "client-confidential-symmetric",
    "client-confidential-asymmetric",
    "sso-openid-connect",
    "context-banner",
    "context-style",
    "context-ehr-patient",
    "context-ehr-encounter",
    "context-standalone-patient",
    "context-standalone-encounter",
    "permission-offline",
    "permission-online",
    "permission-patient",
    "permission-user",
    "permission-v1",
    "permission-v2",
    "smart-app-state",
]
_SCOPES = [
    "openid",
    "fhirUser",
    "profile",
    "launch",
    "launch/patient",
    "launch/encounter",
    "patient/*.rs",
    "user/*.rs",
    "system/*.rs",
    "patient/Basic.cuds",
    "user/Basic.cuds",
    "offline_access",
    "online_access",
]
_AUTH_METHODS = ["private_key_jwt", "client_secret_basic", "client_secret_post"]
_INTERACTIONS = (
    *("read", "vread", "update", "patch", "delete", "history-instance"),
    *("history-type", "create", "search-type"),
)
_PUBLIC = {"Access-Control-Allow-Origin": "*"}


def smart_configuration(exchange: Exchange) -> Response:
    """Answer ``GET [base]/.well-known/smart-configuration``."""
    document = {"capabilities": _CAPABILITIES, **_common(exchange.ehr)}
    return json_response(document, headers=_PUBLIC)


def openid_configuration(exchange: Exchange) -> Response:
    """Answer ``GET [issuer]/.well-known/openid-configuration``."""
    document = {
        **_common(exchange.ehr),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [exchange.ehr.id_token_algorithm],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "nonce", "fhirUser"],
    }
    return json_response(document, headers=_PUBLIC)


_WRONG: dict[str, Any] = {
    "capabilities": ["launch-ehr", "client-public", "permission-v1"],
    "code_challenge_methods_supported": ["plain"],
    "grant_types_supported": ["implicit"],
    "jwks_uri": None,
    "token_endpoint_auth_methods_supported": ["tls_client_auth"],
}


def _common(ehr: EHRSimulator) -> dict[str, Any]:
    wrong = _WRONG if "discovery_wrong" in ehr.quirks else {}
    return {
        "issuer": ehr.issuer,
        "jwks_uri": ehr.jwks_uri,
        "authorization_endpoint": ehr.authorization_endpoint,
        "token_endpoint": ehr.token_endpoint,
        "revocation_endpoint": ehr.revocation_endpoint,
        "introspection_endpoint": ehr.introspection_endpoint,
        "registration_endpoint": ehr.registration_endpoint,
        "code_challenge_methods_supported": ["S256"],
        "grant_types_supported": [
            "authorization_code",
            "refresh_token",
            "client_credentials",
        ],
        "token_endpoint_auth_methods_supported": _AUTH_METHODS,
        "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
        "scopes_supported": _SCOPES,
        "response_types_supported": ["code"],
        "authorization_response_iss_parameter_supported": True,
        **wrong,
    }


def jwks(exchange: Exchange) -> Response:
    """Answer ``GET [jwks_uri]``: the public keys of the ID tokens."""
    keys = [key.as_jwk() for key in exchange.ehr.signing_keys]
    return json_response({"keys": keys}, headers=_PUBLIC)


def smart_style(exchange: Exchange) -> Response:
    """Answer ``GET /smart-style.json``: the look of the EHR, for embedded apps."""
    style = {
        "color_background": "#fbfaf7",
        "color_error": "#9b2c2c",
        "color_highlight": "#b4532a",
        "color_modal_backdrop": "#2a2520",
        "color_success": "#2f6b3a",
        "color_text": "#2a2520",
        "dim_border_radius": "6px",
        "dim_font_size": "16px",
        "dim_spacing_size": "16px",
        "font_family_body": "system-ui, sans-serif",
        "font_family_heading": "Georgia, serif",
    }
    return json_response(style, headers=_PUBLIC)


def metadata(exchange: Exchange) -> Response:
    """Answer ``GET [base]/metadata``."""
    ehr = exchange.ehr
    uris = {
        "authorize": ehr.authorization_endpoint,
        "token": ehr.token_endpoint,
        "revoke": ehr.revocation_endpoint,
        "introspect": ehr.introspection_endpoint,
        "register": ehr.registration_endpoint,
    }
    service = "http://terminology.hl7.org/CodeSystem/restful-security-service"
    security = {
        "cors": True,
        "service": [{"coding": [{"system": service, "code": "SMART-on-FHIR"}]}],
        "extension": [
            {
                "url": (
                    "http://fhir-registry.smarthealthit.org/StructureDefinition/"
                    "oauth-uris"
                ),
                "extension": [
                    {"url": name, "valueUri": uri} for name, uri in uris.items()
                ],
            }
        ],
    }
    statement = {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-01-01",
        "kind": "instance",
        "software": {"name": "Harbour EHR (simulated)"},
        "implementation": {"description": "Synthetic patients", "url": ehr.base_url},
        "fhirVersion": "4.0.1",
        "format": ["json"],
        "rest": [
            {
                "mode": "server",
                "security": security,
                "resource": [_resource(name) for name in sorted(ehr.data)],
            }
        ],
    }
    return fhir_response(statement, headers=_PUBLIC)


def _resource(name: str) -> dict[str, Any]:
    kinds = {"id": "token"}
    return {
        "type": name,
        "interaction": [{"code": code} for code in _INTERACTIONS],
        "versioning": "versioned",
        "readHistory": True,
        "updateCreate": False,
        "conditionalCreate": True,
        "conditionalUpdate": True,
        "conditionalDelete": "single",
        "searchParam": [
            {"name": parameter, "type": kinds.get(one.kind, one.kind)}
            for parameter, one in sorted(get_parameters(name).items())
        ],
    }
