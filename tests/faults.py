"""What the package does about each fault of the simulated EHR: one table."""

from __future__ import annotations

from django_smart.testing.simulator.faults import FAULTS

__all__ = [
    "LAUNCH_EXCHANGES",
    "LIMITS",
    "PACE",
    "REFUSED",
    "is_slow",
    "named",
]

LAUNCH_EXCHANGES = ("discovery", "openid", "jwks", "authorize", "token", "id_token")
#: A second of a slow fault, and the limits of the settings, as much shorter.
PACE = 0.5
LIMITS = (0.25, 0.5, 1.0)

# Code on the row and in the log, status of the page, and the faults that lead there.
_LAUNCHES = {
    ("discovery_status", 502): """
        discovery_404 discovery_500 discovery_redirect_302 discovery_redirect_307
        openid_404 openid_500 openid_redirect_302 openid_redirect_307
        jwks_404 jwks_500 jwks_redirect_302 jwks_redirect_307
    """,
    ("discovery_malformed", 502): """
        discovery_array discovery_deep_nesting
        discovery_duplicate_member discovery_endpoint_backslash
        discovery_endpoint_fragment discovery_endpoint_no_host
        discovery_endpoint_no_port discovery_endpoint_open_bracket
        discovery_endpoint_space discovery_ftp_endpoint discovery_state_in_endpoint
        discovery_empty discovery_html_200 discovery_http_endpoint
        discovery_missing_token_endpoint discovery_not_json discovery_not_utf8
        discovery_number_method discovery_number_token_endpoint
        discovery_object_issuer discovery_text_capabilities
        discovery_text_iss_supported discovery_user_info_authorization
        discovery_user_info_endpoint
        openid_empty openid_html_200 openid_http_jwks_uri openid_long_jwks_uri
        openid_missing_jwks_uri openid_not_json openid_not_utf8 openid_other_issuer
        jwks_empty jwks_html_200 jwks_missing_keys jwks_not_json jwks_not_utf8
    """,
    ("server_unsupported", 502): """
        discovery_missing_authorization_endpoint discovery_plain_only openid_absent
    """,
    ("response_too_large", 502): """
        discovery_bomb discovery_too_large openid_bomb openid_too_large
        jwks_bomb jwks_too_large token_bomb token_too_large
    """,
    ("server_timeout", 503): """
        discovery_endless discovery_late openid_endless openid_late
        jwks_endless jwks_late token_endless token_late
    """,
    ("access_denied", 403): "authorize_access_denied",
    ("authorization_refused", 400): """
        authorize_error_markup authorize_invalid_request authorize_invalid_scope
        authorize_login_required authorize_server_error
        authorize_temporarily_unavailable authorize_unauthorized_client
        authorize_unsupported_response_type
    """,
    ("authorization_response_malformed", 400): """
        authorize_code_and_error authorize_code_twice authorize_empty_code
        authorize_error_empty authorize_error_malformed authorize_long_code
        authorize_long_parameter authorize_malformed_code authorize_missing_code
        authorize_parameter_twice
    """,
    ("state_unknown", 400): """
        authorize_empty_state authorize_long_state authorize_missing_state
        authorize_state_twice authorize_unknown_state
    """,
    ("issuer_mismatch", 400): "authorize_missing_iss authorize_wrong_iss",
    ("token_refused", 400): """
        token_error_markup token_invalid_client token_invalid_grant
        token_invalid_request token_invalid_scope token_unauthorized_client
        token_unsupported_grant_type
    """,
    ("token_server_error", 502): """
        token_404 token_429 token_500 token_503 token_html_400
    """,
    ("redirect_refused", 502): "token_redirect_302 token_redirect_307",
    ("token_response_malformed", 502): """
        token_array token_boolean_expires_in token_broken_access_token
        token_deep_nesting token_dots_patient token_duplicate_patient token_empty
        token_empty_access_token token_endless_expires_in token_error_200
        token_float_expires_in token_form_encoded token_html_200
        token_huge_expires_in token_infinite_expires_in token_list_patient
        token_long_patient token_missing_access_token
        token_missing_token_type token_nan_expires_in token_nesting
        token_overflow token_negative_expires_in
        token_not_json token_not_utf8 token_number_access_token
        token_number_patient token_number_token_type token_object_refresh_token
        token_path_encounter token_path_patient token_patient_object
        token_status_201 token_text_expires_in token_text_patient
        token_wrong_token_type id_token_object
    """,
    ("patient_missing", 502): """
        token_empty_patient token_missing_patient token_null_patient
    """,
    ("id_token_invalid", 502): """
        id_token_absent id_token_alg_none id_token_bad_base64 id_token_encrypted
        id_token_malformed id_token_not_json id_token_number_kid id_token_too_long
        id_token_two_parts
    """,
    ("id_token_signature", 502): """
        id_token_alg_none_signed id_token_bad_signature id_token_crit_header
        id_token_hs256_public_key id_token_hs256_secret id_token_jku_header
        id_token_jwk_header id_token_kid_of_another_key
        id_token_missing_kid_of_several id_token_x5u_header
    """,
    ("id_token_key_unknown", 502): """
        id_token_kid_space id_token_unknown_kid jwks_key_ops jwks_no_keys jwks_other_alg
        jwks_symmetric jwks_use_enc
    """,
    ("id_token_claim", 502): """
        id_token_empty_aud id_token_empty_sub id_token_expired
        id_token_fhir_user_no_id id_token_fhir_user_number
        id_token_fhir_user_path
        id_token_fhir_user_wrong_type id_token_huge_exp id_token_iss_slash
        id_token_issued_in_future id_token_long_sub id_token_missing_aud
        id_token_missing_exp id_token_missing_iat id_token_missing_iss
        id_token_missing_nonce id_token_missing_sub id_token_not_valid_yet
        id_token_number_aud id_token_number_nonce id_token_number_sub
        id_token_several_aud id_token_several_aud_wrong_azp id_token_text_exp
        id_token_text_iat id_token_wrong_aud id_token_wrong_azp
        id_token_wrong_iss id_token_wrong_nonce
    """,
}
#: Code and status for each fault of a launch that is refused.
REFUSED = {name: what for what, names in _LAUNCHES.items() for name in names.split()}


def named(verdict: str, *exchanges: str, slow: bool = False) -> list[str]:
    """The faults of *exchanges* with that verdict, the slow ones or the others."""
    return sorted(
        fault.name
        for fault in FAULTS.values()
        if fault.verdict == verdict
        and fault.exchange in exchanges
        and is_slow(fault.name) == slow
    )


def is_slow(name: str) -> bool:
    """Whether a fault can be seen only where time passes."""
    return name.endswith(("_late", "_endless", "_after_3_s"))
