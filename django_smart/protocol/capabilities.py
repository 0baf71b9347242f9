"""Capabilities of servers, and the four sets defined for them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

__all__ = ["Capability", "CapabilitySet", "get_capability_sets"]


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


class CapabilitySet(StrEnum):
    """A set of capabilities for one purpose, by its name in the specification."""

    PATIENT_STANDALONE = "Patient Access for Standalone Apps"
    PATIENT_EHR = "Patient Access for EHR Launch"
    CLINICIAN_STANDALONE = "Clinician Access for Standalone"
    CLINICIAN_EHR = "Clinician Access for EHR Launch"


# Each also needs one of _CLIENT_TYPES.
_REQUIRED: dict[CapabilitySet, frozenset[str]] = {
    CapabilitySet.PATIENT_STANDALONE: frozenset(
        {
            Capability.LAUNCH_STANDALONE,
            Capability.CONTEXT_STANDALONE_PATIENT,
            Capability.PERMISSION_PATIENT,
        }
    ),
    CapabilitySet.PATIENT_EHR: frozenset(
        {
            Capability.LAUNCH_EHR,
            Capability.CONTEXT_EHR_PATIENT,
            Capability.PERMISSION_PATIENT,
        }
    ),
    CapabilitySet.CLINICIAN_STANDALONE: frozenset(
        {
            Capability.LAUNCH_STANDALONE,
            Capability.PERMISSION_USER,
            Capability.PERMISSION_PATIENT,
        }
    ),
    CapabilitySet.CLINICIAN_EHR: frozenset(
        {
            Capability.LAUNCH_EHR,
            Capability.CONTEXT_EHR_PATIENT,
            Capability.CONTEXT_EHR_ENCOUNTER,
            Capability.PERMISSION_USER,
            Capability.PERMISSION_PATIENT,
        }
    ),
}
_CLIENT_TYPES = frozenset(
    {Capability.CLIENT_PUBLIC, Capability.CLIENT_CONFIDENTIAL_SYMMETRIC}
)


def get_capability_sets(capabilities: Iterable[str]) -> frozenset[CapabilitySet]:
    """
    Return the sets that *capabilities* complete.

    Spec: SMART App Launch 2.2, "Conformance", Capability Sets.
    """
    present = frozenset(capabilities)
    if present.isdisjoint(_CLIENT_TYPES):
        return frozenset()
    return frozenset(
        name for name, required in _REQUIRED.items() if required <= present
    )
