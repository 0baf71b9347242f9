"""Capabilities of servers."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Capability"]


class Capability(StrEnum):
    """
    The capabilities in the specification; a member equals the listed string.

    Spec: SMART App Launch 2.2, "Conformance", Capabilities.
    """

    LAUNCH_EHR = "launch-ehr"
    LAUNCH_STANDALONE = "launch-standalone"
    AUTHORIZE_POST = "authorize-post"
    CLIENT_PUBLIC = "client-public"
    CLIENT_CONFIDENTIAL_SYMMETRIC = "client-confidential-symmetric"
    CLIENT_CONFIDENTIAL_ASYMMETRIC = "client-confidential-asymmetric"
    SSO_OPENID_CONNECT = "sso-openid-connect"
    CONTEXT_BANNER = "context-banner"
    CONTEXT_STYLE = "context-style"
    CONTEXT_EHR_PATIENT = "context-ehr-patient"
    CONTEXT_EHR_ENCOUNTER = "context-ehr-encounter"
    CONTEXT_STANDALONE_PATIENT = "context-standalone-patient"
    CONTEXT_STANDALONE_ENCOUNTER = "context-standalone-encounter"
    PERMISSION_OFFLINE = "permission-offline"
    PERMISSION_ONLINE = "permission-online"
    PERMISSION_PATIENT = "permission-patient"
    PERMISSION_USER = "permission-user"
    PERMISSION_V1 = "permission-v1"
    PERMISSION_V2 = "permission-v2"
    SMART_APP_STATE = "smart-app-state"
