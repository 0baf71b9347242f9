"""
Named quirks of the EHR, which refuses an app that is not configured for them.

``EHRSimulator.quirks`` contains the names of the active ones; ``QUIRKS`` describes all
of them. Any app must refuse or tolerate a fault; a quirk is handled by a field of the
server.
"""

from __future__ import annotations

__all__ = ["QUIRKS"]

QUIRKS: dict[str, str] = {
    "aud_slash": "accepts only the base URL with a trailing slash as aud",
    "aud_none": "refuses every aud",
    "context_in_access_token": "returns the context only in the access token, a JWT",
    "patient_in_fhir_user": "names the patient only in fhirUser",
    "scopes_trimmed": "grants neither Patient nor Observation",
    "offline_refused": "ignores offline_access and issues no refresh token",
    "parameter_wanted": "requires the authorization parameter tenant=harbour",
    "header_wanted": "requires X-Api-Key: s3cret-key for tokens and FHIR",
    "basic_form_encoded": "accepts Basic credentials only form-encoded (RFC 6749)",
    "basic_raw": "accepts Basic credentials only unencoded",
    "assertion_token_endpoint": "accepts client assertions only for the token endpoint",
    "discovery_wrong": "publishes wrong methods and capabilities but no JWK Set URL",
}
"""Every quirk, by name."""
